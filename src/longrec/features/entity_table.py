"""Users and items: tables encoded once, looked up by row and, where they have versions, by moment.

Row 0 stands for somebody or something unknown; row r > 0 is the r-th key. Events keep the row of their item,
so that an item's features are stored once and never copied into the log.
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
        columns: what an entity is, an entry each.
        versions: when each version of an entity began, where its table has versions.
        dated: what a version says, an entry each (``Versions``); read through ``as_of`` alone.
    """

    def __init__(
        self, keys: Keys, columns: Columns, versions: Versions | None = None, dated: Columns | None = None
    ) -> None:
        self.keys, self.columns = keys, columns
        self.versions, self.dated = versions, dated or {}

    def __len__(self) -> int:
        return len(self.keys) + 1

    def rows(self, keys: pa.Array, where: str) -> NDArray[np.int32]:
        """int32 rows of keys, 0 for an unknown one."""
        return self.keys.index(keys, where) + np.int32(1)

    def key(self, row: int) -> Any:
        """The key of a row; None for row 0."""
        return None if row == 0 else self.keys.values[row - 1].as_py()

    def as_of(self, rows: NDArray[Any], now: NDArray[np.int64] | int) -> AsOf:
        """Some rows as they stood strictly before moments.

        Args:
            rows: whole numbers ``[n]``.
            now: int64 ``[n]``, or one for all.
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
        """Open a saved table; columns are memory-mapped."""
        content = json.loads((folder / "table.json").read_text())
        keys = pq.read_table(folder / "keys.parquet")["key"].combine_chunks()
        columns, dated = (
            {name: load_column(folder, name, kind) for name, kind in content.get(section, {}).items()}
            for section in ("columns", "dated")
        )
        versions = None
        if "dated" in content:
            versions = Versions(
                *(open_array(folder / _VERSIONS / f"{section}.npy") for section in ("offsets", "times"))
            )
        return cls(Keys(keys), columns, versions, dated)


class AsOf:
    """Rows of a table as they stood at moments; versions are looked for once, and only if a column asks for them."""

    __slots__ = ("_entries", "_now", "_rows", "_table")

    def __init__(self, table: EntityTable, rows: NDArray[Any], now: NDArray[np.int64] | int) -> None:
        self._table, self._rows, self._now = table, rows, now
        self._entries: NDArray[np.int64] | None = None

    def __getitem__(self, name: str) -> NDArray[Any] | Lists:
        """A column: ``[n]`` entries."""
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
    """How a column lies on disk: flat, lists, or lists with weights."""
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
    """Map one column. Plain ndarray views: slicing a memmap object is several times slower."""
    if kind == "flat":
        return open_array(folder / f"{name}.npy")
    weights = open_array(folder / f"{name}.weights.npy") if kind == "weighted" else None
    return Lists(open_array(folder / f"{name}.values.npy"), open_array(folder / f"{name}.offsets.npy"), weights)


def open_array(path: Path) -> NDArray[Any]:
    """Memory-map an .npy file as a plain array (an empty one is read)."""
    array = (
        np.load(path, mmap_mode="r", allow_pickle=False)
        if path.stat().st_size > 128
        else np.load(path, allow_pickle=False)
    )
    return array.view(np.ndarray)
