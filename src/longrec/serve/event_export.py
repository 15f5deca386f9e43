"""Recorded events as rows of a log: what ``prepare`` reads, so that training sees what the server saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.features.raw_columns import build_raw_column
from longrec.features.schema import Schema
from longrec.features.timestamp_grammar import UNITS
from longrec.features.token_columns import compute_instance_ids
from longrec.features.vocabulary import compute_key_numbers
from longrec.serve.recorded_events import RecordedEvent

VISIBLE = "available_at"
"""Column of the time from which an event was visible, for a schema without ``time.available_at``."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS = pa.timestamp("ms", "UTC")


def build_log_table(events: Iterable[RecordedEvent], schema: Schema) -> pa.Table:
    """Return recorded events as a table of the log's columns, in the order of time.

    Events of one timestamp are in the order of their names, as the server reads them. Times are written as the log has
    them: numbers of its unit, text of its format, or timestamps.

    Args:
        events: at least one.
        schema: schema of the bundle that was served.
    """
    rows = list(events)
    names = _compute_names(rows, [one.item for one in rows], [one.at for one in rows])
    rows = [row for _, row in sorted(zip(names.tolist(), rows), key=lambda pair: (pair[1].at, pair[0]))]
    time = schema.time
    columns: dict[str, pa.Array] = {}
    for column, values in ((schema.user, [one.user for one in rows]), (schema.item, [one.item for one in rows])):
        if column is not None:
            columns[column] = _build_column(values, column)
    if schema.request is not None:
        columns[schema.request] = pa.array(_compute_names(rows, [one.user for one in rows], [r.request for r in rows]))
    if time is not None:
        columns[time.column] = build_time_column([one.at for one in rows], time.unit, time.format)
        visible = build_time_column([one.visible for one in rows], time.unit, time.format)
        columns[time.available_at or VISIBLE] = visible
    for column in dict.fromkeys(column for one in rows for column in [*one.context, *one.feedback]):
        columns[column] = _build_column([{**one.context, **one.feedback}.get(column) for one in rows], column)
    for column, read in _list_feedback_times(schema).items():
        times = [max((one.available_at[c] for c in read if c in one.available_at), default=None) for one in rows]
        assert time is not None  # the schema requires it
        columns[column] = build_time_column(times, time.unit, time.format)
    return pa.table(columns)


def _list_feedback_times(schema: Schema) -> dict[str, list[str]]:
    """Return the columns of times of feedback, each with the columns of feedback whose time it is."""
    columns: dict[str, list[str]] = {}
    for name, feature in schema.features.items():
        if feature.available_at is not None:
            columns.setdefault(feature.available_at, []).append(schema.column(name))
    return columns


def build_time_column(timestamps: Sequence[int | None], unit: str, pattern: str | None) -> pa.Array:
    """Return timestamps as a log has them.

    Args:
        timestamps: milliseconds UTC, or steps.
        unit: unit of the log's numbers. ``auto``: it has timestamps or ISO 8601 text, and timestamps are returned.
        pattern: ``time.format``.
    """

    def convert(function: Callable[[int], Any]) -> list[Any]:
        return [None if value is None else function(value) for value in timestamps]

    if pattern is not None:
        return pa.array(convert(lambda value: (_EPOCH + timedelta(milliseconds=value)).strftime(pattern)), pa.string())
    if unit == "auto":
        return pa.array(timestamps, _MILLISECONDS)
    if unit == "step":
        return pa.array(timestamps, pa.int64())
    times, divide = UNITS[unit]
    if any(value is not None and value * divide % times for value in timestamps):
        return pa.array(convert(lambda value: value * divide / times), pa.float64())
    return pa.array(convert(lambda value: value * divide // times), pa.int64())


def _build_column(values: Sequence[Any], column: str) -> pa.Array:
    """Return raw values as a column. Numbers of several types become floats, other values of several types text."""
    kinds = {type(value) for value in values} - {type(None)}
    if len(kinds) > 1:
        convert = float if kinds <= {int, float, bool} else str
        values = [None if value is None else convert(value) for value in values]
    try:
        return build_raw_column(values, f"column {column!r}")
    except DataError:
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _compute_names(rows: Sequence[RecordedEvent], keys: Sequence[Any], times: Sequence[int]) -> NDArray[np.int64]:
    """Return a number for each user, key and time: of an item the name of the event, of the user that of a request."""
    numbers = [compute_key_numbers(pa.array(own)) for own in ([one.user for one in rows], keys)]
    return compute_instance_ids(numbers[0], numbers[1], np.array(times, np.int64), seen=False)
