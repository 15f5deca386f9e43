"""Tests of sample weights: prepared with the rows, and used only in losses and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from longrec import metrics
from longrec.data.digests import log_digest
from longrec.data.gather import gather
from longrec.data.prepare import prepare
from longrec.errors import DataError, RunError
from longrec.features.batch import Batch
from longrec.models import iat
from longrec.models.core import losses
from longrec.reporting import comparison_table, results_table
from longrec.training.base_rate import base_rate
from longrec.training.compress import compress
from longrec.training.evaluate import compare, evaluate
from longrec.training.finished_run import read_log
from longrec.training.fit import train
from longrec.training.job import read_job

N = 1_200


def job(folder: Path, **columns: Any) -> dict[str, Any]:
    """Write a log in which rows of weight 0 have inverted labels."""
    random = np.random.default_rng(3)
    item, flip = random.integers(0, 6, N), random.random(N) < 0.75
    y = (random.random(N) < np.where(item < 3, 0.8, 0.2)).astype(int)
    table = {
        "u": random.integers(0, 40, N),
        "i": item,
        "t": 1_700_000_000 + np.arange(N) * 60,
        "y": np.where(flip, 1 - y, y),
        "w": np.where(flip, 0.0, 1.0 + item),
        **columns,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / "log.parquet")
    features = {"u": {"kind": "id"}, "i": {"kind": "id"}}
    schema = {"user": "u", "item": "i", "time": "t", "label": "y", "features": features}
    schema["histories"] = {"h": {"features": ["i"], "max_length": 5}}
    return {
        "data": {"log": str(folder / "log.parquet"), "folder": str(folder / "prepared"), "schema": schema},
        "model": "lr",
        "fit": {"epochs": 2, "batch_size": 100, "lr": 0.05, "l2": 0.0, "runs": str(folder / "runs"),
                "tensorboard": "off", "mlflow": "off"},
        "evaluate": {"n_resamples": 5},
    }  # fmt: skip


def test_weights_decide_what_is_learned_and_how_it_is_measured(tmp_path: Path) -> None:
    config = job(tmp_path)
    both = ["fit.sample_weight=w", "evaluate.sample_weight=w"]
    plain, weighed = train(config, ["name=plain"], quiet=True), train(config, ["name=weighed", *both], quiet=True)
    assert plain.metrics["auc"].value > 0.5, "most rows are turned round, and measured so"
    table = weighed.predictions()
    label, score, weight = (table[name].to_numpy() for name in ("label", "score", "weight"))
    assert metrics.auc(label, score) < 0.45
    for key in ("auc", "log_loss", "pcoc", "normalized_entropy"):
        assert weighed.metrics[key].value == pytest.approx(getattr(metrics, key)(label, score, weight)), key
    assert weighed.metrics["auc"].value > 0.75
    valid = [json.loads(line) for line in (weighed.folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["auc"] for line in valid if line["split"] == "valid") > 0.7
    assert weighed.results["sample_weight"] == "w"
    assert "weighted by w" in results_table("weighed", weighed.results).splitlines()[0]
    assert evaluate(weighed).metrics == weighed.metrics
    with pytest.raises(RunError, match="sample weights"):
        compare([plain, weighed])
    own = compare([weighed, train(config, ["name=again", *both], quiet=True)])
    assert comparison_table(own.to_dict()).splitlines()[0].endswith("weighted by w")
    assert own.runs["weighed"]["auc"].value == pytest.approx(weighed.metrics["auc"].value)


def test_weights_reach_batches_in_the_order_of_the_log_and_the_base_rate(tmp_path: Path) -> None:
    log = read_log(read_job(job(tmp_path), ["fit.sample_weight=w"]))
    rows = np.array([5, 0, 9])
    batch = gather(log, rows)
    assert batch.weight is not None
    source = pq.read_table(tmp_path / "log.parquet").sort_by([("u", "ascending"), ("t", "ascending")])
    np.testing.assert_allclose(batch.weight.numpy(), source["w"].to_numpy()[rows])
    assert gather(read_log(read_job(job(tmp_path))), rows).weight is None
    label, weight = np.array([1, 0, np.nan, 0], np.float32), np.array([1, 3, 9, 0], np.float32)
    assert base_rate(label, weight) == 0.25


def test_a_log_without_weights_keeps_its_name_and_one_with_them_has_its_own(tmp_path: Path) -> None:
    one, two = read_job(job(tmp_path)), read_job(job(tmp_path), ["evaluate.sample_weight=w"])
    assert two.data.weights == ("w",)
    assert log_digest(one.data, one.schema, "x") != log_digest(two.data, two.schema, "x")
    assert read_job(two.to_dict()).data.weights == ("w",)
    kept = read_job(job(tmp_path), ["data.weights=[w]"])
    assert prepare(kept.data, kept.schema) == prepare(two.data, two.schema)


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (-0.5, "-0.5 in row 8, as the weight of a sample"),
        (None, "null in row 8"),
        (float("nan"), "nan in row 8"),
        (float("inf"), "inf in row 8"),
        ("heavy", "text, first 'heavy'"),
    ],
)
def test_a_weight_that_is_none_is_refused_with_its_row(odd: Any, text: str, tmp_path: Path) -> None:
    values: list[Any] = ["1"] * N if isinstance(odd, str) else [1.0] * N
    values[7] = odd
    config = job(tmp_path, w=pa.array(values))
    with pytest.raises(DataError) as raised:
        train(config, ["fit.sample_weight=w"], quiet=True)
    assert text in str(raised.value)
    assert not list((tmp_path / "runs").glob("*"))


def test_weights_that_leave_a_class_without_any_are_refused_before_training(tmp_path: Path) -> None:
    config = job(tmp_path, w=np.zeros(N))
    with pytest.raises(DataError, match=r"fit.sample_weight: the train split: a weight of 0 on every positive row"):
        train(config, ["fit.sample_weight=w"], quiet=True)
    late = job(tmp_path / "late", w=np.where(np.arange(N) < 1_070, 1.0, 0.0))
    with pytest.raises(DataError, match=r"evaluate.sample_weight: the test split"):
        train(late, ["evaluate.sample_weight=w"], quiet=True)
    with pytest.raises(DataError, match="no column 'weihgt'|weihgt"):
        train(config, ["fit.sample_weight=weihgt"], quiet=True)


def test_a_source_in_user_order_learns_by_weight_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    right = losses.bce_loss

    def noted(logit_B: Tensor, batch: Batch) -> Tensor:
        seen.append(batch.weight is not None)
        return right(logit_B, batch)

    monkeypatch.setattr(iat, "bce_loss", noted)
    config = {**job(tmp_path), "model": {"name": "iat", "base": {"name": "lr"}, "width": 8}}
    config["fit"]["sample_weight"] = "w"
    for mode in ("blocks", "stream"):
        compress(config, tmp_path / mode, ["blocks=3", f"mode={mode}"], quiet=True)
        assert seen
        assert all(seen)
        seen.clear()
