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

from longrec.errors import ConfigError, DataError
from longrec.models.alignment import Alignment
from longrec.training.finished_run import Run, open_run, read_log
from longrec.training.fit import train
from longrec.training.pair_accuracy import measure_pairs

USERS, REQUESTS, GROUPS = 60, 12, 3
DAY = 86_400
BASE: dict[str, Any] = {
    **{"name": "unirec", "embedding_dim": 16, "layers": 1, "hidden": 16, "experts": 2, "dropout": 0.0, "pairs": []},
    **{"positions": 0, "static": False},
}


def write_log(folder: Path) -> dict[str, Any]:
    """A log of impressions in which items of one last code are clicked often, and never beside the others.

    Three of four requests show items with the last code 1 alone, one of which is clicked. The others show items of both
    last codes, and one with the last code 0 is clicked. So the items that are passed over share a code, and it is the
    code that most clicks have. Users keep to one group, the first code.
    """
    random = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {name: [] for name in ("user", "item", "time", "click", "like")}
    for user in range(USERS):
        for request in range(REQUESTS):
            both = request % 4 == user % 4
            last = [0, 1, 1] if both else [1, 1, 1]
            items = [8 * (user % GROUPS) + 4 * code + random.integers(0, 4) for code in last]
            for place, item in enumerate(items):
                click = place == 0
                values = (user, item, DAY * request + 60 * user, int(click), int(click and both))
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


def valid_of(run: Run) -> dict[str, float]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, float] = [line for line in lines if "pair_accuracy" in line][-1]
    return last


@pytest.mark.parametrize("scope", ["head", "backbone"])
def test_preferred_items_rise_against_those_that_were_passed_over(
    folder: Path, data: dict[str, Any], base: Run, scope: str
) -> None:
    run = align(folder, data, base, scope, {}, dpo_scope=scope, dpo_weight=3.0, beta=0.5, losers=2)
    valid = valid_of(run)
    print(scope, valid, base.metrics, run.metrics)
    assert valid["pair_accuracy"] > valid["pair_accuracy_reference"] + 0.1
    model = run.model()
    assert isinstance(model, Alignment)
    assert measure_pairs(model.eval(), read_log(run.config), "valid")["pair_accuracy"] == valid["pair_accuracy"]
    assert run.metrics["hr@3"].value > 0.8 * base.metrics["hr@3"].value


def test_the_reference_is_the_best_model_of_the_run(folder: Path, data: dict[str, Any], base: Run) -> None:
    """Also of a run that goes on from an aligned one, and of one that was interrupted."""
    first = align(folder, data, base, "first", {"epochs": 1, "check_val_every_n_epoch": 1})
    again = align(folder, data, first, "again", {"epochs": 1, "check_val_every_n_epoch": 1})
    expected = base.model().state_dict()
    for run in (first, again):
        model = run.model()
        assert isinstance(model, Alignment)
        for name, tensor in model.reference.state_dict().items():
            assert tensor.equal(expected[name])
        assert not all(tensor.equal(expected[name]) for name, tensor in model.base.state_dict().items())
    open_run(again.folder)


def test_rewards_raise_what_they_count(folder: Path, data: dict[str, Any], base: Run) -> None:
    """Likes are of items with the last code 0, which training without rewards takes for rarer than it then is."""
    runs = [
        align(folder, data, base, f"reward-{weight}", {}, dpo_weight=0, reward_weight=weight, rewards={"like": 1.0})
        for weight in (1e-6, 0.5)
    ]
    log, shares = read_log(runs[0].config), []
    for run in runs:
        model = run.model().eval()
        assert isinstance(model, Alignment)
        rows = log.rows_of("test")
        from longrec.data.next_item_loader import NextItemLoader

        batch = next(iter(NextItemLoader(log, rows, 999, "clicks", model.sampling, sequences=False).epoch(0)))
        with torch.no_grad():
            last = model.target_logits(batch)[-1].softmax(1)
        column = model.path[-1].name
        code_0 = int(batch.candidates[column].max())  # type: ignore[union-attr,arg-type]
        shares.append(last[:, [2, code_0]].mean(0).tolist())
    print(shares)


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
    with pytest.raises(DataError, match="none with rows of two levels"):
        align(folder, spread, base, "faults", {})
    assert not (folder / "runs" / "faults").exists()
