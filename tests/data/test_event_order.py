"""A log that declares an order of events with equal timestamps: what histories, splits, windows and exports read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_logs import N, under

from longrec.config import parse
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.source_checks import row_needs
from longrec.data.training_histories import iterate_training_histories
from longrec.data.user_loader import UserLoader
from longrec.errors import ConfigError, RunError
from longrec.exports import _choose_golden_rows
from longrec.features.schema import Schema

Prepared = Callable[..., Log]
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step", "order": "position"},
    "label": "click",
    "features": {
        "item": {"kind": "id", "vocab": list(range(400))},
        "page": {"kind": "id"},
        "click": {"kind": "id", "vocab": [0, 1], "feedback": True},
    },
    "histories": {
        "all": {"features": ["item", "click", "time_gap"], "max_length": 5},
        "shown": {"features": ["item"], "where": {"page": "a"}, "max_length": 3},
        "clicked": {"features": ["item"], "where": {"click": 1}, "max_length": 3},
    },
}
LATE = {**SCHEMA, "time": {**SCHEMA["time"], "available_at": "arrived"}}
DELAYED = {**SCHEMA, "label_delay": 1}
SPLIT = {"by": "time", "valid_from": 7, "test_from": 9}


def events(seed: int, count: int = 120) -> pa.Table:
    random = np.random.default_rng(seed)
    t = random.integers(0, 10, count)
    return pa.table({
        "user": random.integers(0, 4, count),
        "item": np.arange(count),  # tells the events apart
        "t": t,
        "position": random.integers(-3, 3, count),
        "page": np.array(["a", "b"])[random.integers(0, 2, count)],
        "click": random.integers(0, 2, count),
        "arrived": t + np.where(random.random(count) < 0.3, random.integers(0, 4, count), 0),
    })  # fmt: skip


def select_slowly(table: pa.Table, row: dict[str, Any], name: str, schema: dict[str, Any]) -> list[int]:
    """A history by a search from end to end."""
    key = (row["t"], row["position"])
    rows = sorted(table.to_pylist(), key=lambda one: (one["t"], one["position"], one["item"]))
    rows = [one for one in rows if one["user"] == row["user"] and (one["t"], one["position"]) < key]
    if "available_at" in schema["time"]:  # a late event keeps its rule, and others are available at their own time
        rows = [one for one in rows if one["arrived"] == one["t"] or one["arrived"] < row["t"]]
    if name == "clicked" and "label_delay" in schema:
        rows = [one for one in rows if one["t"] + schema["label_delay"] < row["t"]]
    if name == "clicked":
        rows = [one for one in rows if one["click"] == 1]
    if name == "shown":
        rows = [one for one in rows if one["page"] == "a"]
    return [one["item"] for one in rows][-schema["histories"][name]["max_length"] :]


def items_of(log: Log, at: Any) -> list[Any]:
    return [log.items.key(int(item)) for item in log.events.columns["item"].take(at)]


@given(st.integers(0, 1_000), st.sampled_from([SCHEMA, LATE, DELAYED]))
@settings(max_examples=25, deadline=None)
def test_a_history_holds_the_events_strictly_before_its_row_in_time_and_order(
    prepared: Prepared, seed: int, schema: dict[str, Any]
) -> None:
    table = events(seed)
    log, by_item = prepared(table, schema, split=SPLIT), {row["item"]: row for row in table.to_pylist()}
    rows = np.arange(len(log))
    keys = [by_item[item] for item in items_of(log, rows)]
    assert [(k["user"], k["t"], k["position"], k["item"]) for k in keys] == sorted(
        (k["user"], k["t"], k["position"], k["item"]) for k in keys
    )
    batch = gather(log, rows)
    for name in schema["histories"]:
        at, offsets = log.select_history(name, rows)
        items = items_of(log, at)
        for row, key in enumerate(keys):
            assert items[offsets[row] : offsets[row + 1]] == select_slowly(table, key, name, schema)
        assert batch.histories[name].offsets.tolist() == offsets.tolist()
        assert log.compute_history_lengths(name, rows).tolist() == np.diff(offsets).tolist()


TIES = pa.table(
    {
        "user": [7, 7, 7, 7, 8, 8, 8, 7],
        "item": [0, 1, 2, 3, 4, 5, 6, 7],
        "t": [1, 1, 1, 1, 1, 1, 2, 2],
        "position": [2, 0, 1, 1, 5, 4, 0, 0],
        "page": ["a", "b"] * 4,
        "click": [0, 1] * 4,
        "arrived": [1] * 8,
    }
)


def test_ties_by_hand(prepared: Prepared) -> None:
    log = prepared(TIES, SCHEMA, split={"by": "leave_one_out"})
    assert items_of(log, np.arange(8)) == [1, 2, 3, 0, 7, 5, 4, 6]
    assert np.load(log.folder / "tie.npy").tolist() == [0, 1, 1, 3, 4, 5, 6, 7]
    at, offsets = log.select_history("all", np.arange(8))
    histories = [items_of(log, at[low:high]) for low, high in zip(offsets[:-1], offsets[1:])]
    assert histories == [[], [1], [1], [1, 2, 3], [1, 2, 3, 0], [], [5], [5, 4]]
    # By its timestamp, the last test row is later; the values of tied events are not yet available.
    click = gather(log, np.arange(8)).histories["all"].columns["click"].tolist()
    not_yet = log.fitted.get_not_yet_id("click")
    assert click[:5] == [not_yet] * 5
    assert not_yet not in click[5:9]
    assert np.diff(log.select_history_at("all", np.array([1, 2]), np.array([1, 2]))[1]).tolist() == [0, 2]


def test_without_an_order_nothing_changes(prepared: Prepared) -> None:
    log = prepared(TIES, {**SCHEMA, "time": {"column": "t", "unit": "step"}}, split={"by": "leave_one_out"})
    assert log.order is None
    assert not (log.folder / "tie.npy").exists()
    assert items_of(log, np.arange(5)) == [0, 1, 2, 3, 7]
    assert np.diff(log.select_history("all", np.arange(5))[1]).tolist() == [0, 0, 0, 0, 4]
    assert not any("server" in warning for warning in log.warnings)


def test_leave_one_out_and_its_window_follow_the_order(prepared: Prepared) -> None:
    log = prepared(TIES, SCHEMA, split={"by": "leave_one_out"})
    assert {split: items_of(log, log.rows_of(split)) for split in ("train", "valid", "test")} == {
        "train": [1, 2, 3, 5],
        "valid": [0, 4],
        "test": [7, 6],
    }
    (chunk,) = iterate_training_histories(log)
    assert chunk["all"].offsets.tolist() == [0, 0, 3, 4]
    delayed = prepared(TIES, DELAYED, split={"by": "leave_one_out"})
    assert items_of(delayed, delayed.rows_of("train")) == []


def test_rows_with_equal_time_and_order_are_not_before_the_cutoff(prepared: Prepared) -> None:
    table = TIES.set_column(3, "position", pa.array([2, 0, 2, 2, 5, 4, 0, 0]))
    log = prepared(table, SCHEMA, split={"by": "leave_one_out"})
    # Items 0, 2 and 3 of user 7 are tied in time and order, and one of them is the validation row.
    assert items_of(log, log.rows_of("train")) == [1, 5]


def test_rows_of_another_order_are_of_another_request(prepared: Prepared) -> None:
    log = prepared(TIES, {**SCHEMA, "features": {**SCHEMA["features"], "page": {"kind": "id", "side": "item"}}})
    rows = np.arange(8)
    batch = gather(log, rows, group=True)
    assert batch.layout.requests == 7  # items 2 and 3 of user 7 have one order
    loader = UserLoader(log, rows, 8, by_request=True, shuffle=False, rows_per_user=4)
    assert loader.order(0).tolist() == rows.tolist()
    assert len(loader._first) == 7


def test_prepared_logs_and_results_say_so(prepared: Prepared) -> None:
    log = prepared(TIES, SCHEMA, split={"by": "leave_one_out"})
    (warning,) = [warning for warning in log.warnings if "server" in warning]
    assert warning.startswith("events with equal timestamps are read in the order of column 'position' (time.order)")
    assert warning in log.manifest["warnings"]


def test_golden_rows_have_no_tie_before_them(prepared: Prepared) -> None:
    log = prepared(TIES, SCHEMA, split={"by": "leave_one_out"})
    assert items_of(log, _choose_golden_rows(log)) == [7, 6]
    tied = TIES.set_column(2, "t", pa.array([1] * 8))
    log = prepared(tied, SCHEMA, split={"by": "leave_one_out"})
    assert items_of(log, _choose_golden_rows(log)) == [1, 7, 6]  # of train, those with an empty history
    log.rows_of = lambda split: np.array([2, 3])  # type: ignore[method-assign]
    with pytest.raises(
        RunError, match=r"an event of the same user at the timestamp of every sample, which time\.order"
    ):
        _choose_golden_rows(log)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0.5] * N, r"column 'x': values of type DOUBLE, as time\.order; expected whole numbers\n  Cast the column"),
        (["a"] * N, r"column 'x': values of type VARCHAR, as time\.order; expected whole numbers"),
        ([True] * N, r"column 'x': values of type BOOLEAN, as time\.order"),
        ([None, *range(1, N)], r"column 'x': 1 null value, first in row 1; expected a whole number in every event"),
        (
            pa.array([2**63, *range(1, N)], pa.uint64()),
            r"column 'x': the number 9223372036854775808, as time\.order; expected whole numbers of 64 bits",
        ),
        (None, r"no column 'x' \(time\.order\)"),
    ],
)
def test_a_column_that_orders_nothing_is_refused(
    tmp_path: Path, refused: Callable[..., None], values: Any, says: str
) -> None:
    columns = {} if values is None else {"x": values}
    data, changes = under({"time": {"column": "t", "order": "x"}}, **columns)(tmp_path)
    refused(tmp_path, data, changes, says)


def test_whole_numbers_of_any_type_order(prepared: Prepared) -> None:
    for kind in (pa.int8(), pa.uint16(), pa.uint64()):
        log = prepared(TIES.set_column(3, "position", TIES["position"].cast(kind)), SCHEMA)
        assert items_of(log, np.arange(5)) == [1, 2, 3, 0, 7]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"request": "page"}, "time.order: rows of one request have no order among themselves"),
        (
            {"histories": {"h": {"features": ["item"], "columns": {"item": "items"}}}},
            "time.order: pre-joined rows contain their histories",
        ),
        ({"time": {"column": "t", "order": "t"}}, "time: order is the time column itself, 't'"),
    ],
)
def test_a_schema_that_contradicts_an_order_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(Schema, SCHEMA | changes, "job.yaml")
    (fault,) = raised.value.faults
    assert says in fault


def test_check_looks_for_the_column() -> None:
    assert ("data.schema.time.order", "position") in row_needs(Schema.model_validate(SCHEMA))
