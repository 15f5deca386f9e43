"""Nothing that happens at or after a timestamp changes a sample of that timestamp, to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.features.batch import Batch, Jagged

Row = dict[str, Any]
USERS, ITEMS, TICKS = 3, 5, 12
LABEL_DELAY, DWELL_DELAY = 2, 4

SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "request": "visit",
    "label": "click",
    "label_delay": LABEL_DELAY,
    # Everything that could be learned is configured, so that only the log itself can leak.
    "features": {
        "number": {"kind": "numeric"},  # tells the rows apart
        "user": {"kind": "id", "vocab": list(range(USERS + 1))},
        "item": {"kind": "id", "vocab": list(range(ITEMS))},
        "kind": {"kind": "id", "side": "item", "vocab": ["a", "b"]},
        "page": {"kind": "id", "hash": 50},
        "click": {"kind": "id", "vocab": [0, 1], "feedback": True},
        "dwell": {"kind": "bucketized", "edges": [1, 2, 3], "feedback": True, "available_after": DWELL_DELAY},
        "fix": {"kind": "id", "hash": 50, "feedback": True, "available_at": "fixed_at"},
    },
    "histories": {
        "all": {
            "features": [
                "item",
                "kind",
                "page",
                "click",
                "dwell",
                "fix",
                "time_gap",
                "time_since_previous",
                "session_recency",
            ],
            "max_length": 5,
            "session_gap": "2s",
        },
        "clicks": {"features": ["item", "dwell", "fix"], "where": {"click": 1}, "max_length": 4},
        "long": {"features": ["item", "click"], "where": {"dwell": {"at_least": 2}, "page": [0, 1]}, "max_length": 3},
    },
}
FEEDBACK = ("click", "dwell", "fix", "fixed_at")


def event() -> st.SearchStrategy[Row]:
    return st.fixed_dictionaries(
        {
            "user": st.integers(0, USERS - 1),
            "item": st.integers(0, ITEMS - 1),
            "t": st.integers(1, TICKS),
            "visit": st.one_of(st.none(), st.integers(0, 2)),
            "page": st.integers(0, 3),
            "click": st.sampled_from([0, 1, 1]),
            "dwell": st.integers(0, 4),
            "fix": st.integers(0, 9),
            "fixed_at": st.one_of(st.none(), st.integers(0, TICKS + 3)),
        }
    )


def request_time(rows: list[Row], row: Row) -> int:
    same = [r["t"] for r in rows if row["visit"] is not None and (r["user"], r["visit"]) == (row["user"], row["visit"])]
    return min([*same, row["t"]])


@st.composite
def histories_rewritten(draw: st.DrawFn) -> tuple[list[Row], list[Row], int]:
    """A log, the same log with its future rewritten, and the number of the sample whose moment parts them."""
    rows = [{**row, "number": n} for n, row in enumerate(draw(st.lists(event(), min_size=1, max_size=25)))]
    sample = draw(st.sampled_from(rows))
    now = request_time(rows, sample)
    other: list[Row] = []
    for row in rows:
        changed = dict(row)
        if row["t"] >= now:
            # Its own impression stays what it is; so does the begin of its request, which says when it was made.
            mine = (row["user"], row["visit"]) == (sample["user"], sample["visit"]) and row["visit"] is not None
            if row is not sample and not mine:
                if draw(st.booleans()):
                    continue
                changed |= draw(event()) | {"t": draw(st.integers(now, TICKS + 5)), "visit": row["visit"]}
            elif row is not sample:
                changed |= {"item": draw(st.integers(0, ITEMS - 1)), "page": draw(st.integers(0, 3))}
            changed |= {name: value for name, value in draw(event()).items() if name in FEEDBACK}
        else:  # the past stays, and what was not yet known of it may still become anything
            new = draw(event())
            if row["t"] + LABEL_DELAY >= now:
                changed["click"] = new["click"]
            if row["t"] + DWELL_DELAY >= now:
                changed["dwell"] = new["dwell"]
            if row["fixed_at"] is None or row["fixed_at"] >= now:
                changed["fix"] = new["fix"]
                changed["fixed_at"] = draw(st.one_of(st.none(), st.integers(now, TICKS + 9)))
        other.append(changed)
    for row in draw(st.lists(event(), max_size=8)):
        added = row | {"t": draw(st.integers(now, TICKS + 5)), "number": 1000 + len(other)}
        other.insert(draw(st.integers(0, len(other))), added)
    return rows, other, sample["number"]


def table(rows: list[Row]) -> pa.Table:
    """The rows, and two of somebody else before them, so that both classes are there."""
    anchors = [
        {"user": USERS, "item": 0, "t": 0, "visit": None, "page": 0, "dwell": 0, "fix": 0, "fixed_at": 0} | {"click": c}
        for c in (0, 1)
    ]
    rows = [{**row, "number": -1} for row in anchors] + rows
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["kind"] = ["abx"[row["item"] % 3] for row in rows]
    columns["part"] = ["train"] * len(rows)
    kinds = {"visit": pa.int64(), "fixed_at": pa.int64()}
    return pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})


def shown(log: Log, number: int) -> Batch:
    everything = gather(log, np.arange(len(log))).features["number"]
    assert isinstance(everything, torch.Tensor)
    (at,) = np.flatnonzero(everything.numpy() == number)
    return gather(log, np.array([at]))


def bits(column: torch.Tensor | Jagged) -> list[bytes]:
    if isinstance(column, Jagged):
        return [bits(column.values)[0], bits(column.offsets)[0]]
    return [str(column.dtype).encode() + column.numpy().tobytes()]


def same(one: Batch, two: Batch) -> None:
    for name in one.features:
        assert bits(one.features[name]) == bits(two.features[name]), name
    for name, history in one.histories.items():
        assert bits(history.offsets) == bits(two.histories[name].offsets), name
        for column in history.columns:
            assert bits(history.columns[column]) == bits(two.histories[name].columns[column]), (name, column)


@settings(deadline=None, max_examples=30)
@given(case=histories_rewritten())
def test_rewriting_the_future_changes_nothing(
    case: tuple[list[Row], list[Row], int], prepared: Callable[..., Log]
) -> None:
    before, after, number = case
    split = {"by": "column", "column": "part"}
    one, two = (shown(prepared(table(rows), SCHEMA, split=split), number) for rows in (before, after))
    same(one, two)


@pytest.fixture(scope="module")
def tied(prepared: Callable[..., Log]) -> Callable[..., Batch]:
    """``tied(earlier, **schema)``: what row 9 at moment 10 sees of one past event."""

    def make(earlier: Row, **changes: Any) -> Batch:
        base = {"user": 0, "item": 0, "visit": None, "page": 0, "click": 1, "dwell": 4, "fix": 3, "fixed_at": 1}
        rows = [
            base | {"number": 8, "t": 1} | earlier,
            base | {"number": 9, "t": 10, "item": 1} | changes.pop("own", {}),
        ]
        return shown(prepared(table(rows), SCHEMA | changes, split={"by": "column", "column": "part"}), 9)

    return make


@pytest.mark.parametrize(
    ("earlier", "own", "seen"),
    [
        ({"t": 9}, {}, 1),
        ({"t": 10}, {}, 0),  # the same moment
        ({"t": 11}, {}, 0),
        ({"t": 9, "visit": 1}, {"visit": 1}, 0),  # the same request, begun before
        ({"t": 9, "visit": 1}, {"visit": 2}, 1),
    ],
)
def test_ties_and_the_same_request_are_outside(earlier: Row, own: Row, seen: int, tied: Callable[..., Batch]) -> None:
    assert tied(earlier, own=own).histories["all"].offsets.tolist() == [0, seen]


@pytest.mark.parametrize(
    ("earlier", "column", "code"),
    [
        ({"t": 7}, "click", 3),
        ({"t": 8}, "click", 4),  # known at the very moment: not yet
        ({"t": 5}, "dwell", 5),
        ({"t": 6}, "dwell", 6),
    ],
)
def test_feedback_is_shown_once_available(earlier: Row, column: str, code: int, tied: Callable[..., Batch]) -> None:
    shown_column = tied(earlier).histories["all"].columns[column]
    assert isinstance(shown_column, torch.Tensor)
    assert shown_column.tolist() == [code]


@pytest.mark.parametrize(("fixed_at", "available"), [(9, True), (10, False), (None, False), (0, True)])
def test_an_amendment_is_shown_once_available(
    fixed_at: int | None, available: bool, tied: Callable[..., Batch]
) -> None:
    shown_column = tied({"fixed_at": fixed_at}).histories["all"].columns["fix"]
    assert isinstance(shown_column, torch.Tensor)
    assert (shown_column.item() != 52) is available  # 50 buckets, two reserved, then "not yet"


@pytest.mark.parametrize("never", [float("nan"), float("inf"), None])
def test_an_amendment_without_a_timestamp_never_happened(never: Any, prepared: Callable[..., Log]) -> None:
    base = {"user": 0, "item": 0, "visit": None, "page": 0, "click": 1, "dwell": 4, "fix": 3, "fixed_at": 0}
    log = table([base | {"number": n, "t": n} for n in range(1, 6)])  # two anchors of somebody else come first
    index = log.column_names.index("fixed_at")
    for timestamps, available in (
        ([never] * 7, [False] * 4),
        ([0, 0, 2, never, 4, 5, 6], [True, False, True, False]),  # the last sample looks back from moment 5
        (pa.nulls(7), [False] * 4),
    ):
        column = timestamps if isinstance(timestamps, pa.Array) else pa.array(timestamps, pa.float64())
        log_with_column = prepared(
            log.set_column(index, "fixed_at", column), SCHEMA, split={"by": "column", "column": "part"}
        )
        fix = shown(log_with_column, 5).histories["all"].columns["fix"]
        assert isinstance(fix, torch.Tensor)
        assert (fix != 52).tolist() == available


@pytest.mark.parametrize(("earlier", "clicks", "long"), [({"t": 7}, 1, 0), ({"t": 8}, 0, 0), ({"t": 5}, 1, 1)])
def test_a_filter_waits_for_its_columns(earlier: Row, clicks: int, long: int, tied: Callable[..., Batch]) -> None:
    histories = tied(earlier).histories
    assert histories["clicks"].offsets.tolist() == [0, clicks]
    assert histories["long"].offsets.tolist() == [0, long]


# ---- the fit -----------------------------------------------------------------------------------------------------

LEARNED: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id", "min_count": 2},
        "kind": {"kind": "id", "side": "item"},
        "tags": {"kind": "multi_id", "side": "item"},
        "words": {"kind": "multi_id"},
        "hashed": {"kind": "id", "column": "page", "hash": 30},
        "page": {"kind": "id"},
        "size": {"kind": "numeric", "scale": "standard"},
        "wide": {"kind": "numeric", "scale": "minmax", "column": "size"},
        "cuts": {"kind": "bucketized", "quantiles": 4, "column": "size"},
        "square": {"kind": "bucketized", "log_square": True, "column": "size"},
        "weight": {"kind": "bucketized", "quantiles": 3, "side": "item"},
        "dwell": {"kind": "bucketized", "quantiles": 3, "feedback": True},
    },
    "histories": {"all": {"features": ["item", "tags", "dwell"], "max_length": 3}},
}


def fit_table(random: np.random.Generator, train: int, later: int, wild: int) -> pa.Table:
    """``train`` rows from one stream, then ``later`` rows in which everything shifts by ``wild``."""
    n, late = train + later, np.arange(train + later) >= train
    item = random.integers(0, 8, n) + wild * 10 * late
    return pa.table(
        {
            "user": random.integers(0, 5, n) + wild * late,
            "item": item,
            "t": np.arange(n),
            "click": random.integers(0, 2, n),
            "kind": item % 5,
            "tags": [[int(i) % 3, int(i) % 7] for i in item],
            "weight": item * 1.5,
            "words": [[int(i), wild] if is_late else [int(i)] for i, is_late in zip(item, late)],
            "page": random.integers(0, 9, n) + wild * late,
            "size": random.normal(10, 3, n) + wild * 50 * late,
            "dwell": random.integers(0, 9, n) + wild * 100 * late,
            "part": np.where(late, np.where(np.arange(n) % 2, "valid", "test"), "train"),
        }
    )


def digest(folder: Path) -> str:
    """Of the fitted schema, to the bit."""
    files = sorted((folder / "schema").iterdir())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


@pytest.mark.parametrize("split", [{"by": "column", "column": "part"}, {"test_from": "50", "valid_from": "40"}])
def test_the_fit_never_sees_valid_or_test_rows(split: dict[str, Any], prepared: Callable[..., Log]) -> None:
    digests = set()
    for wild in (0, 1, 9):
        log = prepared(fit_table(np.random.default_rng(7), 40, 20, wild), LEARNED, split=split)
        digests.add(digest(log.folder))
        assert log.manifest["parts"]["train"]["samples"] == 40
    assert len(digests) == 1
    seen = prepared(fit_table(np.random.default_rng(8), 40, 20, 0), LEARNED, split=split)
    assert digest(seen.folder) not in digests  # the digest itself can tell a difference
