"""Columns of a history as available at a timestamp."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.errors import DataError
from longrec.features import feature_encoders
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import (
    NEVER,
    HistoryEvents,
    build_history_columns,
    compute_filter_delay,
    list_event_columns,
    match_condition,
)
from longrec.features.schema import Condition, Schema
from longrec.features.vocabulary import Keys


def build_fitted(**changes: Any) -> FittedSchema:
    content: dict[str, Any] = {
        "user": "user",
        "item": "item",
        "time": {"column": "t", "unit": "s"},
        "label": "click",
        "label_delay": "10s",
        "features": {
            "item": {"kind": "id"},
            "tags": {"kind": "multi_id", "side": "item"},
            "page": {"kind": "id"},
            "click": {"kind": "id", "feedback": True},
            "dwell": {"kind": "bucketized", "edges": [5], "feedback": True, "available_after": "2s"},
            "fixed": {"kind": "id", "feedback": True, "available_at": "fixed_at"},
            "unused": {"kind": "id"},
        },
        "histories": {"h": {"features": ["item", "tags", "page", "click", "dwell", "fixed", "time_gap"]}},
    }
    schema = Schema.model_validate(content | changes)
    encoders: dict[str, feature_encoders.Encoder] = {
        name: feature_encoders.HashEncoder(4, 1) for name in schema.features
    }
    return FittedSchema(schema, encoders | {"dwell": feature_encoders.BucketizedEncoder((5.0,))})


ITEMS = EntityTable(
    Keys(pa.array(["a", "b"])),
    {
        "item": np.array([1, 2, 3], np.uint8),
        "tags": Lists(np.array([4, 5, 6], np.uint8), np.array([0, 0, 1, 3])),
    },
)


def test_feedback_reads_as_not_yet_until_strictly_after_it_becomes_available() -> None:
    events = HistoryEvents(
        times=np.array([0, 8_000, 10_000, 17_999, 18_000, 19_000]),
        item_rows=np.array([1, 2, 0, 2, 1, 1]),
        values={
            "page": np.array([2, 3, 2, 3, 2, 3]),
            "click": np.array([2, 3, 4, 5, 2, 3], np.uint8),
            "dwell": np.array([2, 3, 2, 3, 2, 0]),
            "fixed": np.array([5, 5, 5, 5, 5, 5]),
        },
        available_at={"fixed": np.array([20_000, 19_999, NEVER, 0, 20_001, 3])},
    )
    columns = build_history_columns(build_fitted(), "h", ITEMS, events, np.array([20_000]))
    shown = {name: np.asarray(column).tolist() for name, column in columns.items() if not isinstance(column, Lists)}
    assert list(columns) == ["item", "tags", "page", "click", "dwell", "fixed", "time_gap"]
    assert shown["item"] == [2, 3, 1, 3, 2, 2]
    assert shown["page"] == [2, 3, 2, 3, 2, 3]
    assert shown["click"] == [2, 3, 6, 6, 6, 6]  # available 10 s after: one at the same timestamp is not yet available
    assert shown["dwell"] == [2, 3, 2, 3, 4, 4]  # available 2 s after
    assert shown["fixed"] == [6, 5, 6, 5, 6, 5]
    assert shown["time_gap"] == [6, 5, 5, 3, 3, 3]
    tags = columns["tags"]
    assert isinstance(tags, Lists)
    assert np.diff(tags.offsets).tolist() == [1, 2, 0, 2, 1, 1]
    assert tags.values.tolist() == [4, 5, 6, 5, 6, 4, 4]


def test_no_events_at_all() -> None:
    none = np.zeros(0, np.int64)
    events = HistoryEvents(none, none, {name: none for name in ("page", "click", "dwell", "fixed")}, {"fixed": none})
    columns = build_history_columns(build_fitted(), "h", ITEMS, events, none)
    assert all(len(column) == 0 for column in columns.values())


def test_a_log_in_steps_counts_steps() -> None:
    steps = build_fitted(time={"column": "t", "unit": "step"}, label_delay="3")
    zeros = np.zeros(3, np.int64)
    events = HistoryEvents(
        np.array([0, 6, 7]), zeros, {n: zeros + 2 for n in ("page", "click", "dwell", "fixed")}, {"fixed": zeros}
    )
    columns = build_history_columns(steps, "h", ITEMS, events, np.array([10]))
    assert np.asarray(columns["click"]).tolist() == [2, 2, 6]
    assert np.asarray(columns["time_gap"]).tolist() == [5, 4, 4]


def test_what_a_store_must_keep() -> None:
    assert list_event_columns(build_fitted()) == ["page", "click", "dwell", "fixed"]


@pytest.mark.parametrize(
    ("where", "delay"),
    [
        ({}, 0),
        ({"page": "home"}, 0),
        ({"dwell": {"at_least": 5}}, 2_000),
        ({"click": 1}, 10_000),
        ({"click": 1, "dwell": 1, "page": 2}, 10_000),
    ],
)
def test_a_filter_waits_until_its_columns_are_available(where: dict[str, Any], delay: int) -> None:
    assert compute_filter_delay(build_fitted(histories={"h": {"features": ["item"], "where": where}}), "h") == delay


def test_a_filter_on_the_label_waits_without_a_feature_of_it() -> None:
    features = {"item": {"kind": "id"}}
    columns = build_fitted(features=features, histories={"h": {"features": ["item"], "where": {"click": 1}}})
    assert compute_filter_delay(columns, "h") == 10_000


@pytest.mark.parametrize(
    ("condition", "array", "expected"),
    [
        ({"at_least": 2}, pa.array([1, 2, None, 3]), [False, True, False, True]),
        ({"at_least": 0.5}, pa.array([0.4, float("nan"), 0.5]), [False, False, True]),
        ({"at_least": 1}, pa.array([True, False, None]), [True, False, False]),
        (2, pa.array([1, 2, None], pa.int8()), [False, True, False]),
        (2, pa.array([1.0, 2.0, 2.5]), [False, True, False]),
        (1, pa.array([True, False, None]), [True, False, False]),
        (1, pa.array(["1", "2", None]), [True, False, False]),
        ("a", pa.array(["a", None, "b"]), [True, False, False]),
        ("a", pa.array(["a", None, "b"]).dictionary_encode(), [True, False, False]),
        ([1, 3], pa.array([1, 2, 3, None]), [True, False, True, False]),
        (["a", "c"], pa.array(["c", "b", None], pa.large_string()), [True, False, False]),
        ([], pa.array([1, None]), [False, False]),
        ("a", pa.nulls(2), [False, False]),
        ({"at_least": 0}, pa.nulls(2), [False, False]),
    ],
)
def test_values_that_meet_a_condition(condition: Any, array: pa.Array, expected: list[bool]) -> None:
    assert match_condition(Condition.model_validate(condition), array, "x").tolist() == expected


@pytest.mark.parametrize(
    ("condition", "array", "says"),
    [
        ({"at_least": 2}, pa.array(["1"]), r"^x: text, for example '1'; expected numbers"),
        (
            "a",
            pa.array([1]),
            r"^x: values of type int64; expected values that can equal 'a'\n  Write the condition in the type",
        ),
        ([1, 2], pa.array([[1]]), r"^x: values of type list<item: int64>; expected values that can equal 1 or 2"),
        ([1, "a"], pa.array([1]), r"^x: values of the types int, str; expected one type"),
    ],
)
def test_a_condition_that_no_value_can_meet(condition: Any, array: pa.Array, says: str) -> None:
    with pytest.raises(DataError, match=says):
        match_condition(Condition.model_validate(condition), array, "x")
