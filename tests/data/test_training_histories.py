"""Training histories: all events of the training window, each once, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from torch import Tensor

from longrec.data.log import Log
from longrec.data.splits import SPLITS
from longrec.data.training_histories import iterate_training_histories

SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "label_delay": 30,
    "features": {"item": {"kind": "id"}, "click": {"kind": "id", "feedback": True}},
    "histories": {
        "all": {"features": ["item", "click"], "max_length": 2},
        "clicks": {"features": ["item"], "where": {"click": 1}, "max_length": 2},
        "days": {"features": ["item"], "where": {"day": {"at_least": 3}}, "max_length": 2},
    },
}
N = 600


def table() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "user": random.integers(0, 25, N),
            "item": random.integers(0, 9, N),
            "t": np.arange(N),
            "day": np.arange(N) % 7,
            "click": random.integers(0, 2, N),
        }
    )


def collect_histories(log: Log, most: int) -> dict[str, list[list[int]]]:
    """For each history the ids of every user's events."""
    histories: dict[str, list[list[int]]] = {name: [] for name in log.schema.histories}
    for piece in iterate_training_histories(log, most):
        for name, one in piece.items():
            ids, bounds = one.columns["item"], one.offsets.tolist()
            assert isinstance(ids, Tensor)
            histories[name] += [ids[start:stop].tolist() for start, stop in zip(bounds, bounds[1:])]
    return histories


@pytest.mark.parametrize("split", [{"by": "time", "valid": 0.1, "test": 0.2}, {"by": "user", "test": 0.3}], ids=str)
@pytest.mark.parametrize("most", [10_000, 40, 1])
def test_every_event_of_the_window_once_whatever_the_pieces(
    prepared: Callable[..., Log], split: dict[str, Any], most: int
) -> None:
    log = prepared(table(), SCHEMA, split=split)
    column, clicked = log.events.columns["item"], log.events.columns["where.clicks"]
    item = log.items.columns["item"].take(column)
    window = log.training_window.end("train", log.user(np.arange(N)))
    line = int(window[0]) if len(window) == 1 else 2**62
    end = {"all": line, "days": line, "clicks": line - 30}
    passes = {"all": np.ones(N, bool), "clicks": clicked, "days": log.events.columns["where.days"]}
    expected: dict[str, list[list[int]]] = {}
    for name in SCHEMA["histories"]:
        expected[name] = []
        for start, stop in zip(log.events.offsets, log.events.offsets[1:]):
            rows = [
                row
                for row in range(start, stop)
                if log.splits[row] == SPLITS["train"] and passes[name][row] and log.events.times[row] < end[name]
            ]
            expected[name].append([int(item[row]) for row in rows])
    assert collect_histories(log, most) == expected
    assert 0 < sum(map(len, expected["clicks"])) < sum(map(len, expected["all"])) < N


def test_feedback_is_what_was_available_when_the_window_ended(prepared: Callable[..., Log]) -> None:
    log = prepared(table(), SCHEMA, split={"by": "time", "valid": 0.1, "test": 0.2})
    (piece,) = iterate_training_histories(log)
    (line,) = log.training_window.train
    rows = np.flatnonzero(log.splits == SPLITS["train"])
    late = log.events.times.take(rows) + 30 >= line
    clicks = piece["all"].columns["click"]
    assert isinstance(clicks, Tensor)
    assert late.any()
    assert ((clicks.numpy() == log.fitted.get_not_yet_id("click")) == late).all()


def test_rows_with_histories_of_their_own_bring_them(prepared: Callable[..., Log]) -> None:
    rows = pa.table(
        {
            "user": [0] * 6,
            "item": [1, 2, 3, 1, 2, 3],
            "click": [0, 1] * 3,
            "past": ["1|2|3", "3", "", "1|2", "2|2", "3|1"],
            "part": ["train", "train", "train", "train", "valid", "test"],
        }
    )
    schema = {
        "user": "user",
        "item": "item",
        "label": "click",
        "features": {"item": {"kind": "id"}},
        "histories": {"h": {"features": ["item"], "columns": {"item": "past"}, "separator": "|", "max_length": 2}},
    }
    log = prepared(rows, schema, split={"by": "column", "column": "part"})
    (piece,) = iterate_training_histories(log)
    assert piece["h"].offsets.tolist() == [0, 2, 3, 3, 5]
    ids = piece["h"].columns["item"]
    assert isinstance(ids, Tensor)
    assert (ids - 1).tolist() == [2, 3, 3, 1, 2]
