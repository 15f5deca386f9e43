from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from longrec.data.entity_batches import build_item_batch, build_user_batch
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.errors import DataError
from longrec.features.batch import Jagged

START = 1_600_000_000
N = 300
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "s"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "age": {"kind": "numeric", "side": "user"},
        "item": {"kind": "id"},
        "tags": {"kind": "multi_id", "side": "item"},
        "page": {"kind": "id"},
        "price": {"kind": "numeric", "missing": 3.0},
        "hour": {"kind": "calendar"},
        "click": {"kind": "id", "feedback": True, "available_after": "30s"},
    },
    "histories": {
        "all": {"features": ["item", "tags", "click", "time_gap"], "max_length": 4},
        "found": {"features": ["item"], "where": {"page": "find"}, "max_length": 3},
    },
}


@pytest.fixture(scope="module")
def log(prepared: Callable[..., Log]) -> Log:
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "user": random.integers(0, 8, N),
            "item": random.integers(0, 9, N),
            "t": START + np.sort(random.integers(0, 2_000, N)) * 10,
            "click": random.integers(0, 2, N),
            "page": random.choice(["home", "find"], N),
            "price": random.random(N),
        }
    )
    users = pa.table({"user": np.arange(8), "age": random.random(8)})
    tags = [random.choice(["a", "b", "c"], size, replace=False).tolist() for size in random.integers(0, 3, 9)]
    return prepared(table, SCHEMA, users=users, items=pa.table({"item": np.arange(9), "tags": tags}))


def same(one: Any, other: Any) -> None:
    if isinstance(one, Jagged):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.offsets, other.offsets)
    else:
        assert torch.equal(one, other)


def test_6_a_user_stands_as_the_user_of_an_impression_at_that_timestamp(log: Log) -> None:
    """The cut at the timestamp: the same code, the same positions, ties left out."""
    for row in np.random.default_rng(1).choice(len(log), 60, replace=False):
        expected = gather(log, np.array([row]))
        batch = build_user_batch(log, log.user(np.array([row])), int(log.timestamps[row]))
        for name in ("user", "age", "hour"):
            same(batch.features[name], expected.features[name])
        for name, history in expected.histories.items():
            assert torch.equal(batch.histories[name].offsets, history.offsets)
            for column, values in history.columns.items():
                same(batch.histories[name].columns[column], values)


def test_6_nothing_of_a_user_comes_from_the_timestamp_or_later(log: Log) -> None:
    users, timestamp = np.arange(len(log.users)), int(np.median(log.events.times))
    before = log.events.times < timestamp
    batch = build_user_batch(log, users, timestamp)
    for user in users:
        own = np.flatnonzero(before & (log.user(np.arange(len(log))) == user))
        offsets = batch.histories["all"].offsets
        items = batch.histories["all"].columns["item"][int(offsets[user]) : int(offsets[user + 1])]
        expected = log.items.columns["item"].take(log.events.columns["item"][own[-4:]])
        assert items.tolist() == expected.tolist()
    late = build_user_batch(log, users, int(log.events.times.min()))
    assert int(late.histories["all"].offsets[-1]) == 0


def test_what_belongs_to_others_reads_as_missing(log: Log) -> None:
    users, items = (
        build_user_batch(log, np.arange(3), START * 1_000),
        build_item_batch(log, np.arange(1, 10), START * 1_000),
    )
    assert users.features["item"].tolist() == [0] * 3
    assert users.features["page"].tolist() == [0] * 3
    assert users.features["price"].tolist() == [3.0] * 3
    assert users.features["tags"].offsets.tolist() == [0] * 4
    assert items.features["user"].tolist() == [0] * 9
    same(items.features["tags"], gather(log, all_items(log)).features["tags"])
    assert items.features["item"].tolist() == log.items.columns["item"][1:].tolist()
    assert all(int(history.offsets[-1]) == 0 for history in items.histories.values())
    assert items.histories["all"].columns["tags"].offsets.tolist() == [0]


def all_items(log: Log) -> np.ndarray:
    """A row of each item, in the order of the item table."""
    return np.array([int(np.flatnonzero(log.events.columns["item"] == item)[0]) for item in range(1, 10)])


def test_a_log_of_joined_rows_has_no_histories_at_a_timestamp(prepared: Callable[..., Log]) -> None:
    table = pa.table({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "t": [1, 2, 3, 4], "click": [0, 1, 0, 1],
                      "past": [[1], [1], [2], [2]], "part": ["train"] * 4})  # fmt: skip
    schema = {
        "user": "user", "item": "item", "time": "t", "label": "click",
        "features": {"item": {"kind": "id"}},
        "histories": {"past": {"features": ["item"], "columns": {"item": "past"}}},
    }  # fmt: skip
    joined = prepared(table, schema, split={"by": "column", "column": "part"})
    with pytest.raises(DataError, match="histories that are columns of the log"):
        build_user_batch(joined, np.array([1]), 5)
