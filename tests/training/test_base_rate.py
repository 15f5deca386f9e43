"""Tests of the base rate at which predictions of a new model start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.models.core import registry as models
from longrec.models.core.base import Model
from longrec.models.lr import LR
from longrec.training.base_rate import base_rate, start_at_base_rates
from longrec.training.fit import train
from longrec.training.job import read_job


def test_the_base_rate_counts_observed_labels_and_is_never_0_or_1() -> None:
    assert base_rate(np.array([1, 0, np.nan, 0, 0], np.float32)) == 0.25
    assert base_rate(np.ones(4, np.float32)) == 0.875
    assert base_rate(np.full(3, np.nan, np.float32)) == 0.5
    assert base_rate(np.zeros(0, np.float32)) == 0.5


def test_a_new_model_predicts_the_rate_of_its_training_rows(shop: Path) -> None:
    job = read_job(shop)
    log = Log.open(prepare(job.data, job.schema), job.schema)
    rows = log.rows_of("train")
    model = cast(LR, models.build({"name": "lr"}, log.fields()))
    start_at_base_rates(model, log, rows)
    assert float(model.bias.detach().sigmoid()) == pytest.approx(log.labels.take(rows).mean(), rel=1e-5)


def test_training_starts_there_once(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Sequence[float]] = []
    right = Model.start_at_rates
    monkeypatch.setattr(Model, "start_at_rates", lambda self, rates: (calls.append(rates), right(self, rates)))
    job = {**read_job(shop).to_dict(), "model": {"name": "lr"}}
    run = train(job, ["name=one", f"fit.runs={tmp_path}", "fit.max_steps=4", "fit.checkpoint_steps=2"], quiet=True)
    assert len(calls) == 1
    (run.folder / "results.json").unlink()
    train(resume=run.folder, quiet=True)
    assert len(calls) == 1


def test_a_model_without_an_output_bias_warns(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LR, "output_biases", lambda self: ())
    job = {**read_job(shop).to_dict(), "model": {"name": "lr"}}
    run = train(job, ["name=none", f"fit.runs={tmp_path}", "fit.max_steps=2"], quiet=True)
    assert any("lr defines no output_biases" in warning for warning in run.results["warnings"])
