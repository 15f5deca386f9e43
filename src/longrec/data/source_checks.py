"""Checks that the input files have the columns of the schema, from the file headers only.

``prepare`` finds all other errors in the input, but possibly hours later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import duckdb

from longrec.data.headers import check_alike, check_distinct, read_header
from longrec.data.input_files import group_files_by_split
from longrec.data.settings import DataConfig, Source
from longrec.data.sql import hide_progress, unreadable, wrap_query
from longrec.data.text_rows import check_header
from longrec.errors import DataError, LongRecError, nearest
from longrec.features.schema import Schema

_SHOWN = 20
Need = tuple[str, str]
"""A config key, and the column that it refers to."""


def find_source_faults(config: DataConfig, schema: Schema) -> list[str]:
    """Return one message per missing column, and one per input that cannot be read.

    A column is missing if the input, or only some of its files, do not have it.

    Args:
        config: data section whose files exist.
    """
    faults: list[str] = []
    needs = {"log": [*row_needs(schema), *_config_needs(config, config.log)]}
    with duckdb.connect() as con:
        con.execute("SET threads=1")
        hide_progress(con)
        columns: dict[str, list[str]] = {}
        partial: set[str] = set()
        for role, source in sources(config):
            try:
                columns[role], is_partial = columns_of(con, source)
                partial |= {role} if is_partial else set()
            except LongRecError as error:
                faults.append(f"data.{role}: {_one_line(error)}")
        for role in ("user", "item"):
            own = f"{role}s"
            needs |= _entity_needs(schema, role, columns, needs["log"], getattr(config, own))
        for role, source in sources(config):
            if role in columns and role not in partial:
                named = "the log" if role == "log" else f"the table of {role}"
                faults += _find_missing_columns(needs.get(role, []), columns[role], f"{named} ({_shorten(source)})")
                faults += _find_uneven_files(con, source, needs.get(role, []), f"data.{role}")
        faults += _find_unused_casts(schema, columns.values()) if not faults and not partial else []
    return list(dict.fromkeys(faults))


def _find_unused_casts(schema: Schema, columns: Iterable[list[str]]) -> list[str]:
    named = {column for own in columns for column in own}
    return [
        f"data.schema.casts.{column}: no column {column!r} in any input"
        + (f"; did you mean {near!r}?" if (near := nearest(column, named)) else "")
        for column in schema.casts
        if column not in named
    ]


def sources(config: DataConfig) -> Iterator[tuple[str, Source]]:
    """Yield the configured inputs with their roles: log, users and items."""
    for role in ("log", "users", "items"):
        source: Source | None = getattr(config, role)
        if source is not None:
            yield role, source


def columns_of(con: duckdb.DuckDBPyConnection, source: Source) -> tuple[list[str], bool]:
    """Return the column names of an input without reading its rows, and whether it may have more of them.

    A query is planned, not run. Of a large JSON file only the first rows are read.

    Raises:
        DataError: an input that cannot be read.
    """
    if source.query is not None:
        try:
            query = wrap_query(con, source.query, str(source))
            return [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM ({query})").fetchall()], False
        except duckdb.Error as error:
            raise unreadable(str(source), error) from None
    if source.frame is not None:
        return list(source.frame.columns), False
    files, is_partial = [path for own in group_files_by_split(source).values() for path in own], False
    if source.rows is not None and source.rows.columns is not None:
        if source.rows.header:
            for path in files:
                check_header(con, source.rows, path)
        names = [column for column in source.rows.columns if column not in source.rows.packed]
    else:
        headers = [read_header(con, path) for path in files]
        names = list(dict.fromkeys(column for header in headers for column in header.kinds))
        is_partial = any(header.partial for header in headers)
    if source.rows is not None:
        names += [*source.rows.list_packed_columns(), *([source.rows.number] if source.rows.number is not None else [])]
    return names, is_partial


def row_needs(schema: Schema) -> list[Need]:
    """Return the columns of the log that the schema uses."""
    keys = {"data.schema.user": schema.user, "data.schema.item": schema.item}
    needs = [(location, column) for location, column in keys.items() if column is not None]
    if schema.time is not None:
        needs.append(("data.schema.time", schema.time.column))
        if schema.time.available_at is not None:
            needs.append(("data.schema.time.available_at", schema.time.available_at))
        if schema.time.order is not None:
            needs.append(("data.schema.time.order", schema.time.order))
    if schema.request:
        needs.append(("data.schema.request", schema.request))
    if schema.candidate:
        needs.append(("data.schema.candidate", schema.candidate))
    if schema.label is not None:
        needs.append(("data.schema.label", schema.label.column))
    for name, feature in schema.features.items():
        if schema.in_row(name) and feature.kind not in ("calendar", "embedding"):
            needs += [(f"data.schema.features.{name}", column) for column in schema.columns(name)]
            if feature.available_at:
                needs.append((f"data.schema.features.{name}.available_at", feature.available_at))
    for name, history in schema.histories.items():
        needs += [(f"data.schema.histories.{name}.where", column) for column in history.where]
        needs += [(f"data.schema.histories.{name}.columns.{of}", c) for of, c in (history.columns or {}).items()]
    return needs


def _config_needs(config: DataConfig, source: Source) -> list[Need]:
    """Return the columns of the log that other keys of the data section use."""
    needs = [("data.split.column", config.split.column)] if config.split.column is not None else []
    needs += [("data.weights", column) for column in config.weights]
    if source.rows is not None and source.rows.columns is None:
        packed_columns = source.rows.list_packed_columns()
        needs += [("data.log.rows.packed", column) for column in source.rows.packed]
        needs += [("data.log.rows.defaults", column) for column in source.rows.defaults if column not in packed_columns]
    return needs


def _entity_needs(
    schema: Schema, role: str, columns: Mapping[str, list[str]], of_log: list[Need], own_source: Source | None
) -> dict[str, list[Need]]:
    """Return the columns that features of users or items read, per input.

    A column is read from the log if only the log has it or if there is no entity table, else from the entity table.
    """
    key, table = getattr(schema, role), f"{role}s"
    of_log, own = list(of_log), [(f"data.schema.{role}", key)] if own_source is not None and key is not None else []
    if own_source is not None and own_source.as_of is not None:
        own.append((f"data.{table}.as_of", own_source.as_of))
    for name, feature in schema.features.items():
        if schema.side(name) != role or feature.kind == "embedding":
            continue
        for column in schema.columns(name):
            if column == key:
                continue
            location = (f"data.schema.features.{name}", column)
            if own_source is None or (column in columns.get("log", ()) and column not in columns.get(table, ())):
                of_log.append(location)
            else:
                own.append(location)
    return {"log": of_log, table: own}


def _find_missing_columns(needs: list[Need], columns: list[str], named: str) -> list[str]:
    faults = []
    for location, column in needs:
        if column not in columns:
            near = nearest(column, columns)
            has = ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
            hint = f"did you mean {near!r}?" if near else f"it has {has}"
            faults.append(f"{location}: no column {column!r} in {named}; {hint}")
    return faults


def _find_uneven_files(con: duckdb.DuckDBPyConnection, source: Source, needs: list[Need], location: str) -> list[str]:
    """Return an error message if some files lack a column that others have, or have it with another type."""
    if not source.patterns() or (source.rows is not None and source.rows.columns is not None):
        return []
    files = [path for own in group_files_by_split(source).values() for path in own]
    packed_columns = source.rows.list_packed_columns() if source.rows is not None else {}
    wanted: dict[str, str] = {}
    for reader, column in needs:
        wanted.setdefault(packed_columns.get(column, column), reader.removeprefix("data.schema."))
    try:
        headers = [read_header(con, path) for path in files]
        check_distinct(headers, wanted)
        check_alike(_shorten(source), headers if len(files) > 1 else [], wanted)
    except DataError as error:
        return [f"{location}: {error.found}; expected {error.expected}"]
    return []


def _shorten(source: Source) -> str:
    text = str(source)
    return text if len(text) <= 120 else text[:117] + "..."


def _one_line(error: LongRecError) -> str:
    sentences = [f"{error.where}: {error.found}", *([f"expected {error.expected}"] if error.expected else [])]
    return " ".join("; ".join([*sentences, *([error.do] if error.do else [])]).split())
