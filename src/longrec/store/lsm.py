"""Reads that merge a segment and a memtable: vectorized binary search for many keys, plain Python for one key.

The positions of the events are looked up under a lock, which is fast. Their values are gathered without it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.column_types import Types, validate_events
from longrec.store.history_store import Events
from longrec.store.memtable import Memtable, count_before
from longrec.store.merge import EventRange, expand_ranges, gather_events, gather_ranges, merge_key_events
from longrec.store.segment import Segment
from longrec.store.sorted_events import find_lower_bounds, locate_events

_SCAN = 1_024
"""Number of keys that a scan reads at once."""
_SHORT = 24
"""Mean number of events per key up to which taking them one by one is faster than slice by slice."""


class LsmTree:
    """A segment and a memtable of newer events, merged by time. Base class of the embedded stores.

    Safe for several reader threads beside one writer thread in one process.
    """

    def __init__(self, segment: Segment, types: Types, rows: int | None, identity: str | None) -> None:
        self.types, self.rows, self.identity = types, rows, identity
        self._read_lock = threading.Lock()
        """Lock of the lookup of positions. Values are gathered without it."""
        self._install_layers(segment)

    def _install_layers(self, segment: Segment, memtable: Memtable | None = None) -> None:
        """Set the segment and the memtable above it, by default an empty one."""
        with self._read_lock:
            self._segment = segment
            self._memtable = Memtable(self.types, self.identity) if memtable is None else memtable
            self._passing: dict[str, NDArray[np.int64]] = {}
            self._duplicates = (0, 0)

    def __len__(self) -> int:
        with self._read_lock:
            segment, memtable, (size, duplicates) = self._segment, self._memtable, self._duplicates
            if self.identity is not None and size != memtable.size:
                keys, times, columns = memtable.sort_events([self.identity])
                duplicates = int(locate_events(segment, keys, times, columns[self.identity], self.identity)[1].sum())
                self._duplicates = (memtable.size, duplicates)
            return len(segment) + len(memtable) - duplicates

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events to the memtable. See ``HistoryStore.append``."""
        keys, times, columns = validate_events(self.types, self.rows, keys, times, values)
        with self._read_lock:
            self._memtable.add(keys, times, columns)

    def last(
        self,
        keys: int | NDArray[Any],
        before: int | NDArray[np.int64],
        n: int,
        where: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Events:
        """Return the last ``n`` events of each key strictly before a timestamp. See ``HistoryStore.last``."""
        types = self._select_types(where, columns)
        if isinstance(keys, int) and isinstance(before, int):
            return self._read_one(keys, before, n, where, types)
        wanted = np.atleast_1d(np.asarray(keys)).astype(np.int64, copy=False)
        if len(wanted):
            self._check_keys(int(wanted.min()), int(wanted.max()))
        timestamps = np.broadcast_to(np.asarray(before, np.int64), wanted.shape)
        if len(wanted) == 1:
            return self._read_one(int(wanted[0]), int(timestamps[0]), n, where, types)
        return self._read_many(wanted, timestamps, n, where, types)

    def scan(self) -> Iterator[tuple[int, Events]]:
        """Yield every key with its events. See ``HistoryStore.scan``."""
        with self._read_lock:
            owners = np.union1d(self._segment.owners(), self._memtable.owners)
        for at in range(0, len(owners), _SCAN):
            keys = owners[at : at + _SCAN]
            events = self._read_many(keys, None, None, None, self.types)
            bounds = events.offsets.tolist()
            for key, start, stop in zip(keys.tolist(), bounds, bounds[1:]):
                own = {name: column[start:stop] for name, column in events.columns.items()}
                yield key, Events(np.array([0, stop - start]), events.times[start:stop], own)

    def _select_types(self, where: str | None, columns: Sequence[str] | None) -> Types:
        for name in (*(columns or ()), *((where,) if where is not None else ())):
            if name not in self.types:
                raise StoreError("store", f"no column {name!r}", ", ".join(self.types) or "none")
        return self.types if columns is None else {name: self.types[name] for name in columns}

    def _check_keys(self, low: int, high: int) -> None:
        if self.rows is not None and not 0 <= low <= high < self.rows:
            actual = f"the key row {low}" if low == high else f"the key rows {low} to {high}"
            raise StoreError("store", actual, f"rows from 0 to {self.rows - 1}")

    def _read_one(self, key: int, timestamp: int, n: int, where: str | None, types: Types) -> Events:
        """Read one key of one request, without vectorized search."""
        self._check_keys(key, key)
        with self._read_lock:
            segment, memtable = self._segment, self._memtable
            row = segment.find_row(key)
            start, stop = segment.find_before(row, timestamp) if row >= 0 else (0, 0)
            own = memtable.get(key)
            count = 0 if own is None else count_before(own, timestamp)
            if own is not None and count:
                positions, ranges = merge_key_events(
                    segment, memtable, self.identity, own, count, start, stop, n, where
                )
        if count:
            return gather_ranges(segment, memtable, ranges, positions, types, None)
        at: slice | NDArray[np.int64] = slice(max(start, stop - n), stop)
        if where is not None:
            passing = np.flatnonzero(segment.columns[where][start:stop]) + start
            at = passing[max(0, len(passing) - n) :]
        columns = {name: segment.columns[name][at].astype(dtype.base) for name, dtype in types.items()}
        times = segment.times[at].copy()
        return Events(np.array([0, len(times)]), times, columns)

    def _read_many(
        self,
        keys: NDArray[np.int64],
        timestamps: NDArray[np.int64] | None,
        n: int | None,
        where: str | None,
        types: Types,
    ) -> Events:
        """Read events of many keys, all of them if ``timestamps`` or ``n`` is None."""
        with self._read_lock:
            segment, memtable = self._segment, self._memtable
            first, stop = segment.find_ranges(keys)
            if timestamps is not None:
                stop = find_lower_bounds(segment.times, first, stop, timestamps)
            fresh = self._merge_memtable_keys(segment, memtable, keys, timestamps, n, where, first, stop)
            passing = None if where is None else self._find_passing(segment, where)
        if passing is not None:
            first, stop = passing.searchsorted(first), passing.searchsorted(stop)
        if n is not None:
            first = np.maximum(first, stop - n)
        counts = stop - first
        for at, (_, ranges) in fresh.items():
            counts[at] = sum(end - start for _, start, end in ranges)
        offsets = np.zeros(len(keys) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        if passing is None and offsets[-1] > _SHORT * len(keys):
            return self._gather_slices(segment, memtable, first, stop, fresh, offsets, types)
        old, destinations = expand_ranges(first, stop, offsets[:-1])
        positions = np.empty(offsets[-1], np.int64)
        positions[destinations] = old if passing is None else passing.take(old)
        for at, (new, ranges) in fresh.items():
            blocks = [new[start:end] if by_position else np.arange(start, end) for by_position, start, end in ranges]
            positions[offsets[at] : offsets[at + 1]] = np.concatenate([np.zeros(0, np.int64), *blocks])
        return gather_events(segment, memtable, positions, offsets, types)

    def _gather_slices(
        self,
        segment: Segment,
        memtable: Memtable,
        first: NDArray[np.int64],
        stop: NDArray[np.int64],
        fresh: dict[int, tuple[NDArray[np.int64], list[EventRange]]],
        offsets: NDArray[np.int64],
        types: Types,
    ) -> Events:
        """Gather long lists, copied slice by slice."""
        if not fresh:
            whole = [(False, start, end) for start, end in zip(first.tolist(), stop.tolist())]
            return gather_ranges(segment, memtable, whole, np.zeros(0, np.int64), types, offsets)
        ranges, positions, shift = [], [np.zeros(0, np.int64)], 0
        for at, (start, end) in enumerate(zip(first.tolist(), stop.tolist())):
            own = fresh.get(at)
            if own is None:
                ranges.append((False, start, end))
                continue
            ranges += [
                (by_position, low + shift, high + shift) if by_position else (by_position, low, high)
                for by_position, low, high in own[1]
            ]
            positions.append(own[0])
            shift += len(own[0])
        return gather_ranges(segment, memtable, ranges, np.concatenate(positions), types, offsets)

    def _merge_memtable_keys(
        self,
        segment: Segment,
        memtable: Memtable,
        keys: NDArray[np.int64],
        timestamps: NDArray[np.int64] | None,
        n: int | None,
        where: str | None,
        first: NDArray[np.int64],
        stop: NDArray[np.int64],
    ) -> dict[int, tuple[NDArray[np.int64], list[EventRange]]]:
        """Return positions and ranges of the keys that have events in the memtable, by index among the keys.

        The segment's own range of such a key is emptied.
        """
        fresh: dict[int, tuple[NDArray[np.int64], list[EventRange]]] = {}
        owners = (
            []
            if not len(memtable)
            else [(at, own) for at, key in enumerate(keys.tolist()) if (own := memtable.get(key))]
        )
        for at, own in owners:
            if count := count_before(own, None if timestamps is None else int(timestamps[at])):
                low, high = int(first[at]), int(stop[at])
                fresh[at] = merge_key_events(segment, memtable, self.identity, own, count, low, high, n, where)
                first[at] = high
        return fresh

    def _find_passing(self, segment: Segment, where: str) -> NDArray[np.int64]:
        """Return the positions of the segment's events that pass a filter."""
        if where not in self._passing:
            self._passing[where] = np.flatnonzero(segment.columns[where])
        return self._passing[where]
