"""Users and items: static tables, encoded once, looked up by row.

Row 0 stands for somebody or something unknown; row r > 0 is the r-th key. Events keep the row of their item,
so that an item's features are stored once and never copied into the log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.features.encode import Lists
from longrec.features.vocabulary import Keys


class EntityTable:
    """Keys and encoded columns of all users, or of all items (row 0: unknown)."""

    def __init__(self, keys: Keys, columns: dict[str, NDArray[Any] | Lists]) -> None:
        self.keys, self.columns = keys, columns

    def __len__(self) -> int:
        return len(self.keys) + 1

    def rows(self, keys: pa.Array, where: str) -> NDArray[np.int32]:
        """int32 rows of keys, 0 for an unknown one."""
        return self.keys.index(keys, where) + np.int32(1)

    def key(self, row: int) -> Any:
        """The key of a row; None for row 0."""
        return None if row == 0 else self.keys.values[row - 1].as_py()

    def save(self, folder: Path) -> None:
        """Write keys (Parquet) and columns (.npy) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"key": self.keys.values}), folder / "keys.parquet")
        kinds = {}
        for name, column in self.columns.items():
            save_column(folder, name, column)
            kinds[name] = column_kind(column)
        (folder / "table.json").write_text(json.dumps({"columns": kinds}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> EntityTable:
        """Open a saved table; columns are memory-mapped."""
        kinds = json.loads((folder / "table.json").read_text())["columns"]
        keys = pq.read_table(folder / "keys.parquet")["key"].combine_chunks()
        return cls(Keys(keys), {name: load_column(folder, name, kind) for name, kind in kinds.items()})


def column_kind(column: NDArray[Any] | Lists) -> str:
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
