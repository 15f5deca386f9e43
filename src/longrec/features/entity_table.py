"""Tables of users and items, encoded once, read by row and, if they have versions, by timestamp.

Row 0 is an unknown entity. Row r > 0 is the r-th key. Events store the row of their item, so that the features of an
item are stored once and never copied into the log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.features.entity_versions import Versions
from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import gather_lists
from longrec.features.vocabulary import Keys

Columns: TypeAlias = dict[str, NDArray[Any] | Lists]
_VERSIONS = "versions"


class EntityTable:
    """Keys and encoded columns of all users, or of all items (row 0: unknown).

    Attributes:
        columns: columns with one entry per entity.
        versions: start of each version of an entity, if the table has versions.
        dated: columns with one entry per version (``Versions``). Only ``as_of`` reads them.
    """

    def __init__(
        self, keys: Keys, columns: Columns, versions: Versions | None = None, dated: Columns | None = None
    ) -> None:
        self.keys, self.columns = keys, columns
        self.versions, self.dated = versions, dated or {}

    def __len__(self) -> int:
        return len(self.keys) + 1

    def rows(self, keys: pa.Array, where: str) -> NDArray[np.int32]:
        """Return the int32 rows of keys, 0 for an unknown key."""
        return self.keys.index(keys, where) + np.int32(1)

    def key(self, row: int) -> Any:
        """Return the key of a row, None for row 0."""
        return None if row == 0 else self.keys.values[row - 1].as_py()

    def as_of(self, rows: NDArray[Any], now: NDArray[np.int64] | int) -> AsOf:
        """Return a view of some rows strictly before timestamps.

        Args:
            rows: integers ``[n]``.
            now: int64 ``[n]``, or one timestamp for all.
        """
        return AsOf(self, rows, now)

    def save(self, folder: Path) -> None:
        """Write keys (Parquet) and columns (.npy) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"key": self.keys.values}), folder / "keys.parquet")
        for name, column in [*self.columns.items(), *self.dated.items()]:
            save_column(folder, name, column)
        content = {"columns": {name: get_column_kind(column) for name, column in self.columns.items()}}
        if self.versions is not None:
            content["dated"] = {name: get_column_kind(column) for name, column in self.dated.items()}
            (folder / _VERSIONS).mkdir(exist_ok=True)
            np.save(folder / _VERSIONS / "offsets.npy", self.versions.offsets)
            np.save(folder / _VERSIONS / "times.npy", self.versions.times)
        (folder / "table.json").write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: Path) -> EntityTable:
        """Load a saved table. Its columns are memory-mapped."""
        content = json.loads((folder / "table.json").read_text())
        keys = Keys.read(folder / "keys.parquet", "key")
        columns, dated = (
            {name: load_column(folder, name, kind) for name, kind in content.get(section, {}).items()}
            for section in ("columns", "dated")
        )
        versions = None
        if "dated" in content:
            versions = Versions(
                *(open_array(folder / _VERSIONS / f"{section}.npy") for section in ("offsets", "times"))
            )
        return cls(keys, columns, versions, dated)


class AsOf:
    """View of table rows at timestamps. Versions are searched once, and only if a versioned column is read."""

    __slots__ = ("_entries", "_now", "_rows", "_table")

    def __init__(self, table: EntityTable, rows: NDArray[Any], now: NDArray[np.int64] | int) -> None:
        self._table, self._rows, self._now = table, rows, now
        self._entries: NDArray[np.int64] | None = None

    def __getitem__(self, name: str) -> NDArray[Any] | Lists:
        """Return a column with ``[n]`` entries."""
        table, rows = self._table, self._rows
        column = table.columns.get(name)
        if column is None:
            column = table.dated[name]
            if self._entries is None:
                assert table.versions is not None
                self._entries = table.versions.rows(rows, self._now)
            rows = self._entries
        return gather_lists(column, rows) if isinstance(column, Lists) else column.take(rows, axis=0)


def get_column_kind(column: NDArray[Any] | Lists) -> str:
    """Return the storage of a column: flat, lists, or weighted (lists with weights)."""
    if isinstance(column, Lists):
        return "lists" if column.weights is None else "weighted"
    return "flat"


def save_column(folder: Path, name: str, column: NDArray[Any] | Lists) -> None:
    """Write one column as one to three .npy files."""
    if isinstance(column, Lists):
        np.save(folder / f"{name}.values.npy", column.values)
        np.save(folder / f"{name}.offsets.npy", column.offsets)
        if column.weights is not None:
            np.save(folder / f"{name}.weights.npy", column.weights)
    else:
        np.save(folder / f"{name}.npy", column)


def load_column(folder: Path, name: str, kind: str) -> NDArray[Any] | Lists:
    """Memory-map one column as plain arrays. Slicing a memmap object is several times slower."""
    if kind == "flat":
        return open_array(folder / f"{name}.npy")
    weights = open_array(folder / f"{name}.weights.npy") if kind == "weighted" else None
    return Lists(open_array(folder / f"{name}.values.npy"), open_array(folder / f"{name}.offsets.npy"), weights)


def open_array(path: Path) -> NDArray[Any]:
    """Memory-map an .npy file as a plain array. A small file is read."""
    array = (
        np.load(path, mmap_mode="r", allow_pickle=False)
        if path.stat().st_size > 128
        else np.load(path, allow_pickle=False)
    )
    return array.view(np.ndarray)


def load_lists(folder: Path) -> dict[str, Lists]:
    """Return the list columns of a folder by name."""
    columns = {}
    for path in folder.glob("*.offsets.npy"):
        name = path.name.removesuffix(".offsets.npy")
        weighted = path.with_name(f"{name}.weights.npy").exists()
        column = load_column(folder, name, "weighted" if weighted else "lists")
        assert isinstance(column, Lists)
        columns[name] = column
    return columns
