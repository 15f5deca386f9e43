"""Regression test of numbers: twenty steps of the reference models on a fixed log, against ``golden.json``.

After a change that is meant to move numbers, run ``LONGREC_GOLDEN=write make golden`` and add them to the changelog
under "Numbers that moved". Losses are compared to one part in ten thousand, without dropout, as processors round and
draw differently. Validation runs once, after the last step: of two steps that are as good, rounding would select one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.training import loop
from longrec.training.finished_run import Run
from longrec.training.fit import train

FILE = Path(__file__).with_name("golden.json")
MODELS: dict[str, dict[str, Any]] = {
    "lr": {"name": "lr"},
    "deepfm": {"name": "deepfm"},
    "pooling": {"name": "pooling"},
    "din": {"name": "din"},
    "din dice": {"name": "din", "activation": "dice", "softmax": True},
}
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "at", "unit": "s"},
    "label": "click",
    "features": {
        "user": {"kind": "id", "dim": 8},
        "item": {"kind": "id", "dim": 8},
        "price": {"kind": "numeric", "scale": "log", "dim": 8},
        "hour": {"kind": "calendar", "component": "hour", "dim": 8},
        "clicked": {"kind": "bucketized", "column": "click", "edges": [0.5], "feedback": True, "dim": 8},
    },
    "histories": {"seen": {"features": ["item", "clicked", "time_gap"], "max_length": 8}},
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("golden"), np.random.default_rng(7)
    rows = 3_000
    user, item = random.integers(0, 40, rows), random.integers(0, 90, rows)
    columns = {
        "user": user,
        "item": item,
        "at": 1_700_000_000 + np.cumsum(random.integers(1, 900, rows)),
        "price": np.round(random.gamma(2.0, 20.0, rows), 2),
        "click": (random.random(rows) < np.where(user % 3 == item % 3, 0.7, 0.2)).astype(np.int8),
    }
    pq.write_table(pa.table(columns), folder / "log.parquet")
    return folder


def run(log: Path, model: str, name: str, runs: Path) -> Run:
    job = {
        "name": name,
        "data": {"log": str(log / "log.parquet"), "folder": str(log / "prepared"), "schema": SCHEMA},
        "model": MODELS[model],
        "fit": {"max_steps": 20, "batch_size": 128, "lr": 5e-3, "log_steps": 5,
                "val_checks_per_epoch": 1, "check_val_every_n_epoch": 2,
                "runs": str(runs), "tensorboard": "off", "mlflow": "off"},
        "evaluate": {"n_resamples": 2},
    }  # fmt: skip
    return train(job, quiet=True)


def numbers(done: Run) -> dict[str, float]:
    """Return the losses of steps 5 to 20, and smooth test metrics (AUC moves in jumps)."""
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    values = {f"loss at {line['step']}": line["loss"] for line in lines if line["split"] == "train"}
    values |= {f"test {key}": done.metrics[key].value for key in ("log_loss", "pcoc")}
    return {key: round(value, 7) for key, value in values.items()}


@pytest.mark.parametrize("model", MODELS)
def test_no_number_moved(model: str, log: Path, tmp_path: Path) -> None:
    actual = numbers(run(log, model, "straight", tmp_path))
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("LONGREC_GOLDEN") == "write":
        FILE.write_text(json.dumps({**golden, model: actual}, indent=1) + "\n")
        return
    assert actual == pytest.approx(golden[model], rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_ten_steps_and_ten_more_are_twenty(
    model: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(log, model, "whole", tmp_path)
    with monkeypatch.context() as patch:
        real = loop.update
        patch.setattr(loop.Loop, "_checkpoint_due", lambda self: self.state.step == 10)
        patch.setattr(loop, "update", lambda *arguments: (crash_at(arguments[3]), real(*arguments))[1])
        with pytest.raises(KeyError):
            run(log, model, "halved", tmp_path)
    halved = train(resume=tmp_path / "halved", quiet=True)
    assert halved.predictions().equals(whole.predictions())
    for name in ("weights", "optimizer"):
        files = [done.folder / "checkpoints" / "last" / f"{name}.safetensors" for done in (whole, halved)]
        assert files[0].read_bytes() == files[1].read_bytes()


def crash_at(step: int) -> None:
    if step == 10:
        raise KeyError("planted")
