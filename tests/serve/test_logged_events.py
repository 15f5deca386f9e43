"""Rows of an event log: keys, times and values as a server takes them, whatever the files have."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from longrec.data.logged_events import open_logged_events
from longrec.errors import ConfigError, DataError
from longrec.features.logged_rows import LoggedRows
from longrec.features.schema import Schema
from longrec.serve import warm

START = 1_700_000_000
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "time", "unit": "s"},
    "label": "click",
    "request": "page",
    "candidate": "shown",
    "features": {
        "item": {"kind": "id"},
        "shop": {"kind": "id"},
        "price": {"kind": "bucketized", "edges": [2]},
        "tags": {"kind": "multi_id"},
        "clicked": {"kind": "id", "column": "click", "feedback": True, "available_at": "clicked_at"},
        "stars": {"kind": "bucketized", "edges": [2], "feedback": True, "available_after": "1m"},
    },
    "histories": {"seen": {"features": ["item", "shop", "price", "clicked", "stars"]}},
}


def read(log: Any, size: int = 10, texts: tuple[str, ...] = (), **change: Any) -> list[LoggedRows]:
    schema = Schema.model_validate({**SCHEMA, **change})
    with open_logged_events(log, schema, texts, "arrived") as opened:
        rows = list(opened.read(size))
        assert opened.count == sum(map(len, rows))
        assert list(rows[0].table.column_names) == list(opened.columns)
    return rows


def test_rows_are_in_the_order_in_which_they_became_available() -> None:
    """A time before its event counts as that of the event, and rows of candidates are none."""
    log = pa.table({
        "user": [7.0, 7.0, 7.0, 8.0, 8.0],
        "item": [1, 2, 3, 4, 5],
        "time": [START, START + 1, START + 2, START + 3, START + 4],
        "arrived": [START + 9, None, START, START + 3, START + 4],
        "page": [1, 1, None, 1, 1],
        "shown": [0, None, 0, 0, 1],
        "shop": ["a"] * 5,
        "price": [Decimal("1.50"), None, Decimal(3), Decimal(4), Decimal(5)],
        "tags": [[1, 2], [], None, [3], [4]],
        "click": [1, 0, 1, 0, 1],
        "clicked_at": [START + 20, None, START + 2, START + 3, START + 4],
        "stars": [4.0, float("nan"), 2.0, None, 1.0],
        "other": ["x"] * 5,
    })  # fmt: skip
    first, second = read(log, size=3)
    assert (first.numbers, second.numbers) == ([2, 3, 4], [1])
    assert [1000 * START + 1000 * own for own in (1, 2, 3)] == first.times == first.available
    assert second.available == [1000 * START + 9000]
    assert (first.users, first.items) == ([7, 7, 8], [2, 3, 4])
    assert {type(user) for user in first.users} == {int}
    assert first.requests == [1000 * START, 1000 * START + 2000, 1000 * START + 3000]  # the page began with row 1
    assert second.context == {"shop": ["a"], "price": [1.5], "tags": [[1, 2]]}
    assert first.feedback == {"click": [0, 1, 0], "stars": [None, 2.0, None]}
    assert first.feedback_times == {"click": [None, 1000 * START + 2000, 1000 * START + 3000]}
    assert second.table.to_pylist()[0] | {"clicked_at": 0} == {
        "user": 7.0, "item": 1, "time": START, "arrived": START + 9, "page": 1, "shown": 0, "shop": "a",
        "price": Decimal("1.50"), "tags": [1, 2], "click": 1, "clicked_at": 0, "stars": 4.0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_text_files_have_the_types_of_the_bundle(kind: str, tmp_path: Path) -> None:
    """Keys and ids that the bundle has as text are text, also where a file has digits alone."""
    table = pa.table({"user": [1, 2], "item": [3, 4], "at": [START, START + 1], "shop": [5, 6], "price": ["2", "many"]})
    if kind == "csv":
        pacsv.write_csv(table, tmp_path / "one.csv")
    else:
        (tmp_path / "one.jsonl").write_bytes(b"\n".join(map(orjson.dumps, table.to_pylist())))
    (own,) = read(str(tmp_path / f"*.{kind}"), texts=("item", "shop"))
    assert (own.users, own.items) == ([1, 2], ["3", "4"])
    assert own.context == {"shop": ["5", "6"], "price": [2, "many"]}
    assert own.requests is None
    assert own.feedback == {}


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read(3)
    with pytest.raises(DataError, match="no column 'time'"):
        read(pa.table({"user": [1], "item": [1]}))
    with pytest.raises(DataError, match="times of type BOOLEAN"):
        read(pa.table({"user": [1], "item": [1], "time": [True]}))


@pytest.mark.parametrize(("recorded", "expected"), [([], 8), ([[3, 5]], 8), ([[1], [], [2, 9]], 10)], ids=str)
def test_the_step_after_the_last_event(
    recorded: list[list[int]], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of a log that counts in steps hold what was recorded since it too."""
    monkeypatch.setattr(warm, "_open_segment", lambda _: SimpleNamespace(times=np.array([2, 7])))
    bundle: Any = SimpleNamespace(fitted=SimpleNamespace(schema=SimpleNamespace(time=SimpleNamespace(unit="step"))))

    class Events(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.times)

    scanned = [(user, Events(times=np.array(times, np.int64))) for user, times in enumerate(recorded)]
    live: Any = SimpleNamespace(backend=SimpleNamespace(scan=lambda: scanned))
    assert warm._find_now(bundle, live) == expected
