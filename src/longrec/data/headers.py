"""Headers of input files: the footer of Parquet, the schema of Arrow, the first line of text, the keys of JSON.

Files are combined by column name, and a column that one file lacks would be null in all of its rows. So every file must
have all required columns, with the same kind of values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from longrec.data.casts import INTEGERS, WIDE_INTEGERS, is_real, is_text
from longrec.data.input_files import JSON, PARQUET, TEXT, get_kind, read_partitions
from longrec.data.json_files import find_json_types
from longrec.data.sql import unreadable
from longrec.data.text_dialect import distinguish, list_repeated, read_dialect
from longrec.errors import DataError, nearest

_SMALL = 4 << 20
"""Size of a JSON file below which all its rows are examined for keys."""


@dataclass(frozen=True)
class Header:
    """Columns of one file, in file order.

    Attributes:
        kinds: kind of values per column: integers, numbers, text, times or lists. Empty if the file does not record it.
        repeated: columns whose name occurs again, in any case, with the other spelling.
        partial: True if the file may have more columns, because only its first rows were examined.
    """

    path: Path
    kinds: dict[str, str]
    repeated: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False

    def kind(self, column: str) -> str | None:
        """Return the kind of values of a column, or None if the file lacks it. Names are case-insensitive."""
        return next((kind for name, kind in self.kinds.items() if name.lower() == column.lower()), None)


def read_header(con: duckdb.DuckDBPyConnection, path: Path) -> Header:
    """Return the header of a file.

    Raises:
        DataError: a file that cannot be read, or has an unknown format.
    """
    kind = get_kind(path)
    try:
        if kind == TEXT:
            names = read_dialect(path).names
            return Header(path, dict.fromkeys(distinguish(names), ""), list_repeated(names))
        if kind == JSON:
            small = path.stat().st_size <= _SMALL
            types = find_json_types(con, [path], whole=small)
            return Header(path, {column: _describe_type(kind) for column, kind in types.items()}, partial=not small)
        if kind == PARQUET:
            schema = pq.read_schema(path)
        else:
            with pa.memory_map(str(path)) as file:
                schema = ipc.open_file(file).schema
    except duckdb.Error as error:
        raise unreadable(str(path), error) from None
    except (pa.ArrowException, OSError) as error:
        message, named = " ".join(str(error).split()), "Parquet" if kind == PARQUET else "Arrow"
        expected = f"a complete {named} file"
        raise DataError(str(path), f"cannot be read: {message[:300]}", expected, "write the file again") from None
    kinds = {field.name: _kind(field.type) for field in schema}
    if kind == PARQUET:
        kinds |= dict.fromkeys(read_partitions(path), "")  # the type follows from the values of all files
    return Header(path, kinds, list_repeated(tuple(schema.names)))


def _describe_type(kind: str) -> str:
    """Return the kind of values of a SQL type."""
    if kind in INTEGERS | WIDE_INTEGERS:
        return "integers"
    if is_real(kind):
        return "numbers"
    return "text" if is_text(kind) else "lists" if kind.endswith("]") else kind


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integers"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "numbers"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_large_binary(kind) or pa.types.is_binary(kind):
        return "bytes"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "times"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "lists"
    return "" if pa.types.is_null(kind) else str(kind)


def check_distinct(headers: Iterable[Header], columns: Mapping[str, str]) -> None:
    """Raise an error if a file has a column twice, or two columns whose names differ only in case.

    Args:
        columns: column -> config key that uses it.

    Raises:
        DataError: such a column. The message gives the file.
    """
    for header in headers:
        column = next((column for column in columns if column in header.repeated), None)
        if column is not None:
            other = header.repeated[column]
            twice = other == column
            raise DataError(
                str(header.path),
                f"the column {column!r} ({columns[column]}) twice" if twice else f"columns {column!r} and {other!r}",
                "distinct names of columns, in any case",
                "rename one of the columns, or select the right one with a query",
            )


def check_alike(where: str, headers: Iterable[Header], columns: Mapping[str, str]) -> None:
    """Raise an error if a file lacks a column that others have, or has another kind of values in it.

    Args:
        where: name of the input in error messages.
        headers: header of each file.
        columns: column -> config key that uses it. Columns that no file has are checked elsewhere.

    Raises:
        DataError: files that differ. The message gives the files and columns.
    """
    headers = [header for header in headers if header.kinds]  # an empty text file has no rows
    lacks, differs = [], []
    for column, reader in columns.items():
        kinds = [(header, header.kind(column)) for header in headers]
        present = [(header, kind) for header, kind in kinds if kind is not None]
        if not present:
            continue
        for header, kind in kinds:
            if kind is None and not header.partial:
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
