"""Sorting of checked events by (user, time, order of the file) into the Parquet file of a sorted log.

Ties keep the order of the file, or that of the column ``time.order``.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from longrec.data.casts import INTEGERS, WIDE_INTEGERS, ColumnTypes
from longrec.data.relation import Relation, literal, name, unreadable
from longrec.data.sorted_log import AVAILABLE_AT, ITEM, ORDER, REQUEST_TIME, ROW, TIME, USER, chunk_rows
from longrec.data.timestamps import Timestamps, check_available_at, read_timestamps, takes_format
from longrec.errors import DataError
from longrec.features.schema import Schema

_DROP = "remove time.format, which timestamp types do not need"


def event_columns(schema: Schema) -> dict[str, str]:
    """Return a dict from each required raw column, other than user, item and time, to the setting that uses it."""
    needed = {} if schema.label is None else {schema.label.column: "the label"}
    if schema.request:
        needed.setdefault(schema.request, "the request")
    if schema.candidate:
        needed.setdefault(schema.candidate, "the candidates")
    for feature_name, feature in schema.features.items():
        if schema.in_row(feature_name) and feature.kind != "calendar":
            for column in schema.columns(feature_name):
                what = "weights of" if column == feature.weights else "feature"
                needed.setdefault(column, f"{what} {feature_name}")
            if feature.available_at:
                needed.setdefault(feature.available_at, f"available_at of {feature_name}")
    for history_name, history in schema.histories.items():
        for column in history.where:
            needed.setdefault(column, f"history {history_name}")
        for of, column in (history.columns or {}).items():
            needed.setdefault(column, f"history {history_name}, {of}")
    return needed


def list_column_types(schema: Schema) -> ColumnTypes:
    """Return what a schema says about the types of raw columns."""
    ids, others, separated = {schema.user, schema.item}, set[str](), set[str]()
    for feature_name, feature in schema.features.items():
        columns = schema.columns(feature_name)
        (ids if feature.kind in ("id", "cross", "multi_id") else others).update(columns)
        if feature.separator is not None or feature.kind == "lookup":
            separated.add(feature.map or columns[0])
            separated.update([feature.weights] if feature.weights else [])
    for history in schema.histories.values():
        separated.update((history.columns or {}).values() if history.separator is not None else ())
    return ColumnTypes(schema.casts, frozenset(c for c in ids - others if c is not None), frozenset(separated))


def timestamp_columns(schema: Schema) -> list[str]:
    """Return the raw timestamp columns: the event time, then the availability columns."""
    if schema.time is None:
        return []
    available_at = [feature.available_at for feature in schema.features.values()]
    named = [schema.time.column, schema.time.available_at, *available_at]
    return list(dict.fromkeys(column for column in named if column is not None))


def sort_events(log: Relation, schema: Schema, columns: list[str], target: Path, *, numbered: bool = False) -> Schema:
    """Write the sorted events: ``_user _item _time`` (``_moment``, ``_available``, ``_order``) and the raw columns.

    Args:
        numbered: also write ``_row``, the number of each row in the input, from 1.

    Returns:
        The schema, with the detected time unit if the times are so small that their size does not determine it.

    Raises:
        DataError: null users or times, invalid ids, invalid or ambiguous times.
    """
    user, item = "row_number() OVER () - 1", "NULL::BIGINT"
    if schema.user is not None:
        user = f"{name(schema.user)}::{log.key_type(schema.user)}"
        log.no_nulls(schema.user, "user")
    if schema.item is not None:
        item = f"{name(schema.item)}::{log.key_type(schema.item)}"
    times, event = "0::BIGINT", None
    if schema.time is not None:
        log.no_nulls(schema.time.column, "time")
        event = read_timestamps(log, schema.time.column, schema.time)
        times = event.sql
    late = _read_late_columns(log, schema, event)
    available_at = {f.available_at for f in schema.features.values() if f.available_at}
    raw = "".join(f", {late[c].sql if c in available_at else name(c)} AS {name('c.' + c)}" for c in columns)
    if schema.time is not None and schema.time.available_at is not None:
        raw += f", {late[schema.time.available_at].sql} AS {AVAILABLE_AT}"
    order = None if schema.time is None else schema.time.order
    if order is not None:
        check_order(log, order)
        raw += f", {name(order)}::BIGINT AS {ORDER}"
    inner = (
        f"SELECT {user} AS {USER}, {item} AS {ITEM}, {times} AS {TIME}{raw}, "
        f"row_number() OVER () AS {ROW} FROM {log.view}"
    )
    request_time = ""
    if schema.request:
        request = name("c." + schema.request)
        began = f"min({TIME}) OVER (PARTITION BY {USER}, {request})"
        request_time = f", CASE WHEN {request} IS NULL THEN {TIME} ELSE {began} END AS {REQUEST_TIME}"
    by = ", ".join([USER, TIME, *([] if order is None else [ORDER]), ROW])
    selected = "*" if numbered else f"* EXCLUDE ({ROW})"
    sql = f"SELECT {selected}{request_time} FROM ({inner}) ORDER BY {by}"
    try:
        log.con.execute(
            f"COPY ({sql}) TO {literal(str(target))} (FORMAT parquet, COMPRESSION snappy, "
            f"ROW_GROUP_SIZE {chunk_rows(schema)})"
        )
    except duckdb.Error as error:
        raise unreadable(log.where, error) from None
    if schema.time is not None and schema.time.unit == "auto" and event is not None and event.near_1970:
        return schema.model_copy(update={"time": schema.time.model_copy(update={"unit": event.unit})})
    return schema


def check_order(log: Relation, column: str) -> None:
    """Raise an error if a column that orders events with equal timestamps has nulls, or no whole numbers of 64 bits."""
    kind, where = log.types[column], f"{log.where}: column {column!r}"
    if kind not in INTEGERS - {"BOOLEAN"} and kind not in WIDE_INTEGERS:
        raise DataError(where, f"values of type {kind}, as time.order", "whole numbers", "cast the column to integers")
    log.no_nulls(column, "whole number")
    if kind not in INTEGERS and (top := log.one(f"SELECT max(abs({name(column)})) FROM {log.view}") or 0) >= 2**63:
        raise DataError(where, f"the number {top}, as time.order", "whole numbers of 64 bits", "number the events anew")


def _read_late_columns(log: Relation, schema: Schema, event: Timestamps | None) -> dict[str, Timestamps]:
    """Return the SQL readers of the event time and of the availability columns."""
    if schema.time is None or event is None:
        return {}
    readers = {schema.time.column: event}
    for column in timestamp_columns(schema)[1:]:
        readers[column] = read_timestamps(log, column, schema.time)
        check_available_at(log, column, readers[column], event)
    time = schema.time
    if time.format is not None and not any(takes_format(log, column) for column in readers):
        kind = log.types[time.column]
        raise DataError(
            f"{log.where}: column {time.column!r}",
            f"times of type {kind}",
            "text or digits, which time.format parses",
            _DROP,
        )
    return readers
