"""Reading a segment and a delta as one: many keys at once by a binary search in step, one key in plain Python.

Which events answer is looked up under a lock, in a moment; their values are gathered without it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.column_types import Types, checked
from longrec.store.history_store import Events
from longrec.store.memtable import Memtable, until
from longrec.store.merge_iterator import Piece, gathered, mixed, picked, ranges
from longrec.store.segment import Segment
from longrec.store.sorted_events import first_from, rewritten

_SCAN = 1_024
"""Keys that a scan reads at once."""
_SHORT = 24
"""Up to so many events a key, taking them one by one is faster than slice by slice."""


class LsmTree:
    """A segment, and the events that came since, merged by time; the base of the embedded stores.

    Safe for several readers beside one writer in threads of one process.
    """

    def __init__(self, segment: Segment, types: Types, rows: int | None, identity: str | None) -> None:
        self.types, self.rows, self.identity = types, rows, identity
        self._reading = threading.Lock()
        """Held for the moment in which places are looked up; values are gathered without it."""
        self._under(segment)

    def _under(self, segment: Segment, delta: Memtable | None = None) -> None:
        """Put a segment under a delta, by default an empty one."""
        with self._reading:
            self._segment = segment
            self._delta = Memtable(self.types, self.identity) if delta is None else delta
            self._kept: dict[str, NDArray[np.int64]] = {}
            self._twice = (0, 0)

    def __len__(self) -> int:
        with self._reading:
            segment, delta, (size, twice) = self._segment, self._delta, self._twice
            if self.identity is not None and size != delta.size:
                keys, times, columns = delta.sorted([self.identity])
                twice = int(rewritten(segment, keys, times, columns[self.identity], self.identity)[1].sum())
                self._twice = (delta.size, twice)
            return len(segment) + len(delta) - twice

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events to the delta; see ``HistoryStore.append``."""
        keys, times, columns = checked(self.types, self.rows, keys, times, values)
        with self._reading:
            self._delta.add(keys, times, columns)

    def last(
        self,
        keys: int | NDArray[Any],
        before: int | NDArray[np.int64],
        n: int,
        where: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Events:
        """The last ``n`` events of each key strictly before a moment; see ``HistoryStore.last``."""
        types = self._asked(where, columns)
        if isinstance(keys, int) and isinstance(before, int):
            return self._last_of_one(keys, before, n, where, types)
        wanted = np.atleast_1d(np.asarray(keys)).astype(np.int64, copy=False)
        if len(wanted):
            self._hold(int(wanted.min()), int(wanted.max()))
        moments = np.broadcast_to(np.asarray(before, np.int64), wanted.shape)
        if len(wanted) == 1:
            return self._last_of_one(int(wanted[0]), int(moments[0]), n, where, types)
        return self._read(wanted, moments, n, where, types)

    def scan(self) -> Iterator[tuple[int, Events]]:
        """Every key with events; see ``HistoryStore.scan``."""
        with self._reading:
            owners = np.union1d(self._segment.owners(), self._delta.owners)
        for at in range(0, len(owners), _SCAN):
            keys = owners[at : at + _SCAN]
            events = self._read(keys, None, None, None, self.types)
            bounds = events.offsets.tolist()
            for key, start, stop in zip(keys.tolist(), bounds, bounds[1:]):
                own = {name: column[start:stop] for name, column in events.columns.items()}
                yield key, Events(np.array([0, stop - start]), events.times[start:stop], own)

    def _asked(self, where: str | None, columns: Sequence[str] | None) -> Types:
        for name in (*(columns or ()), *((where,) if where is not None else ())):
            if name not in self.types:
                raise StoreError("store", f"no column {name!r}", ", ".join(self.types) or "no column at all")
        return self.types if columns is None else {name: self.types[name] for name in columns}

    def _hold(self, low: int, high: int) -> None:
        if self.rows is not None and not 0 <= low <= high < self.rows:
            found = f"the key row {low}" if low == high else f"the key rows {low} to {high}"
            raise StoreError("store", found, f"rows from 0 to {self.rows - 1}")

    def _last_of_one(self, key: int, moment: int, n: int, where: str | None, types: Types) -> Events:
        """One key of one request: no search in step."""
        self._hold(key, key)
        with self._reading:
            segment, delta = self._segment, self._delta
            row = segment.row(key)
            start, stop = segment.before(row, moment) if row >= 0 else (0, 0)
            own = delta.get(key)
            count = 0 if own is None else until(own, moment)
            if own is not None and count:
                places, pieces = mixed(segment, delta, self.identity, own, count, start, stop, n, where)
        if count:
            return gathered(segment, delta, pieces, places, types, None)
        at: slice | NDArray[np.int64] = slice(max(start, stop - n), stop)
        if where is not None:
            met = np.flatnonzero(segment.columns[where][start:stop]) + start
            at = met[max(0, len(met) - n) :]
        columns = {name: segment.columns[name][at].astype(dtype.base) for name, dtype in types.items()}
        times = segment.times[at].copy()
        return Events(np.array([0, len(times)]), times, columns)

    def _read(
        self,
        keys: NDArray[np.int64],
        moments: NDArray[np.int64] | None,
        n: int | None,
        where: str | None,
        types: Types,
    ) -> Events:
        """Events of many keys, all of them where ``moments`` or ``n`` is None."""
        with self._reading:
            segment, delta = self._segment, self._delta
            first, stop = segment.ranges(keys)
            if moments is not None:
                stop = first_from(segment.times, first, stop, moments)
            fresh = self._fresh(segment, delta, keys, moments, n, where, first, stop)
            kept = None if where is None else self._met(segment, where)
        if kept is not None:
            first, stop = kept.searchsorted(first), kept.searchsorted(stop)
        if n is not None:
            first = np.maximum(first, stop - n)
        counts = stop - first
        for at, (_, pieces) in fresh.items():
            counts[at] = sum(end - start for _, start, end in pieces)
        offsets = np.zeros(len(keys) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        if kept is None and offsets[-1] > _SHORT * len(keys):
            return self._sliced(segment, delta, first, stop, fresh, offsets, types)
        old, beside = ranges(first, stop, offsets[:-1])
        places = np.empty(offsets[-1], np.int64)
        places[beside] = old if kept is None else kept.take(old)
        for at, (new, pieces) in fresh.items():
            parts = [new[start:end] if late else np.arange(start, end) for late, start, end in pieces]
            places[offsets[at] : offsets[at + 1]] = np.concatenate([np.zeros(0, np.int64), *parts])
        return picked(segment, delta, places, offsets, types)

    def _sliced(
        self,
        segment: Segment,
        delta: Memtable,
        first: NDArray[np.int64],
        stop: NDArray[np.int64],
        fresh: dict[int, tuple[NDArray[np.int64], list[Piece]]],
        offsets: NDArray[np.int64],
        types: Types,
    ) -> Events:
        """Long lists, copied slice by slice."""
        if not fresh:
            whole = [(False, start, end) for start, end in zip(first.tolist(), stop.tolist())]
            return gathered(segment, delta, whole, np.zeros(0, np.int64), types, offsets)
        pieces, places, shift = [], [np.zeros(0, np.int64)], 0
        for at, (start, end) in enumerate(zip(first.tolist(), stop.tolist())):
            own = fresh.get(at)
            if own is None:
                pieces.append((False, start, end))
                continue
            pieces += [(late, low + shift, high + shift) if late else (late, low, high) for late, low, high in own[1]]
            places.append(own[0])
            shift += len(own[0])
        return gathered(segment, delta, pieces, np.concatenate(places), types, offsets)

    def _fresh(
        self,
        segment: Segment,
        delta: Memtable,
        keys: NDArray[np.int64],
        moments: NDArray[np.int64] | None,
        n: int | None,
        where: str | None,
        first: NDArray[np.int64],
        stop: NDArray[np.int64],
    ) -> dict[int, tuple[NDArray[np.int64], list[Piece]]]:
        """What to read of the keys that own events in the delta, by their place among the keys; the segment's own
        range of such a key is closed.
        """
        fresh: dict[int, tuple[NDArray[np.int64], list[Piece]]] = {}
        owners = (
            [] if not len(delta) else [(at, own) for at, key in enumerate(keys.tolist()) if (own := delta.get(key))]
        )
        for at, own in owners:
            if count := until(own, None if moments is None else int(moments[at])):
                low, high = int(first[at]), int(stop[at])
                fresh[at] = mixed(segment, delta, self.identity, own, count, low, high, n, where)
                first[at] = high
        return fresh

    def _met(self, segment: Segment, where: str) -> NDArray[np.int64]:
        """Places of the segment's events that pass a filter."""
        if where not in self._kept:
            self._kept[where] = np.flatnonzero(segment.columns[where])
        return self._kept[where]
