"""SQL literals and identifiers, and conversion of DuckDB errors to errors of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longrec.errors import DataError, LongRecError
from longrec.resources import resource_error

if TYPE_CHECKING:
    import duckdb


def literal(text: str) -> str:
    """Return text as a quoted SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def name(column: str) -> str:
    """Return a column name as a quoted SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


def unreadable(where: str, error: duckdb.Error) -> LongRecError:
    """Return a DuckDB error as an error of this package: a resource error (memory, disk), else an input error."""
    if (ordinary := resource_error(error, where)) is not None:
        return ordinary
    # The text after LINE quotes the SQL statement of this package.
    lines = [line.strip() for line in str(error).partition("\nLINE ")[0].splitlines() if line.strip()]
    text = " ".join(lines[:4])
    return DataError(
        where,
        f"cannot be read: {text[:400]}",
        "a complete Parquet, CSV, JSON or Arrow file, or a valid query",
        "write the file again, or correct the query",
    )


def hide_progress(con: duckdb.DuckDBPyConnection) -> None:
    """Turn off the progress bar of a connection, unless it is off.

    In a notebook without ipywidgets it is off, and DuckDB refuses to change any of its settings.
    """
    row = con.execute("SELECT current_setting('enable_progress_bar')").fetchone()
    if row is not None and row[0]:
        con.execute("SET enable_progress_bar=false")
