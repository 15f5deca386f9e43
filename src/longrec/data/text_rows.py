"""Text files with declared columns: the SQL that reads them, and the search for the first invalid row.

The query that reads all files only detects that an error exists. The files are then read again, one by one, to locate
it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import duckdb

from longrec.data.file_format import FileFormat
from longrec.data.sql import literal, name, unreadable
from longrec.errors import DataError, LongRecError

_REJECTS = "_reject_errors"
# The engine silently ignores cells beyond the last column if they are null. This null string matches no cell.
_NO_NULL = "\x1f\x1eno cell reads so\x1e\x1f"
# A cast would round 5.7 and accept 1_000. An integer consists of digits, optionally followed by .0.
_NUMBERS = {
    "int": (r"\s*[+-]?[0-9]+(\.0+)?\s*", "BIGINT", "a whole number of at most 64 bits"),
    "float": (r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", "DOUBLE", "a number"),
}


def read_text(row_format: FileFormat, paths: list[Path], more: str = "") -> str:
    """Return SQL that reads every cell of text files as text. An empty cell is read as an empty string."""
    files = "[" + ", ".join(literal(str(path)) for path in paths) + "]"
    columns = "{" + ", ".join(f"{literal(column)}: 'VARCHAR'" for column in row_format.columns or ()) + "}"
    quote = literal(row_format.quote or "")
    escape = quote if row_format.escape is None else literal(row_format.escape)
    return (
        f"read_csv({files}, auto_detect=false, header={str(row_format.header).lower()}, "
        f"delim={literal(row_format.separator)}, quote={quote}, escape={escape}, nullstr={literal(_NO_NULL)}, "
        f"columns={columns}{more})"
    )


def select_typed(row_format: FileFormat, nulls: Sequence[str] = ()) -> str:
    """Return the SELECT list that casts every column and fills in defaults. An invalid number aborts the query.

    Args:
        nulls: texts that mean a missing value, besides the empty one.
    """
    return ", ".join(_typed_column(row_format, column, nulls) for column in row_format.columns or ())


def _typed_column(row_format: FileFormat, column: str, nulls: Sequence[str]) -> str:
    kind, quoted = (row_format.columns or {})[column], name(column)
    missing = f"{quoted} IN ({', '.join(literal(text) for text in ('', *nulls))})"
    sql = f"CASE WHEN {missing} THEN NULL ELSE {quoted} END"
    if kind in _NUMBERS:
        pattern, stored, _ = _NUMBERS[kind]
        sql = (
            f"CASE WHEN {missing} THEN NULL WHEN regexp_full_match({quoted}, {literal(pattern)}) "
            f"THEN {quoted}::{stored} ELSE error('no number') END"
        )
    if column in row_format.defaults and column not in row_format.packed:
        value = row_format.defaults[column]
        sql = f"coalesce({sql}, {literal(value) if isinstance(value, str) else f'{value!r}::{_NUMBERS[kind][1]}'})"
    return f"{sql} AS {quoted}"


def check_header(con: duckdb.DuckDBPyConnection, row_format: FileFormat, path: Path) -> None:
    """Raise an error if the first line of a file is not the declared column names.

    Raises:
        DataError: other names, or another order.
    """
    first = read_text(row_format.model_copy(update={"header": False}), [path])
    try:
        lines = con.execute(f"SELECT * FROM {first} LIMIT 1").fetchall()
    except duckdb.Error as error:
        raise text_fault(con, row_format, [path]) or unreadable(str(path), error) from None
    wanted = list(row_format.columns or ())
    header = [] if not lines else ["" if cell is None else cell for cell in lines[0]]
    if header != wanted:
        odd = next((pair for pair in zip(header, wanted) if pair[0] != pair[1]), None)
        raise DataError(
            f"{path}, line 1",
            "no line" if odd is None else f"the name {odd[0]!r} instead of {odd[1]!r}",
            f"a header with the names {', '.join(wanted)}",
            "correct rows.columns, or set header: false if the first line is a row",
        )


def text_fault(
    con: duckdb.DuckDBPyConnection, row_format: FileFormat, paths: list[Path], columns: str = "rows.columns"
) -> LongRecError | None:
    """Return the first error in the first invalid file, or None if all files are valid.

    Args:
        columns: what names the columns, for error messages.
    """
    for path in paths:
        fault = _line_fault(con, row_format, path, columns) or _value_fault(con, row_format, path)
        if fault is not None:
            return fault
    return None


def _line_fault(
    con: duckdb.DuckDBPyConnection, row_format: FileFormat, path: Path, columns: str
) -> LongRecError | None:
    more = f", store_rejects=true, rejects_table='{_REJECTS}', rejects_scan='_reject_scans', rejects_limit=1000"
    try:
        con.execute(f"SELECT count(COLUMNS(*)) FROM {read_text(row_format, [path], more)}").fetchall()
        rejects = con.execute(
            f"SELECT line, error_type, csv_line, error_message FROM {_REJECTS} ORDER BY line LIMIT 1"
        ).fetchall()
    except duckdb.Error as error:
        if "invalid state" in str(error):
            return DataError(
                str(path),
                "line ends or quotes that cannot be determined",
                f"one kind of line end per file, and cells quoted by {row_format.quote or 'nothing'}",
                "write the file again, or set rows.quote",
            )
        return unreadable(str(path), error)
    finally:
        con.execute(f"DROP TABLE IF EXISTS {_REJECTS}; DROP TABLE IF EXISTS _reject_scans")
    if not rejects:
        return None
    line, kind, text, message = rejects[0]
    text = text or ""
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    count = len(row_format.columns or ())
    cells = f"{count} cell{'s' if count != 1 else ''}"
    what, do = (
        f"{' '.join(str(message).split())} The line is {shown}",
        (
            "correct the line, or set rows.quote"
            if columns == "rows.columns"
            else "correct the line, or declare separator, quote and cells with rows"
        ),
    )
    if kind == "MISSING COLUMNS":
        held = re.search(r"Found: (\d+)", message)
        what = f"{f'{held[1]} of {cells}' if held else f'fewer than {cells}'} in {shown}"
    elif kind == "TOO MANY COLUMNS":
        what, do = (
            f"more than {cells} in {shown}",
            "correct the line; a cell that contains the separator must be quoted",
        )
    elif kind == "LINE SIZE OVER MAXIMUM":
        what, do = f"a line of more than 2,000,000 bytes, {shown}", "write the file as Parquet, which has no such bound"
    elif kind == "INVALID ENCODING":
        what, do = f"bytes that are not UTF-8 in {shown}", "write the file as UTF-8"
    expected = f"{cells} between separators {row_format.separator!r}, one per column of {columns}"
    return DataError(f"{path}, line {line}", what, expected, do)


def _value_fault(con: duckdb.DuckDBPyConnection, row_format: FileFormat, path: Path) -> DataError | None:
    first: tuple[int, str, str, str] | None = None
    for column, kind in (row_format.columns or {}).items():
        if kind not in _NUMBERS:
            continue
        pattern, stored, expected = _NUMBERS[kind]
        number = f"regexp_full_match(v, {literal(pattern)}) AND try_cast(v AS {stored}) IS NOT NULL"
        numbered = f"SELECT row_number() OVER () AS r, {name(column)} AS v FROM {read_text(row_format, [path])}"
        bad_values = con.execute(
            f"SELECT r, v FROM ({numbered}) WHERE v <> '' AND NOT ({number}) ORDER BY r LIMIT 1"
        ).fetchall()
        if bad_values and (first is None or bad_values[0][0] < first[0]):
            first = (*bad_values[0], column, expected)
    if first is None:
        return None
    row, value, column, expected = first
    return DataError(
        f"{path}, row {row}, column {column!r}",
        f"the value {value if len(value) <= 60 else value[:57] + '...'!r}",
        f"{expected}, as declared in rows.columns",
        "correct the file, or declare the column as text",
    )
