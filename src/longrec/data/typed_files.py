"""Files that store the types of their columns, Parquet and Arrow, as SQL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from longrec.data.input_files import find_partition_types, get_kind
from longrec.data.settings import Source
from longrec.data.sql import literal
from longrec.errors import DataError

if TYPE_CHECKING:
    import pyarrow.dataset as pads

SPLIT_COLUMN = "_part"
"""Column with the split of each row, train, valid or test, of an input with files per split."""
_FILE = "_file"


def get_shared_kind(source: Source, files: Mapping[str | None, list[Path]]) -> str:
    """Return the kind of all files.

    Raises:
        DataError: files of several kinds, or of an unknown one.
    """
    every = [path for own in files.values() for path in own]
    kinds = {get_kind(path): path.suffix.lower() for path in every}
    if len(kinds) > 1:
        raise DataError(str(source), f"files of the kinds {', '.join(sorted(kinds.values()))}", "one kind of file")
    return next(iter(kinds))


def read_parquet(source: Source, files: Mapping[str | None, list[Path]]) -> str:
    """Return SQL that reads Parquet files, with the columns that their folders name."""
    every = [path for own in files.values() for path in own]
    listed = "[" + ", ".join(literal(str(path)) for path in every) + "]"
    types = find_partition_types(every)
    partitions = ", ".join(f"{literal(column)}: {kind}" for column, kind in types.items())
    more = f", hive_partitioning=true, hive_types={{{partitions}}}" if types else ", hive_partitioning=false"
    more += f", filename={literal(_FILE)}" if source.splits is not None else ""
    rows = f"read_parquet({listed}, union_by_name=true{more})"
    return rows if source.splits is None else _with_split(rows, files)


def read_arrow(
    con: duckdb.DuckDBPyConnection, view: str, source: Source, files: Mapping[str | None, list[Path]]
) -> str:
    """Return SQL that reads Arrow files, registered as tables of a connection.

    Args:
        view: name of the view that will read them.
    """
    tables = []
    for number, (split, own) in enumerate(files.items()):
        table = f"{view}_arrow_{number}"
        try:
            con.register(table, _open_dataset(own))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(str(source), f"cannot be read: {error}", "a complete Arrow file") from None
        tables.append(f"SELECT *{'' if split is None else f', {literal(split)} AS {SPLIT_COLUMN}'} FROM {table}")
    return f"({' UNION ALL BY NAME '.join(tables)})"


def _open_dataset(files: list[Path]) -> pads.Dataset:
    """Return Arrow files as one dataset with the union of their columns, in the same way as for Parquet and CSV."""
    import pyarrow.dataset as pads  # imports pandas where it is installed

    datasets = [pads.dataset(str(path), format="ipc") for path in files]
    try:
        schema = pa.unify_schemas([one.schema for one in datasets], promote_options="permissive")
    except pa.ArrowException:  # incompatible types of a column, reported where it is used
        schema = pa.unify_schemas([datasets[0].schema])
    return pads.dataset([str(path) for path in files], format="ipc", schema=schema)


def _with_split(rows: str, files: Mapping[str | None, list[Path]]) -> str:
    """Return SQL that adds a column with the split of each row, derived from its file."""
    cases = []
    for split, own in files.items():
        among = ", ".join(literal(str(path)) for path in own)
        cases.append(f"WHEN {_FILE} IN ({among}) THEN {literal(str(split))}")
    return f"(SELECT * EXCLUDE ({_FILE}), CASE {' '.join(cases)} END AS {SPLIT_COLUMN} FROM {rows})"
