"""SQL literals and identifiers, and DuckDB errors as errors of this package."""

from __future__ import annotations

import duckdb

from longrec.errors import DataError, LongRecError
from longrec.resources import resource_error


def literal(text: str) -> str:
    """Return a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def name(column: str) -> str:
    """Return a SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


def unreadable(where: str, error: duckdb.Error) -> LongRecError:
    """Return a DuckDB error as an error of this package: of the machine if it says so, else of the source."""
    if (ordinary := resource_error(error, where)) is not None:
        return ordinary
    # What follows LINE quotes our own statement around the source.
    lines = [line.strip() for line in str(error).partition("\nLINE ")[0].splitlines() if line.strip()]
    text = " ".join(lines[:4])
    return DataError(
        where,
        f"cannot be read: {text[:400]}",
        "a complete Parquet, CSV or Arrow file, or a valid query",
        "write the file again, or mend the query",
    )
