"""Words of SQL, and what DuckDB says in ours."""

from __future__ import annotations

import duckdb

from longrec.errors import DataError, LongRecError
from longrec.resources import resource_error


def literal(text: str) -> str:
    """A SQL string."""
    return "'" + text.replace("'", "''") + "'"


def name(column: str) -> str:
    """A SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


def unreadable(where: str, error: duckdb.Error) -> LongRecError:
    """A DuckDB error in our words: of the machine, where it says so, else of what was read."""
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
