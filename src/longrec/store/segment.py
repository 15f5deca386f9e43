"""A segment: events sorted by (key row, time), immutable, memory-mapped, with an offset a key.

On disk a folder: ``offsets.npy`` (int64 ``[rows + 1]``), ``times.npy`` (int64 ``[n]``), one ``.npy`` a column,
and ``segment.json`` with the format, the column types and a CRC32 of every file. Row r owns the events
``offsets[r]:offsets[r + 1]``; row 0 is nobody and owns none. Nothing but numpy is needed to read one.
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
from longrec.features.manifest import read_manifest
from longrec.features.table import open_array

FORMAT = "longrec-segment-1"


@dataclass(frozen=True)
class Segment:
    """Events of many keys, in time order within a key.

    Attributes:
        offsets: int64 ``[rows + 1]``.
        times: int64 ``[n]``.
        columns: arrays ``[n]`` by name.
    """

    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def rows(self) -> int:
        """How many keys, row 0 included."""
        return len(self.offsets) - 1

    def before(self, row: int, moment: int) -> tuple[int, int]:
        """First and one-past-last position of a key's events strictly before a moment."""
        start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
        return start, start + int(np.searchsorted(self.times[start:stop], moment, side="left"))

    def write(self, folder: Path) -> None:
        """Write the folder; the manifest comes last, so a half-written segment is never opened."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"offsets": self.offsets, "times": self.times, **self.columns}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        write_manifest(folder, {name: str(array.dtype) for name, array in self.columns.items()})

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Segment:
        """Map a segment.

        Args:
            verify: read every byte and hold it against the recorded checksum.

        Raises:
            StoreError: missing, of another format, or damaged.
        """
        manifest = read_manifest(folder / "segment.json", FORMAT, "a segment", "write it again", StoreError)
        for name, facts in manifest["files"].items():
            _check(folder / name, facts, verify)
        columns = {name: open_array(folder / f"{name}.npy") for name in manifest["columns"]}
        return cls(open_array(folder / "offsets.npy"), open_array(folder / "times.npy"), columns)


def write_manifest(folder: Path, columns: dict[str, str]) -> None:
    """Write ``segment.json`` for the arrays that already lie in a folder."""
    names = ["offsets", "times", *columns]
    files = {
        f"{name}.npy": {"bytes": (folder / f"{name}.npy").stat().st_size, "crc32": crc32(folder / f"{name}.npy")}
        for name in names
    }
    (folder / "segment.json").write_text(json.dumps({"format": FORMAT, "columns": columns, "files": files}, indent=1))


def _check(path: Path, facts: dict[str, int], verify: bool) -> None:
    size = path.stat().st_size if path.exists() else -1
    if size != facts["bytes"]:
        found = "no such file" if size < 0 else f"{size} bytes"
        raise StoreError(str(path), found, f"{facts['bytes']} bytes", "copy or write the segment again")
    if verify and crc32(path) != facts["crc32"]:
        raise StoreError(
            str(path), "its checksum does not match", "the bytes that were written", "copy or write the segment again"
        )


def crc32(path: Path) -> int:
    """CRC32 of a file, read in pieces."""
    value = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            value = zlib.crc32(piece, value)
    return value
