"""Text files with a header (CSV, TSV) as one Parquet file of text, and the type of each column from all its values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import duckdb

from longrec.data.casts import ColumnTypes
from longrec.data.file_format import FileFormat
from longrec.data.sql import literal, name, unreadable
from longrec.data.text_dialect import Dialect, distinguish, read_dialect
from longrec.data.text_rows import read_text, text_fault
from longrec.errors import DataError

_FEW = 2_000
"""Number of rows that rule out most types before all rows are read."""
_NUMBER = r" *[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *"
_NOT_FINITE = r" *[+-]?(?i:nan|inf|infinity) *"
_WHOLE = r" *-?(?:0|[1-9][0-9]{0,14})(?:\.0*)? *"
# A column has the first type that all its values have. A number that would lose digits or zeros as a number is text.
_CHECKS = {
    "BIGINT": "try_cast({v} AS BIGINT)::VARCHAR = trim({v})",
    "WHOLE": "regexp_full_match({v}, " + literal(_WHOLE) + ")",
    "BOOLEAN": "lower(trim({v})) IN ('true', 'false')",
    "DOUBLE": "regexp_full_match({v}, " + literal(f"{_NUMBER}|{_NOT_FINITE}") + ")",
}
_SQL = {"BIGINT": "{v}::BIGINT", "WHOLE": "{v}::DOUBLE::BIGINT", "BOOLEAN": "{v}::BOOLEAN", "DOUBLE": "{v}::DOUBLE"}
_OF_IDS, _OF_OTHERS = ("BIGINT", "WHOLE", "BOOLEAN"), ("BIGINT", "BOOLEAN", "DOUBLE")


def write_text_files(
    con: duckdb.DuckDBPyConnection,
    where: str,
    files: Mapping[str | None, Sequence[Path]],
    target: Path,
    *,
    nulls: Sequence[str],
    declared: ColumnTypes,
    split_column: str,
) -> str:
    """Write text files to one Parquet file, and return SQL that reads it with the type of each column.

    Args:
        where: name of the input in error messages.
        files: ordered files per split.
        nulls: texts that mean a missing value, besides the empty one.
        declared: declared types of columns.
        split_column: name of the column to add with the split of each row, if there are splits.

    Raises:
        DataError: a line with a wrong number of cells, or a file that is no text.
    """
    groups = list(_group_files(files))
    if not groups:
        raise DataError(where, "an empty file", "a first line with the column names", "write the file again")
    missing = ", ".join(literal(text) for text in ("", *nulls))
    queries = []
    for split, dialect, paths in groups:
        row_format = _build_format(dialect)
        cells = [
            f"CASE WHEN {c} IN ({missing}) THEN NULL ELSE {c} END AS {c}" for c in map(name, row_format.columns or ())
        ]
        own = [] if split is None else [f"{literal(split)} AS {name(split_column)}"]
        queries.append(f"SELECT {', '.join([*cells, *own])} FROM {read_text(row_format, paths)}")
    rows_per_group = min(dialect.rows_per_group for _, dialect, _ in groups)
    kind = f"FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE {rows_per_group}"
    try:
        con.execute(f"COPY ({' UNION ALL BY NAME '.join(queries)}) TO {literal(str(target))} ({kind})")
    except duckdb.Error as error:
        raise _find_fault(con, groups) or unreadable(where, error) from None
    rows = f"read_parquet({literal(str(target))})"
    return _select_typed(con, rows, {*declared.casts, *declared.separated, split_column}, declared.ids)


def _group_files(files: Mapping[str | None, Sequence[Path]]) -> Iterator[tuple[str | None, Dialect, list[Path]]]:
    """Yield consecutive files of one split and dialect. Files without any text have no rows, and are left out."""
    for split, paths in files.items():
        dialects = [(read_dialect(path), path) for path in paths]
        filled = [(dialect, path) for dialect, path in dialects if dialect.names]
        for _, group in groupby(filled, key=lambda pair: (pair[0].names, pair[0].separator, pair[0].escape)):
            own = list(group)
            yield split, own[0][0], [path for _, path in own]


def _build_format(dialect: Dialect) -> FileFormat:
    """Return the row format of a dialect. The names of a header need not be those that a config may declare."""
    return FileFormat.model_construct(
        columns=dict.fromkeys(distinguish(dialect.names), "text"),
        header=True,
        separator=dialect.separator,
        escape=dialect.escape,
    )


def _find_fault(
    con: duckdb.DuckDBPyConnection, groups: Sequence[tuple[str | None, Dialect, list[Path]]]
) -> Exception | None:
    faults = (text_fault(con, _build_format(dialect), paths, "the first line") for _, dialect, paths in groups)
    return next((fault for fault in faults if fault is not None), None)


def _select_typed(con: duckdb.DuckDBPyConnection, rows: str, as_text: Collection[str], ids: Collection[str]) -> str:
    """Return SQL that casts each column of text to the first type that all its values have."""
    columns = [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()]
    possible: dict[str, tuple[str, ...]] = {c: _OF_IDS if c in ids else _OF_OTHERS for c in columns if c not in as_text}
    for read in (f"(SELECT * FROM {rows} LIMIT {_FEW})", rows):
        possible = _keep_possible(con, read, possible)
    chosen = {column: kinds[0] for column, kinds in possible.items()}
    values = [f"{_write(_SQL[chosen[c]], c)} AS {name(c)}" if c in chosen else name(c) for c in columns]
    return f"(SELECT {', '.join(values)} FROM {rows})"


def _keep_possible(
    con: duckdb.DuckDBPyConnection, rows: str, possible: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the types that all values of a column have. A column without values stays text."""
    tests = [(column, kind) for column, kinds in possible.items() for kind in kinds]
    if not tests:
        return {}
    checks = [
        f"count(*) FILTER (WHERE {name(column)} IS NOT NULL AND ({_write(_CHECKS[kind], column)}) IS NOT true)"
        for column, kind in tests
    ]
    checks += [f"count({name(column)})" for column in possible]
    result = con.execute(f"SELECT {', '.join(checks)} FROM {rows}").fetchall()[0]
    faults, counts = dict(zip(tests, result)), dict(zip(possible, result[len(tests) :]))
    kept = {c: tuple(kind for kind in kinds if not faults[c, kind]) for c, kinds in possible.items()}
    return {column: kinds for column, kinds in kept.items() if kinds and counts[column]}


def _write(sql: str, column: str) -> str:
    return sql.replace("{v}", name(column))
