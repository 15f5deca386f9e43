"""The one big job: events checked and sorted by (user, time, order of the file) into a scratch Parquet file.

Ties keep the order of the file. A bigger engine may write the same file; everything after reads only that.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from longrec.data.read import Relation, literal, name, unreadable
from longrec.errors import DataError
from longrec.features.schema import Schema

USER, ITEM, TIME, MOMENT, AVAILABLE_AT = "_user", "_item", "_time", "_moment", "_available"
_SCALE = {"s": (1_000, 1), "ms": (1, 1), "us": (1, 1_000), "ns": (1, 1_000_000), "step": (1, 1)}
_MAGNITUDES = (("s", 10**8, 10**11), ("ms", 10**11, 10**14), ("us", 10**14, 10**17), ("ns", 10**17, 2**63))


def event_columns(schema: Schema) -> dict[str, str]:
    """Raw columns of the log that are needed besides user, item and time -> what asks for them."""
    needed = {schema.label.column: "the label"}
    if schema.request:
        needed.setdefault(schema.request, "the request")
    for feature_name, feature in schema.features.items():
        if schema.in_row(feature_name) and feature.kind != "time":
            for column in schema.columns(feature_name):
                what = "weights of" if column == feature.weights else "feature"
                needed.setdefault(column, f"{what} {feature_name}")
            if feature.known_at:
                needed.setdefault(feature.known_at, f"known_at of {feature_name}")
    for history_name, history in schema.histories.items():
        for column in history.where:
            needed.setdefault(column, f"history {history_name}")
        for of, column in (history.columns or {}).items():
            needed.setdefault(column, f"history {history_name}, {of}")
    return needed


def chunk_rows(schema: Schema) -> int:
    """Rows that are written and read together: fewer where every row carries its histories, ten times as wide."""
    return 50_000 if schema.prejoined else 500_000


def sort_events(log: Relation, schema: Schema, columns: list[str], target: Path) -> None:
    """Write the sorted events: ``_user _item _time`` (``_moment``, ``_available``) beside the raw columns.

    Raises:
        DataError: null users or times, ids that are none, times in mixed units.
    """
    user, item = name(schema.user), name(schema.item)
    user_type, item_type = log.key_type(schema.user), log.key_type(schema.item)
    log.no_nulls(schema.user, "user")
    times = "0::BIGINT"
    if schema.time is not None:
        log.no_nulls(schema.time.column, "time")
        times = time_sql(log, schema.time.column, schema.time.unit)
    for known_at in {f.known_at for f in schema.features.values() if f.known_at}:
        assert schema.time is not None
        time_sql(log, known_at, schema.time.unit)
    raw = "".join(f", {_raw(log, schema, column)}" for column in columns)
    if schema.time is not None and schema.time.available_at is not None:
        raw += f", {time_sql(log, schema.time.available_at, schema.time.unit)} AS {AVAILABLE_AT}"
    inner = (
        f"SELECT {user}::{user_type} AS {USER}, {item}::{item_type} AS {ITEM}, {times} AS {TIME}{raw}, "
        f"row_number() OVER () AS _row FROM {log.view}"
    )
    moment = ""
    if schema.request:
        request = name("c." + schema.request)
        began = f"min({TIME}) OVER (PARTITION BY {USER}, {request})"
        moment = f", CASE WHEN {request} IS NULL THEN {TIME} ELSE {began} END AS {MOMENT}"
    sql = f"SELECT * EXCLUDE (_row){moment} FROM ({inner}) ORDER BY {USER}, {TIME}, _row"
    try:
        log.con.execute(
            f"COPY ({sql}) TO {literal(str(target))} (FORMAT parquet, COMPRESSION snappy, "
            f"ROW_GROUP_SIZE {chunk_rows(schema)})"
        )
    except duckdb.Error as error:
        raise unreadable(log.where, error) from None


def _raw(log: Relation, schema: Schema, column: str) -> str:
    known = any(f.known_at == column for f in schema.features.values())
    if known and schema.time is not None:
        return f"{time_sql(log, column, schema.time.unit)} AS {name('c.' + column)}"
    return f"{name(column)} AS {name('c.' + column)}"


def time_sql(log: Relation, column: str, unit: str) -> str:
    """SQL for whole milliseconds UTC (or steps) of a time column.

    Raises:
        DataError: text that is no time, a unit that does not fit the values, or values of two magnitudes.
    """
    kind, quoted, where = log.types[column], name(column), f"{log.where}: column {column!r}"
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        if unit == "step":
            raise DataError(where, f"times of type {kind}", "whole numbers for unit: step")
        return f"epoch_ms({quoted}::TIMESTAMP)" if kind != "TIMESTAMP WITH TIME ZONE" else f"epoch_ms({quoted})"
    if kind == '"NULL"':
        return "NULL::BIGINT"
    if kind == "VARCHAR":
        wrong = f"{quoted} IS NOT NULL AND try_cast({quoted} AS TIMESTAMP) IS NULL"
        odd = log.one(f"SELECT {quoted} FROM {log.view} WHERE {wrong} LIMIT 1")
        if odd is not None:
            raise DataError(where, f"the text {odd!r}", "a moment such as 2026-01-31T12:00:00, or whole numbers")
        return f"epoch_ms({quoted}::TIMESTAMP)"
    if kind not in (
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
        "FLOAT",
        "DOUBLE",
    ):
        raise DataError(where, f"times of type {kind}", "whole numbers, timestamps or ISO text")
    # What is no finite number counts as null: refused as a time of an event, never as the moment feedback is known.
    finite = f"try_cast({quoted} AS BIGINT) IS NOT NULL"
    low, high = log.row(f"SELECT min({quoted}), max({quoted}) FROM {log.view} WHERE {finite}") or (None, None)
    if low is None:
        return f"try_cast({quoted} AS BIGINT)"
    known = _unit(int(low), int(high), unit, where)
    times, divide = _SCALE[known]
    if kind in ("FLOAT", "DOUBLE"):
        return f"try_cast(round({quoted} * {times} / {divide}) AS BIGINT)"
    return f"({quoted}::BIGINT * {times}) // {divide}"


def _unit(low: int, high: int, unit: str, where: str) -> str:
    if unit == "step":
        return unit
    found = [_magnitude(low), _magnitude(high)]
    if found[0] != found[1]:
        raise DataError(
            where,
            f"times in mixed units: {low} reads as {found[0] or 'near 1970'}, {high} as {found[1] or 'near 1970'}",
            "one unit in the whole column",
            "bring them to one unit; set time.unit: step if these are plain counters",
        )
    if unit != "auto" and found[1] is not None and found[1] != unit:
        raise DataError(
            where, f"values up to {high}, which read as {found[1]}", f"{unit}, as the schema says", "correct time.unit"
        )
    return unit if unit != "auto" else found[1] or "s"


def _magnitude(value: int) -> str | None:
    return next((unit for unit, low, high in _MAGNITUDES if low <= abs(value) < high), None)
