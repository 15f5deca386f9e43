"""JSON lines as one Parquet file. The type of a key follows from all its values, and dates in text stay text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import duckdb

from longrec.data.sql import literal, name, unreadable

_LINES = (".jsonl", ".ndjson")
_SAMPLE = 20_480
MIXED = "JSON"
"""Type of a key whose values have several types that no column has together."""
_GUESSED = re.compile(r"\b(?:DATE|TIMESTAMP(?: WITH TIME ZONE|_NS|_MS|_S)?|TIME|UUID)\b")


def read_json(paths: Sequence[Path], more: str = "") -> str:
    """Return SQL that reads JSON files: one object per line, or a list of objects."""
    listed = "[" + ", ".join(literal(str(path)) for path in paths) + "]"
    lines = all(any(suffix.lower() in _LINES for suffix in path.suffixes) for path in paths)
    layout = "newline_delimited" if lines else "auto"
    return f"read_json({listed}, format='{layout}', union_by_name=true{more})"


def find_json_types(con: duckdb.DuckDBPyConnection, paths: Sequence[Path], *, whole: bool = True) -> dict[str, str]:
    """Return the type of every key of JSON files.

    Args:
        whole: examine all rows, and not only the first ones.
    """
    rows = read_json(paths, f", sample_size={-1 if whole else _SAMPLE}")
    described = con.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()
    return {row[0]: "VARCHAR" if row[1] == '"NULL"' else _GUESSED.sub("VARCHAR", row[1]) for row in described}


def write_json_files(
    con: duckdb.DuckDBPyConnection,
    where: str,
    files: Mapping[str | None, Sequence[Path]],
    target: Path,
    *,
    as_text: Collection[str],
    split_column: str,
) -> tuple[str, list[str]]:
    """Write JSON files to one Parquet file.

    Args:
        where: name of the input in error messages.
        files: ordered files per split.
        as_text: columns whose values are read as text.
        split_column: name of the column to add with the split of each row, if there are splits.

    Returns:
        SQL that reads the file, and the columns that are left out because their values have several types.

    Raises:
        DataError: files that are no JSON.
    """
    every = [path for own in files.values() for path in own]
    try:
        types = find_json_types(con, every)
        types |= {column: "VARCHAR" for column in as_text if column in types}
        mixed = [column for column, kind in types.items() if MIXED in re.split(r"\W+", kind)]
        kept = {column: kind for column, kind in types.items() if column not in mixed}
        columns = "{" + ", ".join(f"{literal(column)}: {literal(kind)}" for column, kind in kept.items()) + "}"
        queries = []
        for split, paths in files.items():
            own = "" if split is None else f", {literal(split)} AS {name(split_column)}"
            queries.append(f"SELECT *{own} FROM {read_json(paths, f', columns={columns}')}")
        kind = "FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE 100000"
        con.execute(f"COPY ({' UNION ALL BY NAME '.join(queries)}) TO {literal(str(target))} ({kind})")
    except duckdb.Error as error:
        raise unreadable(where, error) from None
    return f"read_parquet({literal(str(target))})", mixed
