"""Hooks of a training: one's own metrics and optimizers, what the run records, and how it continues."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import longrec as lr
from longrec.errors import ConfigError, RunError
from longrec.metrics import auc

sys.path.insert(0, str(Path(__file__).parent.parent))  # for python_api, which test modules share
from python_api import SMALL, events, items, schema

FIT: dict[str, Any] = {"epochs": 1, "batch_size": 128, "quiet": True, "checkpoint_steps": 1}
MODEL = {"name": "deepfm", "embedding_dim": 4, "mlp": [8]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> lr.PreparedLog:
    return lr.prepare(events(), items=items(), schema=schema(), folder=tmp_path_factory.mktemp("prepared"))


def own_auc(label: Any, score: Any, user: Any) -> float:
    return auc(label, score)


def reversed_auc(label: Any, score: Any, user: Any) -> float:
    return auc(label, 1 - score)


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
    return torch.optim.AdamW([{"params": group, "weight_decay": 0.0} for group in groups], lr=1e-3, fused=True)


def test_a_metric_is_in_validations_results_and_comparisons(log: lr.PreparedLog) -> None:
    metrics = {"mine": own_auc, "back": lr.Metric(reversed_auc, better="lower")}
    run = lr.fit(MODEL, log, name="one", metrics=metrics, monitor="back", **FIT)
    reference = run.metrics["auc"]
    assert (run.metrics["mine"].low, run.metrics["mine"].high) == pytest.approx((reference.low, reference.high))
    assert run.metrics["back"].value == pytest.approx(1 - reference.value)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    valid = [line for line in lines if line["split"] == "valid"]
    assert [line["mine"] for line in valid] == pytest.approx([line["auc"] for line in valid])
    assert run.results["best_step"] == min(valid, key=lambda line: line["back"])["step"]
    opened = lr.open_run("runs/one")
    assert opened.config.fit.monitor == "back"
    assert opened.metrics["mine"] == run.metrics["mine"]
    assert lr.evaluate(opened, metrics={"again": own_auc}).metrics["again"].value == pytest.approx(reference.value)
    other = lr.fit("lr", log, name="two", **FIT)
    compared = lr.compare([run, other], metrics=metrics)
    difference = compared.differences["two"]
    assert difference["mine"].interval.value == pytest.approx(difference["auc"].interval.value)
    assert difference["back"].interval.value == pytest.approx(-difference["auc"].interval.value)
    assert difference["mine"].verdict == difference["back"].verdict == difference["auc"].verdict


def test_an_optimizer_of_one_s_own_trains_as_the_built_in_one(log: lr.PreparedLog) -> None:
    """The same optimizer gives the same bits, under warm-up and schedule, and after an interruption."""
    schedule: dict[str, Any] = {"warmup_steps": 3, "schedule": {"name": "cosine", "steps": 8}}
    built_in = lr.fit(MODEL, log, **FIT, **schedule)
    own = lr.fit(MODEL, log, name="own", optimizer=adam, **FIT, **schedule)
    assert own.predictions().equals(built_in.predictions())
    assert json.loads((own.folder / "hooks.json").read_text()) == {"optimizer": f"{adam.__module__}.adam"}
    assert not (built_in.folder / "hooks.json").exists()


def test_a_run_continues_with_its_own_optimizer_only(log: lr.PreparedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def momentum(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.NAdam(parameters, lr=0.01)

    def sparse(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SparseAdam(parameters, lr=0.01)

    call: dict[str, Any] = {**FIT, "optimizer": momentum, "embedding_optimizer": sparse, "metrics": [own_auc]}
    whole = lr.fit(MODEL, log, name="whole", **call)

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("longrec.training.objectives.clicks.Clicks.validate", stop)
        with pytest.raises(KeyboardInterrupt):
            lr.fit(MODEL, log, name="half", **call)
    with pytest.raises(ConfigError, match="resumed run keeps its functions") as raised:
        lr.train(resume="runs/half", quiet=True)
    assert len(raised.value.faults) == 3
    with pytest.raises(ConfigError, match="optimizer: .*momentum in the run, none now"):
        lr.fit(MODEL, log, resume="runs/half", **{**call, "optimizer": None})
    half = lr.fit(MODEL, log, resume="runs/half", **call)
    assert half.predictions().equals(whole.predictions())
    with pytest.raises(RunError, match="state of .*momentum; expected that of fit.optimizer"):
        lr.fit(MODEL, log, init_from=whole, allow_future_weights=True, **FIT)
    later = lr.fit(MODEL, log, init_from=whole, allow_future_weights=True, **call)
    assert np.isfinite(later.metrics["auc"].value)


def nothing(parameters: list[torch.nn.Parameter]) -> Any:
    return None


def first(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters[:1], lr=0.1)


class Diary(torch.optim.SGD):
    """An optimizer with a state that no checkpoint can hold."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["diary"] = [1, 2]
        return super().step(closure)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optimizer": nothing}, "optimizer: must return a torch.optim.Optimizer, got NoneType"),
        ({"optimizer": first}, "optimizer: trains 1 parameters, and was given"),
        ({"optimizer": adam, "lr": 0.1}, "lr: is given with an optimizer of your own, which sets it; remove it"),
        ({"embedding_optimizer": adam, "l2": 0.1}, "l2: is given with an embedding_optimizer of your own"),
        ({"optimizer": "adan"}, "optimizer: must be one of"),
        ({"metrics": {"auc": own_auc}}, "there is a metric 'auc' already"),
        ({"monitor": "mine"}, "monitor: 'mine' is no metric of its validations"),
        ({"metrics": [own_auc], "evaluate": {"sample_weight": "click"}}, "metrics: get no sample weights"),
    ],
)
def test_faults(log: lr.PreparedLog, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        lr.fit(MODEL, log, **{**FIT, **settings})
    assert says in str(raised.value)
    assert not Path("runs").exists()


def test_a_retriever_has_no_labels_and_scores(log: lr.PreparedLog) -> None:
    with pytest.raises(ConfigError, match="metrics: are functions of labels and scores, and a retriever has ranks"):
        lr.fit("sasrec", log, metrics=[own_auc])
    with pytest.raises(ConfigError, match="optimizer: covisit counts and has no parameters to train"):
        lr.fit("covisit", log, optimizer=adam)


def test_a_state_that_no_checkpoint_can_hold_is_named(log: lr.PreparedLog) -> None:
    build: Callable[..., Any] = lambda parameters: Diary(parameters, lr=0.1)  # noqa: E731
    with pytest.raises(RunError, match="optimizer Diary: the state 'diary' is a list; expected tensors and numbers"):
        lr.fit({"name": "deepfm", **SMALL}, log, optimizer=build, **FIT)
