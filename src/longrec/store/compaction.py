"""Compaction: writing a new segment from a segment and newer events, column by column and chunk by chunk."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.column_types import Types, find_narrowest_type, format_type
from longrec.store.segment import Segment, write_manifest
from longrec.store.sorted_events import locate_events

_CHUNK = 1 << 18
"""Number of events that are merged at once."""

ColumnReader = Callable[[int, int], NDArray[Any]]
"""Function that returns the values of the new events from one index to another."""


class Compaction:
    """Merge of a segment with newer events into a new segment. ``write`` writes it.

    Args:
        segment: the existing segment.
        keys, times: int64 ``[n]`` of the new events, sorted by key, time and identity, without duplicates.
        ids: identities of the new events, or None.
        identity: column that identifies an event of a key and a time, or None.
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
        positions, is_update = locate_events(segment, keys, times, ids, identity)
        self.replaced_positions = positions[is_update]
        """Positions of old events that new ones replace."""
        self.merged_positions = positions - np.searchsorted(self.replaced_positions, positions) + np.arange(len(keys))
        """Position of each new event in the merged segment."""
        self._ranks = self.replaced_positions - np.arange(len(self.replaced_positions))

    def __len__(self) -> int:
        return len(self.segment) - len(self.replaced_positions) + len(self.keys)

    def write(self, folder: Path, types: Types, columns: Mapping[str, ColumnReader], *, sync: bool) -> None:
        """Write the merged segment, with integers as narrow as their values allow and the manifest last.

        Args:
            columns: columns of the new events.
            sync: wait until all files are on the disk.
        """
        folder.mkdir(parents=True)
        segment, crcs, texts = self.segment, {}, {}
        offsets, keys = self._merge_offsets()
        whole = {"offsets": offsets} if keys is None else {"offsets": offsets, "keys": keys}
        for name, array in whole.items():
            crcs[f"{name}.npy"] = _write_array(folder / f"{name}.npy", array.dtype, len(array), iter([array]), sync)
        chunks = self._merge_chunks(segment.times, lambda low, high: self.times[low:high], np.dtype(np.int64))
        crcs["times.npy"] = _write_array(folder / "times.npy", np.dtype(np.int64), len(self), chunks, sync)
        for name, dtype in types.items():
            stored_type = self._choose_type(name, dtype, columns[name])
            chunks = self._merge_chunks(segment.columns[name], columns[name], stored_type)
            crcs[f"{name}.npy"] = _write_array(folder / f"{name}.npy", stored_type, len(self), chunks, sync)
            texts[name] = format_type(stored_type)
        write_manifest(folder, texts, crcs)
        if sync:
            sync_path(folder / "segment.json")
            sync_path(folder)

    def _choose_type(self, name: str, dtype: np.dtype[Any], new: ColumnReader) -> np.dtype[Any]:
        """Return the type in which a column is stored."""
        if dtype.kind not in "iu" or dtype.shape or not len(self):
            return dtype
        old = self.segment.columns[name]
        chunks = [old[at : at + _CHUNK] for at in range(0, len(old), _CHUNK)]
        chunks += [new(at, min(at + _CHUNK, len(self.keys))) for at in range(0, len(self.keys), _CHUNK)]
        return find_narrowest_type(
            min(int(chunk.min()) for chunk in chunks), max(int(chunk.max()) for chunk in chunks), dtype
        )

    def _merge_chunks(self, old: NDArray[Any], new: ColumnReader, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
        """Yield the merged column in the type ``dtype``, chunk by chunk."""
        for low in range(0, len(self), _CHUNK):
            high = min(low + _CHUNK, len(self))
            first, stop = np.searchsorted(self.merged_positions, [low, high]).tolist()
            start, end = self._find_old_position(low - first), self._find_old_position(high - stop)
            kept = old[start:end]
            inside = slice(*np.searchsorted(self.replaced_positions, [start, end]).tolist())
            if inside.stop > inside.start:
                kept = np.delete(kept, self.replaced_positions[inside] - start, axis=0)
            if first == stop:
                yield kept.astype(dtype.base, copy=False)
                continue
            chunk = np.empty((high - low, *dtype.shape), dtype.base)
            fresh = np.zeros(high - low, bool)
            fresh[self.merged_positions[first:stop] - low] = True
            chunk[fresh] = new(first, stop)
            chunk[~fresh] = kept
            yield chunk

    def _find_old_position(self, rank: int) -> int:
        """Return the position of the old event that follows ``rank`` retained old events."""
        return rank + int(np.searchsorted(self._ranks, rank, side="right"))

    def _merge_offsets(self) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Return the offsets and keys of the merged segment."""
        segment = self.segment
        counts = np.diff(segment.offsets - np.searchsorted(self.replaced_positions, segment.offsets))
        bounds = np.flatnonzero(np.append(True, self.keys[1:] != self.keys[:-1])[: len(self.keys)])
        owners, new = self.keys[bounds], np.diff(np.append(bounds, len(self.keys)))
        keys = segment.keys
        if keys is not None:
            old, keys = keys, np.union1d(keys, owners)
            all_counts = np.zeros(len(keys), np.int64)
            all_counts[keys.searchsorted(old)] = counts
            counts, owners = all_counts, keys.searchsorted(owners)
        counts[owners] += new
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]), keys


def sync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write_array(path: Path, dtype: np.dtype[Any], length: int, chunks: Iterator[NDArray[Any]], sync: bool) -> int:
    """Write an ``.npy`` file chunk by chunk and return its CRC32."""
    head = io.BytesIO()
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype.base),
        "fortran_order": False,
        "shape": (length, *dtype.shape),
    }
    np.lib.format.write_array_header_1_0(head, header)
    crc = zlib.crc32(head.getvalue())
    with path.open("wb") as file:
        file.write(head.getvalue())
        for chunk in chunks:
            data = np.ascontiguousarray(chunk, dtype.base).reshape(-1).view(np.uint8).data
            crc = zlib.crc32(data, crc)
            file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    return crc
