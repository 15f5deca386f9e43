"""Headers of input files: the footer of Parquet, the schema of Arrow, the first line of text.

Files are combined by column name, and a column that one file lacks would be null in all of its rows. So every file must
have all required columns, with the same kind of values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from longrec.data.sql import literal, unreadable
from longrec.errors import DataError, nearest

TEXT = (".csv", ".tsv", ".gz")
_ARROW = (".arrow", ".feather")


@dataclass(frozen=True)
class Header:
    """Columns of one file, in file order.

    Attributes:
        kinds: kind of values per column: integers, numbers, text, times or lists. Empty if the file does not record it.
    """

    path: Path
    kinds: dict[str, str]

    def kind(self, column: str) -> str | None:
        """Return the kind of values of a column, or None if the file lacks it. Names are case-insensitive."""
        return next((kind for name, kind in self.kinds.items() if name.lower() == column.lower()), None)


def read_header(con: duckdb.DuckDBPyConnection, path: Path) -> Header:
    """Return the header of a file. Of a text file, a few rows are read to detect its separator.

    Raises:
        DataError: a file that cannot be read, or has an unknown format.
    """
    kind = path.suffix.lower()
    try:
        if kind in TEXT:
            listed = f"read_csv({literal(str(path))}, header=true, all_varchar=true, sample_size=2048)"
            return Header(path, {row[0]: "" for row in con.execute(f"DESCRIBE SELECT * FROM {listed}").fetchall()})
        if kind == ".parquet":
            schema = pq.read_schema(path)
        elif kind in _ARROW:
            with pa.memory_map(str(path)) as file:
                schema = ipc.open_file(file).schema
        else:
            raise DataError(str(path), f"a file of the kind {kind!r}", ".parquet, .csv, .tsv, .arrow or .feather")
    except duckdb.Error as error:
        raise unreadable(str(path), error) from None
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())
        raise DataError(
            str(path), f"cannot be read: {message[:300]}", "a complete file", "write the file again"
        ) from None
    return Header(path, {field.name: _kind(field.type) for field in schema})


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integers"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "numbers"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "times"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "lists"
    return "" if pa.types.is_null(kind) else str(kind)


def check_alike(where: str, headers: Iterable[Header], columns: Mapping[str, str]) -> None:
    """Raise an error if a file lacks a column that others have, or has another kind of values in it.

    Args:
        where: name of the input in error messages.
        headers: header of each file.
        columns: column -> config key that uses it. Columns that no file has are checked elsewhere.

    Raises:
        DataError: files that differ. The message gives the files and columns.
    """
    headers = list(headers)
    lacks, differs = [], []
    for column, reader in columns.items():
        kinds = [(header, header.kind(column)) for header in headers]
        present = [(header, kind) for header, kind in kinds if kind is not None]
        if not present:
            continue
        for header, kind in kinds:
            if kind is None:
                near = nearest(column, header.kinds)
                hint = f", did you mean its {near!r}?" if near else ""
                lacks.append(f"{header.path} has no column {column!r} ({reader}){hint}")
        typed = [(header, kind) for header, kind in present if kind]
        odd = next((pair for pair in typed if not _is_alike(pair[1], typed[0][1])), None)
        if odd is not None:
            (first, one), (second, other) = typed[0], odd
            differs.append(f"{column!r} ({reader}) is {one} in {first.path} and {other} in {second.path}")
    if lacks:
        raise DataError(
            where,
            "; ".join(lacks[:4]) + (f"; and {len(lacks) - 4} more" if len(lacks) > 4 else ""),
            "the columns of the schema in every file, else its rows would be null",
            "write the file again with this column, or leave the file out",
        )
    if differs:
        raise DataError(
            where, "; ".join(differs[:4]), "one type of a column in every file", "write the files again with one type"
        )


def _is_alike(one: str, other: str) -> bool:
    return one == other or {one, other} == {"integers", "numbers"}
