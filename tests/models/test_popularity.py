"""Popularity against sums over events by hand: counts, their decay, and the times of a log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.data.training_histories import iterate_training_histories
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch, Layout
from longrec.features.fields import Field, Fields
from longrec.features.schema import Schema
from longrec.models.core.registry import build
from longrec.models.popularity import Popularity

V = 9
FIELDS = Fields((Field("item", "id", V, side="item"),), {"seen": (Field("item", "id", V, side="item"),)})
CATALOG = {"item": torch.arange(V, dtype=torch.int32)}
EVENTS = [([2, 3, 2], [0.0, 50.0, 70.0]), ([5], [400.0]), ([], []), ([2, 0, 1, 5], [10.0, 20.0, 30.0, 100.0])]


def chunk_of(rows: list[tuple[list[int], list[float]]], timed: bool = True) -> dict[str, HistoryBatch]:
    ids = torch.tensor([item for items, _ in rows for item in items], dtype=torch.int32)
    offsets = torch.tensor([0, *(len(items) for items, _ in rows)]).cumsum(0)
    seconds = np.array([time for _, times in rows for time in times]) if timed else None
    return {"seen": HistoryBatch({"item": ids}, offsets, seconds=seconds)}


def fitted(half_life: str | None = None, timed: bool = True, **settings: Any) -> Popularity:
    model = build({"name": "popularity", "half_life": half_life, **settings}, FIELDS)
    assert isinstance(model, Popularity)
    model.fit_statistics([chunk_of(EVENTS[:1], timed), chunk_of(EVENTS[1:3], timed), chunk_of(EVENTS[3:], timed)])
    return model


def score(model: Popularity) -> list[float]:
    batch = Batch(Layout.catalog(2, 0), {}, {}, chunk_of(EVENTS[:2]))
    scores = model.score_catalog(batch, CATALOG)
    assert torch.equal(scores[0], scores[1])
    return scores[0].tolist()


@pytest.mark.parametrize("half_life", [None, "0", "0s"])
def test_without_a_half_life_events_are_counted(half_life: str | None) -> None:
    assert score(fitted(half_life)) == [0, 0, 3, 1, 0, 2, 0, 0, 0]
    assert score(fitted(half_life, timed=False)) == [0, 0, 3, 1, 0, 2, 0, 0, 0]


def test_the_weight_of_an_event_halves_in_every_half_life() -> None:
    expected = np.zeros(V)
    for items, times in EVENTS:
        for item, time in zip(items, times):
            expected[item] += 0.5 ** ((400 - time) / 100) if item > 1 else 0
    np.testing.assert_allclose(score(fitted("100s")), expected, rtol=1e-6)
    assert np.argmax(score(fitted("10s"))) == 5  # the newest event, of an item with fewer of them


def test_a_half_life_needs_times() -> None:
    with pytest.raises(ConfigError, match="model.half_life: 1d, and events of the log have no times"):
        fitted("1d", timed=False)
    with pytest.raises(ConfigError, match="half_life"):
        fitted("soon")


@pytest.mark.parametrize("unit", ["s", "step"])
def test_events_of_a_log_have_their_times(unit: str, tmp_path: Path) -> None:
    start = 1_700_000_000 if unit == "s" else 0
    times = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    columns = {"user": [1, 2] * 5, "item": [7, 8, 9, 7, 8, 9, 7, 8, 9, 7], "at": [start + time for time in times]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    schema = Schema.model_validate({
        "user": "user", "item": "item", "time": {"column": "at", "unit": unit}, "features": {"item": "id"},
        "histories": {"seen": {"features": ["item"], "max_length": 3}},
    })  # fmt: skip
    split = {"by": "time", "valid": 0.1, "test": 0.1}
    config = DataConfig.model_validate({"log": str(tmp_path / "log.parquet"), "split": split, "folder": str(tmp_path)})
    log = Log.open(prepare(config, schema), schema)
    model = build({"name": "popularity", "half_life": "200s"}, log.fields())
    model.fit_statistics(iterate_training_histories(log))
    ids = log.items.columns["item"]
    expected = np.zeros(len(model.popularity))  # type: ignore[arg-type]
    for item, time in list(zip(columns["item"], times))[:8]:  # those of train
        expected[ids[log.items.keys.find(item, "item") + 1]] += 0.5 ** ((700 - time) / 200)
    np.testing.assert_allclose(model.popularity.numpy(), expected, rtol=1e-6)  # type: ignore[operator]
