"""Reading of an event log for a server that records it: raw values, and times as ``prepare`` reads them."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from longrec.config import parse
from longrec.data.casts import INTEGERS, WIDE_INTEGERS, is_text
from longrec.data.relation import Relation, connect, name
from longrec.data.settings import DataConfig
from longrec.data.sort import event_columns, list_column_types
from longrec.data.sql import unreadable
from longrec.data.timestamps import check_available_at, read_timestamps
from longrec.features.logged_rows import LoggedRows
from longrec.features.schema import Schema
from longrec.features.timestamp_grammar import NUMBER

_NUMBER, _USER, _ITEM, _TIME, _AVAILABLE, _REQUEST = "_number", "_user", "_item", "_time", "_available", "_request"
_NUMERIC = ("numeric", "bucketized")
_RAW, _SINCE = "c.", "t."
"""Before a column of the log: its raw values, or its times."""


class LoggedEvents:
    """An event log in the columns of a schema, in the order in which its events became available.

    Columns may have the names that ``/events`` has for them: ``user``, ``item``, ``at``, ``label``. Rows of candidates,
    which are no events, are left out.

    Args:
        log: the opened log.
        schema: schema of the bundle that is served.
        texts: columns whose values the bundle has as text.
        arrival: column of the time from which an event is visible, for a schema without ``time.available_at``.

    Attributes:
        columns: columns of the log that are read.
        count: number of rows.

    Raises:
        DataError: if a column of the user, the item or the time is missing, or has values of a wrong type.
    """

    def __init__(self, log: Relation, schema: Schema, texts: Collection[str], arrival: str) -> None:
        assert schema.user is not None
        assert schema.item is not None
        assert schema.time is not None  # as histories of events require
        self._log, self._schema, self._time = log, schema, schema.time
        self._add_names()
        keys = {schema.user: "the user", schema.item: "the item", schema.time.column: "the time"}
        log.need(keys)
        row = event_columns(schema)
        column = schema.time.available_at or (arrival if arrival not in row else None)
        self._available = column if column in log.types else None
        self._read = [column for column in row if column in log.types]
        own = [] if self._available is None else [self._available]
        self.columns = list(dict.fromkeys([*keys, *own, *self._read]))
        times = {f.available_at for f in schema.features.values()} | {schema.request, schema.candidate, *keys}
        values = [column for column in self._read if column not in times]
        self._feedback = [column for column in values if schema.is_feedback_column(column)]
        self._context = [column for column in values if column not in self._feedback]
        of_columns = {
            schema.column(own): one.available_at for own, one in schema.features.items() if one.available_at is not None
        }
        self._feedback_times = {column: of_columns[column] for column in self._feedback if column in of_columns}
        numbers = {c for name, one in schema.features.items() if one.kind in _NUMERIC for c in schema.columns(name)}
        if schema.label is not None and schema.label.equals is None:
            numbers.add(schema.label.column)
        self._numbers = {column for column in self.columns if column in numbers and is_text(log.types[column])}
        self._texts = [c for c in texts if log.types.get(c) in INTEGERS | WIDE_INTEGERS]
        candidate = schema.candidate if schema.candidate in log.types else None
        self._where = "" if candidate is None else f"WHERE coalesce({name(candidate)}::DOUBLE, 0) <= 0"
        self.count = int(log.one(f"SELECT count(*) FROM {log.view} {self._where}"))

    def _add_names(self) -> None:
        """Add the columns that the log has under the names of an event."""
        schema, log = self._schema, self._log
        short = {"user": schema.user, "item": schema.item, "at": self._time.column, "label": schema.label_column}
        more = {
            column: own
            for own, column in short.items()
            if column is not None and column not in log.types and own in log.types
        }
        if more:
            added = ", ".join(f"{name(own)} AS {name(column)}" for column, own in more.items())
            log.con.execute(f"CREATE VIEW {log.view}_named AS SELECT *, {added} FROM {log.view}")
            log.view += "_named"
            log.types |= {column: log.types[own] for column, own in more.items()}

    def read(self, size: int) -> Iterator[LoggedRows]:
        """Yield all rows, up to ``size`` at once."""
        try:
            with self._log.con.sql(self._select()).to_arrow_reader(size) as reader:
                for batch in reader:
                    yield self._build_rows(batch)
        except duckdb.Error as error:
            raise unreadable(self._log.where, error) from None

    def _select(self) -> str:
        """Return the SQL of the rows, with keys and times as a server has them."""
        log, schema = self._log, self._schema
        assert schema.user is not None
        assert schema.item is not None
        event = read_timestamps(log, self._time.column, self._time)
        computed = {
            _USER: f"{name(schema.user)}::{self._get_key_type(schema.user)}",
            _ITEM: f"{name(schema.item)}::{self._get_key_type(schema.item)}",
            _TIME: event.sql,
        }
        for column in dict.fromkeys([self._available, *self._feedback_times.values()]):
            if column in log.types:
                times = read_timestamps(log, str(column), self._time)
                check_available_at(log, str(column), times, event)
                computed[f"{_SINCE}{column}"] = times.sql
        computed |= {f"{_RAW}{column}": self._read_value(column) for column in self.columns}
        selected = ", ".join(f"{sql} AS {name(column)}" for column, sql in computed.items())
        visible = _TIME
        if self._available is not None:
            visible = f"greatest({_TIME}, coalesce({name(_SINCE + self._available)}, {_TIME}))"
        more = f"{visible} AS {_AVAILABLE}"
        if schema.request in log.types:
            page = name(f"{_RAW}{schema.request}")
            began = f"min({_TIME}) OVER (PARTITION BY {_USER}, {page})"
            more += f", CASE WHEN {page} IS NULL THEN {_TIME} ELSE {began} END AS {_REQUEST}"
        numbered = f"SELECT *, row_number() OVER () AS {_NUMBER} FROM {log.view}"
        rows = f"SELECT {_NUMBER}, {selected} FROM ({numbered}) {self._where}"
        return f"SELECT *, {more} FROM ({rows}) ORDER BY {_AVAILABLE}, {_NUMBER}"

    def _get_key_type(self, column: str) -> str:
        return "VARCHAR" if column in self._texts else self._log.key_type(column)

    def _read_value(self, column: str) -> str:
        """Return the SQL of a raw value in a type that an event may have."""
        to = "VARCHAR" if column in self._texts else "DOUBLE" if self._log.types[column].startswith("DECIMAL") else None
        return name(column) if to is None else f"{name(column)}::{to}"

    def _build_rows(self, batch: pa.RecordBatch) -> LoggedRows:
        def read(columns: Collection[str]) -> dict[str, list[Any]]:
            return {column: _list_values(batch[f"{_RAW}{column}"], column in self._numbers) for column in columns}

        times, none = batch.schema.names, [None] * len(batch)
        since = {
            column: batch[f"{_SINCE}{at}"].to_pylist() if f"{_SINCE}{at}" in times else none
            for column, at in self._feedback_times.items()
        }
        keys = (_NUMBER, _USER, _ITEM, _TIME, _AVAILABLE)
        numbers, users, items, at, visible = (batch[column].to_pylist() for column in keys)
        table = pa.table({column: batch[f"{_RAW}{column}"] for column in self.columns})
        requests = batch[_REQUEST].to_pylist() if _REQUEST in times else None
        context, feedback = read(self._context), read(self._feedback)
        return LoggedRows(numbers, users, items, at, visible, context, feedback, since, table, requests)


@contextlib.contextmanager
def open_logged_events(log: Any, schema: Schema, texts: Collection[str], arrival: str) -> Iterator[LoggedEvents]:
    """Open an event log: a path or glob of files, a mapping as ``data.log`` of a config, or a frame.

    Args:
        schema, texts, arrival: as of ``LoggedEvents``.

    Raises:
        ConfigError: if it is none of these.
        DataError: if it cannot be read.
    """
    config = parse(DataConfig, {"log": log}, "the event log")
    with contextlib.ExitStack() as closing:
        scratch = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="longrec-")))
        con = closing.enter_context(contextlib.closing(connect(config, scratch)))
        yield LoggedEvents(Relation(con, "log", config.log, scratch, list_column_types(schema)), schema, texts, arrival)


def _list_values(column: pa.Array, is_number: bool) -> list[Any]:
    """Return the values of a column. NaN, which JSON cannot hold, is a missing value.

    Args:
        is_number: the text of a number is one. Other text stays, so that its row is refused and no other.
    """
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    values: list[Any] = column.to_pylist()
    return list(map(_read_number, values)) if is_number else values


def _read_number(text: str | None) -> int | float | str | None:
    """Return the number of a text, or the text.

    >>> _read_number("3"), _read_number("0.5"), _read_number("many")
    (3, 0.5, 'many')
    """
    if text is None or not re.fullmatch(NUMBER, text):
        return text
    return int(text) if re.fullmatch(r" *[+-]?[0-9]+ *", text) else float(text)
