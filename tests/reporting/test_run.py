from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.errors import RunError
from longrec.metrics import Interval, ece
from longrec.reporting import read_predictions, read_run
from longrec.reporting.run import read_curves


def make_run(folder: Path, name: str = "din") -> Path:
    """Write a small finished run, in the form of training and evaluation."""
    run = folder / name
    (run / "predictions").mkdir(parents=True)
    rng = np.random.default_rng(len(name))
    score = rng.random(200).astype(np.float32)
    columns = {
        "row": np.arange(200),
        "user": rng.integers(0, 20, 200).astype(np.int32),
        "time": np.arange(200),
        "label": (rng.random(200) < score).astype(np.float32),
        "score": score,
    }
    pq.write_table(pa.table(columns), run / "predictions" / "test.parquet")
    metrics = {"auc": {"value": 0.7, "low": 0.6, "high": 0.8}, "gauc": {"value": None, "low": None, "high": None}}
    results = {
        "model": "din",
        "split": "test",
        "rows": 200,
        "users": 20,
        "positives": 90,
        "metrics": metrics,
        "seconds": 4.5,
    }
    (run / "results.json").write_text(json.dumps(results))
    lines = [
        {"step": 10, "epoch": 0.5, "split": "train", "loss": 0.6, "seconds": 1.0},
        {"step": 20, "epoch": 1.0, "split": "train", "loss": 0.5, "seconds": 2.0},
        {"step": 20, "epoch": 1.0, "split": "valid", "loss": 0.55, "auc": 0.7, "seconds": 2.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text("model: {name: din}\n")
    return run


def test_a_run_is_read(tmp_path):
    run = read_run(make_run(tmp_path))
    assert (run.name, run.model, run.split, run.rows, run.users, run.positives) == ("din", "din", "test", 200, 20, 90)
    assert run.metrics["auc"] == Interval(0.7, 0.6, 0.8)
    assert not run.metrics["gauc"].defined
    assert run.seconds == 4.5
    assert run.curves == {
        ("train", "loss"): [(0.5, 0.6), (1.0, 0.5)],
        ("valid", "loss"): [(1.0, 0.55)],
        ("valid", "auc"): [(1.0, 0.7)],
    }
    assert "name: din" in run.config
    predictions = read_predictions(tmp_path / "din")
    assert run.calibration is not None
    gaps = np.abs(np.subtract(run.calibration.score, run.calibration.rate))
    assert np.average(gaps, weights=run.calibration.count) == pytest.approx(ece(predictions.label, predictions.score))


def test_only_the_results_are_needed(tmp_path):
    run = make_run(tmp_path)
    for name in ("metrics.jsonl", "config.yaml", "predictions/test.parquet"):
        (run / name).unlink()
    view = read_run(run)
    assert (view.curves, view.config, view.calibration) == ({}, "", None)


def test_after_a_resume_the_later_line_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [(10, 0.9), (20, 0.8), (30, 0.7), (20, 0.6)]
    path.write_text("".join(f'{{"step": {s}, "split": "train", "loss": {v}}}\n' for s, v in rows))
    assert read_curves(path) == {("train", "loss"): [(10.0, 0.9), (20.0, 0.6), (30.0, 0.7)]}


def test_faults_are_errors(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"(?s)no results.json.*longrec evaluate"):
        read_run(tmp_path)
    run = make_run(tmp_path)
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"step": 2, "spl')
    with pytest.raises(RunError, match=r"line 2: not JSON"):
        read_run(run)
    (run / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(RunError, match=r"line 1: keys loss; expected step and split"):
        read_run(run)
    (run / "metrics.jsonl").unlink()
    (run / "results.json").write_text('{"model": "din"}')
    with pytest.raises(RunError, match="KeyError: 'metrics'"):
        read_run(run)
    (run / "results.json").write_text("[]")
    with pytest.raises(RunError, match="a JSON list; expected a JSON object"):
        read_run(run)


def test_predictions_that_cannot_be_read(tmp_path):
    with pytest.raises(RunError, match=r"(?s)no such file.*longrec predict"):
        read_predictions(tmp_path)
    path = make_run(tmp_path) / "predictions" / "test.parquet"
    pq.write_table(pa.table({"row": [1], "score": [0.5]}), path)
    with pytest.raises(RunError, match="no column label, time, user"):
        read_predictions(tmp_path / "din")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match="expected a Parquet file"):
        read_predictions(tmp_path / "din")
