"""Training by rewards and pairs after next-token training: what it moves, what it leaves, and logs that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec.data.log import Log
from longrec.data.next_item_loader import NextItemLoader
from longrec.errors import ConfigError, DataError
from longrec.features.feature_encoders import FIRST, IdEncoder
from longrec.models.alignment import Alignment
from longrec.training.finished_run import Run, read_log
from longrec.training.fit import train
from longrec.training.pair_accuracy import measure_pairs

USERS, REQUESTS, GROUPS = 48, 10, 3
DAY = 86_400
BASE: dict[str, Any] = {
    **{"name": "unirec", "embedding_dim": 16, "layers": 1, "hidden": 16, "experts": 2, "dropout": 0.0, "pairs": []},
    **{"positions": 0, "static": False},
}


def write_log(folder: Path) -> dict[str, Any]:
    """A log of impressions in which items of one last code are clicked often, and never beside the others.

    Half of the requests show one item with the last code 1, which is clicked. The others show three items, and the one
    with the last code 0 is clicked and liked. So half of the clicks have each of the last codes, and the items that are
    passed over share one. Users keep to one group, the first code.
    """
    random = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {name: [] for name in ("user", "item", "time", "click", "like")}
    for user in range(USERS):
        for request in range(REQUESTS):
            both = random.random() < 0.5
            last = [0, 1, 1] if both else [1]
            for rank, code in enumerate(last):
                taken = 8 * (user % GROUPS) + 4 * code + int(random.integers(0, 4))
                click = rank == 0
                values = (user, taken, DAY * request + 60 * user, int(click), int(click and both))
                for name, value in zip(columns, values):
                    columns[name].append(value)
    pq.write_table(pa.table(columns), folder / "log.parquet")
    item = np.arange(8 * GROUPS)
    table = pa.table({"item": item, "code_1": item // 8, "code_2": item % 4, "code_3": item // 4 % 2})
    pq.write_table(table, folder / "items.parquet")
    codes = {name: {"kind": "id", "side": "item"} for name in ("code_1", "code_2", "code_3")}
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "label": "click",
        "features": {"item": {"kind": "id"}, **codes, "like": {"kind": "id", "feedback": True}},
        "histories": {"clicks": {"features": ["item", *codes], "where": {"click": [1]}, "max_length": 8}},
    }
    paths = {"log": str(folder / "log.parquet"), "items": str(folder / "items.parquet")}
    split = {"by": "time", "valid_days": 2, "test_days": 2}
    return {**paths, "schema": schema, "split": split, "folder": str(folder / "prepared")}


def config_of(folder: Path, data: dict[str, Any], name: str, model: dict[str, Any], **fit: Any) -> dict[str, Any]:
    settings = {"tensorboard": "off", "mlflow": "off", "val_checks_per_epoch": 1, "checkpoint_seconds": None}
    fit = {**settings, "epochs": 12, "batch_size": 64, "lr": 0.02, "patience": 0, "runs": str(folder / "runs"), **fit}
    evaluate = {"k": [3], "catalog": "all", "seen": "keep", "n_resamples": 2}
    return {"name": name, "data": data, "model": model, "fit": fit, "evaluate": evaluate}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alignment")


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return write_log(folder)


@pytest.fixture(scope="module")
def base(folder: Path, data: dict[str, Any]) -> Run:
    return train(config_of(folder, data, "base", BASE, check_val_every_n_epoch=12), quiet=True)


def align(folder: Path, data: dict[str, Any], base: Run, name: str, fit: dict[str, Any], **settings: Any) -> Run:
    own = {"init_from": str(base.folder), "epochs": 6, "lr": 0.01, "check_val_every_n_epoch": 6, **fit}
    return train(config_of(folder, data, name, {"name": "alignment", "base": BASE, **settings}, **own), quiet=True)


def code_of(log: Log, value: int) -> int:
    """The token of a value of the last code."""
    encoder = log.fitted.encoders["code_3"]
    assert isinstance(encoder, IdEncoder)
    return FIRST + encoder.keys.values.to_pylist().index(value)


def valid_of(run: Run) -> dict[str, float]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if "pair_accuracy" in line)


def test_preferred_items_rise_against_those_that_were_passed_over(
    folder: Path, data: dict[str, Any], base: Run
) -> None:
    """And next-token quality stays. As many steps of next-token training alone do not do it."""
    control = valid_of(align(folder, data, base, "control", {}, dpo_weight=1e-9))["pair_accuracy"]
    for scope in ("head", "backbone"):
        run = align(folder, data, base, scope, {}, dpo_scope=scope, dpo_weight=3.0, beta=0.5)
        valid = valid_of(run)
        assert valid["pair_accuracy_reference"] < 0.5
        assert valid["pair_accuracy"] > max(control + 0.2, 0.9)
        assert run.metrics["hr@3"].value > 0.9 * base.metrics["hr@3"].value
        model = run.model()
        assert isinstance(model, Alignment)
        log = read_log(run.config)
        again = measure_pairs(
            model.eval(), log, log.rows_of("valid")[log.labels.take(log.rows_of("valid")) > 0], "valid"
        )
        assert again["pair_accuracy"] == valid["pair_accuracy"]


def test_the_best_model_may_be_that_of_the_best_pair_accuracy(folder: Path, data: dict[str, Any], base: Run) -> None:
    fit = {"epochs": 3, "check_val_every_n_epoch": 1, "lr": 0.001, "monitor": "pair_accuracy"}
    run = align(folder, data, base, "monitored", fit, dpo_scope="backbone", dpo_weight=3.0, beta=0.5)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    valid = [line for line in lines if "pair_accuracy" in line]
    assert len(valid) == 3
    best, other = (max(valid, key=lambda line: line[name])["step"] for name in ("pair_accuracy", "ndcg@3"))
    assert run.results["best_step"] == best != other


def test_a_pair_accuracy_that_cannot_be_measured_is_refused(folder: Path, data: dict[str, Any], base: Run) -> None:
    monitor = {"monitor": "pair_accuracy"}
    with pytest.raises(ConfigError, match=r"fit.monitor: pair_accuracy is measured on pairs; set model.dpo_weight"):
        align(folder, data, base, "faults", monitor, dpo_weight=0, rewards={"like": 1.0})
    with pytest.raises(ConfigError, match="fit.monitor: 'pair_acuracy' .* did you mean 'pair_accuracy'"):
        align(folder, data, base, "faults", {"monitor": "pair_acuracy"})
    with pytest.raises(ConfigError, match="fit.monitor: 'pair_accuracy' is no metric of its validations"):
        train(config_of(folder, data, "faults", BASE, **monitor), quiet=True)
    days = f"SELECT * FROM '{data['log']}' WHERE click = 1 OR time < {DAY * (REQUESTS - 4)}"
    with pytest.raises(DataError, match="the valid split.*none with a target above another row"):
        align(folder, {**data, "log": {"query": days}}, base, "faults", monitor)
    assert not (folder / "runs" / "faults").exists()


def test_the_reference_is_the_best_model_of_the_first_run(folder: Path, data: dict[str, Any], base: Run) -> None:
    """Also in a run that goes on from an aligned one."""
    first = align(folder, data, base, "first", {"epochs": 1, "check_val_every_n_epoch": 1})
    again = align(folder, data, first, "again", {"epochs": 1, "check_val_every_n_epoch": 1})
    expected = base.model().state_dict()
    for run in (first, again):
        model = run.model()
        assert isinstance(model, Alignment)
        for name, tensor in model.reference.state_dict().items():
            assert tensor.equal(expected[name])
        assert not all(tensor.equal(expected[name]) for name, tensor in model.base.state_dict().items())


def test_rewards_raise_what_they_count(folder: Path, data: dict[str, Any], base: Run) -> None:
    """Likes are of items with the last code 0, whose probability rises."""
    means = []
    for weight in (1e-6, 0.5):
        settings = {"dpo_weight": 0, "reward_weight": weight, "rewards": {"like": 1.0}}
        run = align(folder, data, base, f"reward-{weight}", {"epochs": 3, "check_val_every_n_epoch": 3}, **settings)
        model, log = run.model().eval(), read_log(run.config)
        assert isinstance(model, Alignment)
        rows = log.rows_of("test")
        batch = next(iter(NextItemLoader(log, rows, 999, "clicks", model.sampling, sequences=False).epoch(0)))
        with torch.no_grad():
            probability_TV = model.target_logits(batch)[-1].softmax(1)
        means.append(probability_TV[:, code_of(log, 0)].mean())
    assert means[1] > means[0] + 0.05


def test_a_log_that_does_not_fit_is_refused(folder: Path, data: dict[str, Any], base: Run) -> None:
    with pytest.raises(ConfigError) as caught:
        align(folder, data, base, "faults", {}, levels=["label", "liked"], rewards={"item": 1.0})
    assert "'liked' is no feature; did you mean 'like'?" in str(caught.value)
    assert "'item' is no feedback" in str(caught.value)
    with pytest.raises(ConfigError, match="fit.init_from: is required; alignment learns from a trained model"):
        align(folder, data, base, "faults", {"init_from": None})
    alone = {**data, "log": {"query": f"SELECT * FROM '{data['log']}' WHERE click = 1"}}
    with pytest.raises(ConfigError, match="'label' is 1 in every training row"):
        align(folder, alone, base, "faults", {})
    spread = {**data, "log": {"query": f"SELECT * REPLACE (time + item AS time) FROM '{data['log']}'"}}
    with pytest.raises(DataError, match="none with a target above another row"):
        align(folder, spread, base, "faults", {})
    assert not (folder / "runs" / "faults").exists()
