"""Writing a segment anew with more events in it, column by column, a piece at a time."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.column_types import Types, format_type, narrowest
from longrec.store.segment import Segment, write_manifest
from longrec.store.sorted_events import rewritten

_PIECE = 1 << 18
"""Events that are merged at once."""

Piece = Callable[[int, int], NDArray[Any]]
"""Values of the new events from one place to another."""


class Compaction:
    """A segment and new events, merged.

    Args:
        keys, times: int64 ``[n]`` of the new events, sorted by key, time and identity, each once.
        ids: their identities, or None.
    """

    def __init__(
        self,
        segment: Segment,
        keys: NDArray[np.int64],
        times: NDArray[np.int64],
        ids: NDArray[np.int64] | None,
        identity: str | None,
    ) -> None:
        self.segment, self.keys, self.times = segment, keys, times
        places, again = rewritten(segment, keys, times, ids, identity)
        self.gone = places[again]
        """Places of events that were written again."""
        self.target = places - np.searchsorted(self.gone, places) + np.arange(len(keys))
        """Where each new event will lie."""
        self._ranks = self.gone - np.arange(len(self.gone))

    def __len__(self) -> int:
        return len(self.segment) - len(self.gone) + len(self.keys)

    def write(self, folder: Path, types: Types, columns: Mapping[str, Piece], *, sync: bool) -> None:
        """Write the merged segment: whole numbers as narrow as their values allow, the manifest last.

        Args:
            columns: the columns of the new events.
            sync: wait until all of it is on the disk.
        """
        folder.mkdir(parents=True)
        segment, crcs, texts = self.segment, {}, {}
        offsets, keys = self._offsets()
        whole = {"offsets": offsets} if keys is None else {"offsets": offsets, "keys": keys}
        for name, array in whole.items():
            crcs[f"{name}.npy"] = _write(folder / f"{name}.npy", array.dtype, len(array), iter([array]), sync)
        pieces = self._pieces(segment.times, lambda low, high: self.times[low:high], np.dtype(np.int64))
        crcs["times.npy"] = _write(folder / "times.npy", np.dtype(np.int64), len(self), pieces, sync)
        for name, dtype in types.items():
            lying = self._lying(name, dtype, columns[name])
            pieces = self._pieces(segment.columns[name], columns[name], lying)
            crcs[f"{name}.npy"] = _write(folder / f"{name}.npy", lying, len(self), pieces, sync)
            texts[name] = format_type(lying)
        write_manifest(folder, texts, crcs)
        if sync:
            sync_path(folder / "segment.json")
            sync_path(folder)

    def _lying(self, name: str, dtype: np.dtype[Any], new: Piece) -> np.dtype[Any]:
        """The type in which a column will lie."""
        if dtype.kind not in "iu" or dtype.shape or not len(self):
            return dtype
        old = self.segment.columns[name]
        parts = [old[at : at + _PIECE] for at in range(0, len(old), _PIECE)]
        parts += [new(at, min(at + _PIECE, len(self.keys))) for at in range(0, len(self.keys), _PIECE)]
        return narrowest(min(int(part.min()) for part in parts), max(int(part.max()) for part in parts), dtype)

    def _pieces(self, old: NDArray[Any], new: Piece, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
        """The merged column in the type ``dtype``, piece by piece."""
        for low in range(0, len(self), _PIECE):
            high = min(low + _PIECE, len(self))
            first, stop = np.searchsorted(self.target, [low, high]).tolist()
            start, end = self._place(low - first), self._place(high - stop)
            kept = old[start:end]
            inside = slice(*np.searchsorted(self.gone, [start, end]).tolist())
            if inside.stop > inside.start:
                kept = np.delete(kept, self.gone[inside] - start, axis=0)
            if first == stop:
                yield kept.astype(dtype.base, copy=False)
                continue
            piece = np.empty((high - low, *dtype.shape), dtype.base)
            fresh = np.zeros(high - low, bool)
            fresh[self.target[first:stop] - low] = True
            piece[fresh] = new(first, stop)
            piece[~fresh] = kept
            yield piece

    def _place(self, rank: int) -> int:
        """The place, among the old events, of the one that ``rank`` kept ones come before."""
        return rank + int(np.searchsorted(self._ranks, rank, side="right"))

    def _offsets(self) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Offsets and keys of the merged segment."""
        segment = self.segment
        counts = np.diff(segment.offsets - np.searchsorted(self.gone, segment.offsets))
        bounds = np.flatnonzero(np.append(True, self.keys[1:] != self.keys[:-1])[: len(self.keys)])
        owners, new = self.keys[bounds], np.diff(np.append(bounds, len(self.keys)))
        keys = segment.keys
        if keys is not None:
            old, keys = keys, np.union1d(keys, owners)
            every = np.zeros(len(keys), np.int64)
            every[keys.searchsorted(old)] = counts
            counts, owners = every, keys.searchsorted(owners)
        counts[owners] += new
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]), keys


def sync_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write(path: Path, dtype: np.dtype[Any], length: int, pieces: Iterator[NDArray[Any]], sync: bool) -> int:
    """Write an ``.npy`` file piece by piece; returns its CRC32."""
    head = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype.base), "fortran_order": False, "shape": (length, *dtype.shape)}
    np.lib.format.write_array_header_1_0(head, facts)
    crc = zlib.crc32(head.getvalue())
    with path.open("wb") as file:
        file.write(head.getvalue())
        for piece in pieces:
            data = np.ascontiguousarray(piece, dtype.base).reshape(-1).view(np.uint8).data
            crc = zlib.crc32(data, crc)
            file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    return crc
