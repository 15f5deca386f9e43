"""Tests of negative down-sampling: dropped rows, and scores that are probabilities of all rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from longrec import commands, exports, metrics
from longrec.data.negative_sampling import sample_negatives
from longrec.errors import ConfigError, DataError
from longrec.features.batch import Batch
from longrec.models.core import registry as models
from longrec.models.core.losses import bce_loss
from longrec.models.lr import LR
from longrec.training.compress import compress
from longrec.training.evaluate import predict
from longrec.training.finished_run import Run, read_log
from longrec.training.fit import train
from longrec.training.job import read_job
from longrec.training.loaders import build_loader
from longrec.training.scoring import score
from longrec.training.token_source import open_source

N = 24_000


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """24,000 impressions, 2 % clicks, half of them on a tenth of the items."""
    folder, random = tmp_path_factory.mktemp("rare"), np.random.default_rng(1)
    user, item = random.integers(0, 300, N), random.integers(0, 50, N)
    click = (random.random(N) < np.where(item < 5, 0.10, 0.011)).astype(int)
    columns = {"u": user, "i": item, "t": 1_700_000_000 + np.arange(N) * 10, "y": click, "w": 1.0 + (item % 3)}
    pq.write_table(pa.table({**columns, "bought": click}), folder / "log.parquet")
    features = {"u": {"kind": "id"}, "i": {"kind": "id"}, "bought": {"kind": "id", "feedback": True}}
    schema = {"user": "u", "item": "i", "time": "t", "label": "y", "features": features}
    schema["histories"] = {"h": {"features": ["i"], "max_length": 5}}
    return {
        "data": {"log": str(folder / "log.parquet"), "folder": str(folder / "prepared"), "schema": schema},
        "model": "lr",
        "fit": {"lr": 0.01, "monitor": "log_loss", "runs": str(folder / "runs"), "tensorboard": "off", "mlflow": "off"},
        "evaluate": {"n_resamples": 50},
    }


@pytest.fixture(scope="module")
def full(job: dict[str, Any]) -> Run:
    return train(job, ["name=full"], quiet=True)


@pytest.fixture(scope="module")
def sampled(job: dict[str, Any]) -> Run:
    return train(job, ["name=sampled", "fit.negative_rate=0.1"], quiet=True)


def test_every_positive_is_kept_and_a_row_does_not_depend_on_others() -> None:
    rows = np.arange(50_000)
    label = (rows % 100 == 0).astype(np.float32)
    kept = sample_negatives(rows, label, 0.1, 7)
    assert np.isin(rows[label == 1], kept).all()
    share = (len(kept) - label.sum()) / (len(rows) - label.sum())
    assert abs(share - 0.1) < 5 * math.sqrt(0.1 * 0.9 / len(rows))
    odd = rows[1::2]
    assert np.array_equal(sample_negatives(odd, label[1::2], 0.1, 7), np.intersect1d(odd, kept))
    assert not np.array_equal(sample_negatives(rows, label, 0.1, 8), kept)
    assert sample_negatives(rows, label, 1.0, 7) is rows


def test_scores_are_probabilities_of_all_rows_and_order_them_as_well(full: Run, sampled: Run) -> None:
    assert len(sampled.log().rows_of("test")) == len(sampled.predictions()) == len(full.predictions())
    assert sampled.results["steps"] < full.results["steps"] / 4
    for run in (full, sampled):
        assert 0.8 < run.metrics["pcoc"].value < 1.25
        assert run.metrics["normalized_entropy"].value < 1
    assert sampled.metrics["auc"].value > full.metrics["auc"].low
    valid = [line for line in metrics_lines(sampled) if line["split"] == "valid"]
    assert all(0.7 < line["pcoc"] < 1.4 for line in valid), "validations too are of all rows"
    predict(sampled, "train")
    table = sampled.predictions("train")
    assert 0.9 < metrics.pcoc(table["label"].to_numpy(), table["score"].to_numpy()) < 1.1


def metrics_lines(run: Run) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_server_scores_as_the_run_does(sampled: Run, tmp_path: Path) -> None:
    manifest = commands.export(sampled, tmp_path / "bundle")
    assert manifest.parity["golden"]["worst"] <= 1e-5, "online as offline"
    log, table = sampled.log(), sampled.predictions()
    for index in (0, 700, 1_900):
        golden = exports.build_offline_request(log, sampled.model(), table["row"][index].as_py(), [])
        assert golden.scores[0] == pytest.approx(table["score"][index].as_py(), abs=1e-6)


def test_a_warm_start_moves_between_rates(job: dict[str, Any], sampled: Run, tmp_path: Path) -> None:
    raw = load_file(sampled.folder / "checkpoints" / "last" / "weights.safetensors")["bias"]
    overrides = [
        f"fit.init_from={sampled.folder}",
        f"fit.runs={tmp_path}",
        "fit.lr=1e-9",
        "fit.max_steps=1",
        "fit.l2=0",
    ]
    for name, rate in (("same", 0.1), ("more", 0.5), ("all", 1.0)):
        run = train(job, [*overrides, f"name={name}", f"fit.negative_rate={rate}"], quiet=True)
        best = cast(LR, run.model()).bias.detach()
        torch.testing.assert_close(best, raw + math.log(0.1), rtol=0, atol=1e-4, msg=name)


def test_rows_of_a_user_are_still_looked_back_at(job: dict[str, Any], tmp_path: Path) -> None:
    config = {**job, "model": {"name": "iat", "base": {"name": "lr"}, "width": 8}}
    read = read_job(config, ["fit.negative_rate=0.2"])
    log = read_log(read)
    rows = log.rows_of("train")
    model = models.build(read.model, log.fields())
    every, some = (build_loader(model, log, rows, 2_000, negative_rate=rate) for rate in (1.0, 0.2))
    assert len(every) == len(some)
    met = []
    for one, other in zip(every.epoch(0), some.epoch(0)):
        assert torch.equal(one.rows, other.rows), "the same rows stand in the same batches"
        assert one.loss_mask is None
        met.append(other.rows[other.loss_mask].numpy())
    kept = np.sort(np.concatenate(met))
    assert np.array_equal(kept, sample_negatives(rows, log.labels.take(rows), 0.2, 0))
    assert np.array_equal(kept, some.loss_rows)
    report = compress(config | {"fit": {**job["fit"], "negative_rate": 0.2}}, tmp_path / "t", ["blocks=2"], quiet=True)
    source = open_source(tmp_path / "t" / "source")
    assert report.tokens > 0
    scores = score(source.model, source.log, rows, 4_096)
    assert 0.5 < scores.mean() / log.labels.take(rows).mean() < 2, "a source that is exported scores all rows"


def test_a_batch_in_which_no_row_counts_has_no_loss() -> None:
    batch = Batch.single(
        3, {}, label=torch.tensor([0.0, 1.0, float("nan")]), loss_mask=torch.zeros(3, dtype=torch.bool)
    )
    logit = torch.zeros(3, requires_grad=True)
    loss = bce_loss(logit, batch)
    loss.backward()
    assert (loss.item(), logit.grad.abs().sum().item()) == (0.0, 0.0)


def test_what_no_shift_corrects_is_refused_before_training(job: dict[str, Any], tmp_path: Path) -> None:
    overrides = [f"fit.runs={tmp_path}", "fit.negative_rate=0.1"]
    several = {**job, "model": {"name": "shared_bottom", "tasks": {"bought": 1.0}}}
    with pytest.raises(ConfigError, match="shared_bottom learns bought beside the label; a row dropped"):
        train(several, overrides, quiet=True)
    with pytest.raises(ConfigError, match="the score of esmm has no single output bias"):
        train({**job, "model": "esmm"}, overrides, quiet=True)
    with pytest.raises(DataError, match=r"fit.negative_rate: 1e-06: none of 18,\d+ negative training rows is kept"):
        train(job, [overrides[0], "fit.negative_rate=1e-6"], quiet=True)
    with pytest.raises(ConfigError, match="fit.negative_rate"):
        train(job, [overrides[0], "fit.negative_rate=0"], quiet=True)
    assert not list(tmp_path.iterdir())


def test_weights_and_sampling_go_together(job: dict[str, Any], sampled: Run) -> None:
    overrides = ["name=both", "fit.negative_rate=0.1", "fit.sample_weight=w", "evaluate.sample_weight=w"]
    both = train(job, overrides, quiet=True)
    assert 0.8 < both.metrics["pcoc"].value < 1.25
    assert both.metrics["auc"].value > 0.5
