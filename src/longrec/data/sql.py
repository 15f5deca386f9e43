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


def wrap_query(con: duckdb.DuckDBPyConnection, text: str, where: str) -> str:
    """Return a query as SQL that can be put in parentheses: one SELECT statement that does not leave them.

    DuckDB itself parses the text alone and in parentheses. Nothing is run.

    Args:
        where: the input in messages.

    Raises:
        DataError: if the text is no statement, another statement than SELECT, or several.
    """
    import duckdb

    query = text.rstrip().rstrip(";") + "\n"
    expected, do = "one SELECT statement", "write a query that only reads, such as SELECT * FROM 'log.parquet'"
    try:
        statements = con.extract_statements(query)
        kinds = [statement.type for statement in statements]
        if len(kinds) == 1 and kinds[0] == duckdb.StatementType.SELECT:
            if statements[0].named_parameters:
                raise DataError(where, "a parameter without a value", expected, do)
            wrapped = con.extract_statements(f"SELECT * FROM ({query})")
            if len(wrapped) == 1 and wrapped[0].type == duckdb.StatementType.SELECT:
                return query
    except duckdb.ParserException as error:
        raise unreadable(where, error) from None
    names = ", ".join(kind.name for kind in kinds[:5]) + (", ..." if len(kinds) > 5 else "")
    actual = f"{len(kinds):,} statements ({names})" if len(kinds) != 1 else f"a statement of type {kinds[0].name}"
    raise DataError(where, actual if kinds else "no statement", expected, do)


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
