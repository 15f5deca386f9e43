"""Reading of a log for an audit: rows in their order in the input, sorted by user and published order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.auditing.column_roles import SPLIT_NAMES, ColumnRoles
from longrec.auditing.events import Events, encode_keys, read_values
from longrec.auditing.item_table import find_keys, rank_otherwise, read_items
from longrec.data.relation import SPLIT_COLUMN, Relation, name
from longrec.data.timestamps import read_timestamps
from longrec.errors import DataError
from longrec.features.feature_encoders import Lists
from longrec.features.schema import TimeColumn
from longrec.features.timestamp_grammar import format_timestamp, guess_unit, to_milliseconds

_OVERLAP = 0.5
"""Share of the elements of a list column that are items of the log, from which it is a history."""


def read_events(
    log: Relation, roles: ColumnRoles, *, time: TimeColumn | None = None, items: Relation | None = None
) -> tuple[Events, list[str]]:
    """Read a log.

    Args:
        time: format of the times. Default: numbers as they are, texts as ISO 8601.
        items: table of items, with the key in a column of the same or of a usual name.

    Returns:
        The events, and one sentence per choice that was made.

    Raises:
        DataError: values that cannot be used.
    """
    notes: list[str] = []
    table = log.table(f"SELECT {_select(log, roles, time)} FROM {log.view}")
    user, user_keys = encode_keys(table["_user"])
    item, keys = encode_keys(table["_item"])
    columns = _Columns(table, user, item, np.arange(len(table)))
    complete = (user >= 0) & (item >= 0)
    if not complete.all():
        notes.append(f"{len(table) - int(complete.sum()):,} rows without a user or an item are left out")
        columns = columns.keep(complete)
    times = None if roles.time is None else _read_times(columns.of("_time"))
    order, ordered = _read_order(columns, roles, times, notes)
    within_ties = time is not None and time.order is not None  # a schema orders the events of one time
    filled = None
    if times is not None and times.mask.any():
        filled = np.ma.getmaskarray(times).copy()
        columns, times, order = _fill_times(columns, times, order, ordered and not within_ties, notes)
        filled = filled if len(filled) == len(columns.row) else None
    time_N = None if times is None else np.asarray(times.data)
    sort = [columns.row, *([] if order is None else [order])]
    if time_N is not None and (within_ties or not ordered):
        sort.append(time_N)
    at = np.lexsort([*sort, columns.user])
    if roles.time is not None and time_N is not None and len(time_N):
        notes += _describe_span(table["_time"].type, int(time_N.min()), int(time_N.max()))
    features = {column: read_values(columns.of(f"f.{column}")).take(at) for column in roles.features}
    labels = None if roles.label_sql is None else _read_labels(columns.of("_label"), f"{log.where}: {roles.label}")[at]
    lists, list_times = _read_lists(columns, roles, keys, at, notes)
    return (
        Events(
            user=columns.user[at],
            item=columns.item[at],
            row=columns.row[at],
            time=None if time_N is None else time_N[at],
            filled=None if filled is None else filled[at],
            label=labels,
            split=_read_split(columns, log, roles, at),
            features=features,
            lists=lists,
            list_times=list_times,
            item_features={} if items is None else read_items(items, roles.item, keys),
            user_keys=user_keys,
            item_keys=keys,
            item_texts=rank_otherwise(keys),
            ordered=ordered,
        ),
        notes,
    )


def _select(log: Relation, roles: ColumnRoles, time: TimeColumn | None) -> str:
    """Return the columns of the query that reads a log."""
    selected = [f"{name(roles.user)} AS _user", f"{name(roles.item)} AS _item"]
    if roles.time is not None:
        kind, sql = log.types[roles.time], name(roles.time)
        if kind == "VARCHAR" or kind.startswith("ENUM") or (time is not None and time.format is not None):
            sql = read_timestamps(log, roles.time, time or TimeColumn(column=roles.time)).sql
        selected.append(f"{sql} AS _time")
    selected += [f"({roles.label_sql})::DOUBLE AS _label"] if roles.label_sql is not None else []
    selected += [f"{name(roles.order)} AS _order"] if roles.order is not None else []
    split = SPLIT_COLUMN if SPLIT_COLUMN in log.types else roles.split
    selected += [f"{name(split)} AS _split"] if split is not None else []
    others = [*roles.features, *roles.histories, *roles.history_times]
    return ", ".join([*selected, *(f"{name(column)} AS {name('f.' + column)}" for column in others)])


class _Columns:
    """Columns of the rows that are kept, in their order in the input."""

    def __init__(
        self, table: pa.Table, user: NDArray[np.int64], item: NDArray[np.int64], row: NDArray[np.int64]
    ) -> None:
        self.table, self.user, self.item, self.row = table, user, item, row

    def of(self, column: str) -> pa.ChunkedArray:
        every = self.table[column]
        return every if len(self.row) == len(every) else every.take(pa.array(self.row))

    def keep(self, mask: NDArray[np.bool_]) -> _Columns:
        return _Columns(self.table, self.user[mask], self.item[mask], self.row[mask])


def _read_times(column: pa.ChunkedArray) -> np.ma.MaskedArray[Any, np.dtype[np.int64]]:
    """Return times as whole numbers that are in the order of the times, masked where there is none."""
    mask = np.asarray(column.is_null())
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    if pa.types.is_integer(column.type):
        return np.ma.MaskedArray(pc.fill_null(column, 0).to_numpy().astype(np.int64), mask)
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    mask = mask | ~np.isfinite(values)
    values = np.where(mask, 0, values)
    if (values == np.floor(values)).all() and np.abs(values).max(initial=0) < 2**53:
        return np.ma.MaskedArray(values.astype(np.int64), mask)
    return np.ma.MaskedArray(np.unique(values, return_inverse=True)[1].astype(np.int64), mask)


def _read_labels(column: pa.ChunkedArray, where: str) -> NDArray[np.float64]:
    """Return labels.

    Raises:
        DataError: a label other than 0 and 1.
    """
    labels: NDArray[np.float64] = read_values(column).array
    odd = labels[~np.isnan(labels) & (labels != 0) & (labels != 1)]
    if len(odd):
        do = "write such a column, or name a condition in the schema of a config: label: {column: ..., at_least: ...}"
        raise DataError(where, f"the label {odd[0]:g}", "0 and 1", do)
    return labels


def _read_order(
    columns: _Columns, roles: ColumnRoles, times: Any, notes: list[str]
) -> tuple[NDArray[np.int64] | None, bool]:
    """Return the values of the order, and whether they are the published order of the events of each user."""
    if roles.order is None:
        return None, False
    column = columns.of("_order")
    if column.null_count:
        raise DataError(f"column {roles.order!r}", f"{column.null_count:,} null values", "a number in every row")
    order = encode_keys(column)[0]
    if "order" not in roles.guessed:
        return order, True
    # A column of a usual name is the published order only if it numbers the events of each user in time.
    at = np.lexsort([order, columns.user])
    same = columns.user[at][1:] == columns.user[at][:-1]
    repeats = (order[at][1:] == order[at][:-1]) & same
    back = np.zeros(len(same), bool)
    if times is not None:
        own, there = np.asarray(times.data)[at], ~np.ma.getmaskarray(times)[at]
        back = same & there[1:] & there[:-1] & (own[1:] < own[:-1])
    if repeats.any() or back.mean() > 0.01:
        notes.append(f"column {roles.order!r} is not used as the order: it does not number the events of each user")
        return None, False
    return order, True


def _fill_times(
    columns: _Columns, times: Any, order: NDArray[np.int64] | None, ordered: bool, notes: list[str]
) -> tuple[_Columns, Any, NDArray[np.int64] | None]:
    """Return the rows with a time, or, if the order is given, all with the time of the event before or after."""
    mask = np.ma.getmaskarray(times)
    if not ordered or order is None or mask.all():
        notes.append(f"{int(mask.sum()):,} rows without a time are left out")
        kept = columns.keep(~mask)
        return kept, times[~mask], None if order is None else order[~mask]
    notes.append(f"{int(mask.sum()):,} rows without a time take that of the event before, or after")
    at = np.lexsort([order, columns.user])
    own, there, user = np.asarray(times.data)[at], ~mask[at], columns.user[at]
    index = np.arange(len(at))
    before = np.maximum.accumulate(np.where(there, index, -1))
    after = np.minimum.accumulate(np.where(there, index, len(at))[::-1])[::-1]
    has_before = (before >= 0) & (user[before] == user)
    closest = np.where(has_before, before, np.minimum(after, len(at) - 1))
    filled = np.where(user[closest] == user, own[closest], own[there].min())
    values = np.empty_like(own)
    values[at] = filled
    return columns, np.ma.MaskedArray(values, np.zeros(len(values), bool)), order


def _describe_span(kind: pa.DataType, low: int, high: int) -> list[str]:
    """Return a sentence with the first and the last time, if their unit can be inferred."""
    unit = "us" if pa.types.is_temporal(kind) else guess_unit(high)
    if unit is None or not (pa.types.is_temporal(kind) or pa.types.is_integer(kind)):
        return []
    first, last = (format_timestamp(to_milliseconds(one, unit))[:10] for one in (low, high))
    return [f"times from {first} to {last}"]


def _read_split(columns: _Columns, log: Relation, roles: ColumnRoles, at: NDArray[np.int64]) -> NDArray[np.int8] | None:
    if roles.split is None and SPLIT_COLUMN not in log.types:
        return None
    codes, keys = encode_keys(columns.of("_split"))
    table = np.array([SPLIT_NAMES.get(str(key).strip().lower(), -1) for key in keys] or [-1], np.int8)
    if (table < 0).any() and len(keys):
        odd = ", ".join(map(str, keys[table < 0][:5]))
        raise DataError(f"{log.where}: column {roles.split!r}", f"the split {odd}", "train, valid and test")
    return np.where(codes >= 0, table[codes], -1).astype(np.int8)[at]


def _read_lists(
    columns: _Columns, roles: ColumnRoles, keys: NDArray[Any], at: NDArray[np.int64], notes: list[str]
) -> tuple[dict[str, Lists], dict[str, Lists]]:
    items, times = {}, {}
    for column in roles.histories:
        values, offsets = _flatten(columns.of(f"f.{column}").take(pa.array(at)))
        codes = find_keys(values, keys)
        if len(codes) and (codes >= 0).mean() < _OVERLAP:
            notes.append(f"list column {column!r} is no history: few of its values are items of the log")
            continue
        items[column] = Lists(codes, offsets)
    for column in roles.history_times:
        values, offsets = _flatten(columns.of(f"f.{column}").take(pa.array(at)))
        times[column] = Lists(_read_times(pa.chunked_array([values])).data, offsets)
    return items, times


def _flatten(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    values = pc.list_flatten(column)
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return values, np.append(0, np.cumsum(lengths))
