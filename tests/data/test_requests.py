"""A row of the log as a request: the same impression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.requests import build_impression

N = 30
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "s"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "page": {"kind": "id"},
        "price": {"kind": "numeric", "scale": "log", "missing": 1.0},
        "size": {"kind": "numeric", "scale": "standard"},
        "cut": {"kind": "bucketized", "column": "size", "edges": [1, 2]},
        "hashed": {"kind": "id", "column": "page", "hash": 5},
        "hour": {"kind": "calendar"},
        "tags": {"kind": "multi_id", "weights": "heavy"},
        "click": {"kind": "id", "feedback": True},
    },
    "histories": {"all": {"features": ["item", "page", "click", "time_gap"], "max_length": 4}},
}


@pytest.fixture(scope="module")
def log(prepared: Callable[..., Log]) -> Log:
    columns = {
        "user": [f"u{n % 3}" for n in range(N)],
        "item": pa.array([None if n == 4 else n % 7 for n in range(N)]),
        "t": [1_600_000_000 + n * 500 for n in range(N)],
        "click": [n % 2 for n in range(N)],
        "page": pa.array([None if n % 5 == 0 else f"p{n % 4}" for n in range(N)]),
        "price": [n - 5.5 for n in range(N)],
        "size": [n % 4 for n in range(N)],
        "tags": [list(range(n % 3)) for n in range(N)],
        "heavy": [[0.5] * (n % 3) for n in range(N)],
    }
    return prepared(pa.table(columns), SCHEMA, split={"valid": 0, "test": 0.2})


def test_an_impression_is_the_row_it_was(log: Log) -> None:
    for row in range(N):
        batch = gather(log, np.array([row]))
        built = build_impression(log, row, [3, 0, 3, 5])
        own = int(log.events.columns["item"][row])
        assert built["items"].tolist() == list(dict.fromkeys(item for item in (own, 3, 5) if item))
        assert log.users.key(built["user"]) == f"u{built['user'] - 1}"
        assert built["timestamp"] == log.events.times[row]
        assert sorted(built["events"]) == ["cut", "hashed", "page", "price", "size", "tags"]
        for name in ("cut", "hashed", "page", "price", "size"):
            assert built["events"][name] == batch.features[name][0]  # type: ignore[index]
        tags = built["events"]["tags"]
        assert (tags.values.tolist(), tags.weights.tolist()) == (
            batch.features["tags"].values.tolist(),  # type: ignore[union-attr]
            batch.features["tags"].weights.tolist(),  # type: ignore[union-attr]
        )
        for column, values in batch.histories["all"].columns.items():
            assert built["histories"]["all"][column].tolist() == values.tolist()  # type: ignore[union-attr]
