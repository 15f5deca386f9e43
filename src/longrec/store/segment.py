"""A segment: immutable, memory-mapped events sorted by (key, time), with one offset per key.

On disk it is a folder: ``offsets.npy`` (int64 ``[rows + 1]``), ``times.npy`` (int64 ``[n]``), one ``.npy`` per column
(``[n]``, or ``[n, W]`` for one vector per event), and ``segment.json`` with the format, the column types and a CRC32
of every file. The events of row r are ``offsets[r]:offsets[r + 1]``. Where keys are rows of a table, row 0 is a
placeholder without events. In an open key space ``keys.npy`` (int64, ascending) holds the key of every row. Reading a
segment needs only numpy.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.features.entity_table import open_array
from longrec.features.manifest import read_manifest
from longrec.store.column_types import format_type, get_array_type

FORMAT = "longrec-segment-1"
MANIFEST = "segment.json"
REMEDY = "copy or write the segment again"


@dataclass(frozen=True)
class Segment:
    """Events of many keys, in time order within a key.

    Attributes:
        offsets: int64 ``[rows + 1]``.
        times: int64 ``[n]``.
        columns: arrays ``[n]`` or ``[n, W]`` by name.
        keys: int64 ``[rows]``, ascending, in an open key space. None where keys are the rows themselves.
    """

    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    keys: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def rows(self) -> int:
        """Number of key rows, row 0 included."""
        return len(self.offsets) - 1

    def find_row(self, key: int) -> int:
        """Return the row of a key, or -1 if it has none."""
        if self.keys is None:
            return key
        row = int(self.keys.searchsorted(key))
        return row if row < len(self.keys) and self.keys[row] == key else -1

    def find_before(self, row: int, timestamp: int) -> tuple[int, int]:
        """Return the first and one-past-last position of a row's events strictly before a timestamp."""
        start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
        return start, start + int(self.times[start:stop].searchsorted(timestamp, side="left"))

    def find_ranges(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and one-past-last position of each key's events, int64 ``[k]`` (equal if there are none)."""
        if self.keys is None:
            return self.offsets.take(keys), self.offsets.take(keys + 1)
        rows = self.keys.searchsorted(keys)
        first = self.offsets.take(rows)
        if not len(self.keys):
            return first, first
        matches = self.keys.take(rows, mode="clip") == keys
        return first, np.where(matches, self.offsets.take(rows + 1, mode="clip"), first)

    def owners(self) -> NDArray[np.int64]:
        """Return the keys that have events, int64, ascending."""
        rows = np.flatnonzero(np.diff(self.offsets))
        return rows if self.keys is None else self.keys.take(rows)

    def write(self, folder: Path) -> None:
        """Write the folder. The manifest is written last, so that a partly written segment is never opened."""
        folder.mkdir(parents=True, exist_ok=True)
        keys = {} if self.keys is None else {"keys": self.keys}
        arrays = {"offsets": self.offsets, "times": self.times, **keys, **self.columns}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        write_manifest(folder, {name: format_type(get_array_type(array)) for name, array in self.columns.items()})

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Segment:
        """Map a segment.

        Args:
            verify: read every byte and compare it with the recorded checksum.

        Raises:
            StoreError: if the segment is missing, damaged, or has another format.
        """
        manifest = read_manifest(folder / MANIFEST, FORMAT, "a segment", "write it again", StoreError)
        for name, facts in manifest["files"].items():
            _check_file(folder / name, facts, verify)
        columns = {name: _open_array(folder / f"{name}.npy") for name in manifest["columns"]}
        keys = _open_array(folder / "keys.npy") if "keys.npy" in manifest["files"] else None
        segment = cls(_open_array(folder / "offsets.npy"), _open_array(folder / "times.npy"), columns, keys)
        lengths = {name: len(array) for name, array in columns.items()}
        if {len(segment), *lengths.values()} != {len(segment)} or (keys is not None and len(keys) != segment.rows):
            raise StoreError(str(folder), f"columns of lengths {lengths}", f"{len(segment)} events", REMEDY)
        return segment


def build_empty_segment(types: Mapping[str, np.dtype[Any]], rows: int | None) -> Segment:
    """Return a segment without events."""
    columns = {name: np.zeros(0, dtype) for name, dtype in types.items()}
    keys = np.zeros(0, np.int64) if rows is None else None
    return Segment(np.zeros((rows or 0) + 1, np.int64), np.zeros(0, np.int64), columns, keys)


def write_manifest(folder: Path, columns: dict[str, str], crcs: Mapping[str, int] | None = None) -> None:
    """Write ``segment.json`` for the arrays in a folder.

    Args:
        crcs: checksums by file name, computed while the files were written. Other files are read.
    """
    names = [name for name in ("offsets", "times", "keys", *columns) if (folder / f"{name}.npy").exists()]
    precomputed = crcs or {}
    files = {}
    for name in (f"{name}.npy" for name in names):
        crc = precomputed[name] if name in precomputed else crc32(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "crc32": crc}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "columns": columns, "files": files}, indent=1))


def _open_array(path: Path) -> NDArray[Any]:
    try:
        return open_array(path)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(str(path), f"no readable array ({error})", "the bytes that were written", REMEDY) from None


def _check_file(path: Path, facts: dict[str, int], verify: bool) -> None:
    size = path.stat().st_size if path.exists() else -1
    if size != facts["bytes"]:
        actual = "no such file" if size < 0 else f"{size} bytes"
        raise StoreError(str(path), actual, f"{facts['bytes']} bytes", REMEDY)
    if verify and crc32(path) != facts["crc32"]:
        raise StoreError(str(path), "its checksum does not match", "the bytes that were written", REMEDY)


def crc32(path: Path) -> int:
    """Return the CRC32 of a file, read in chunks."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
