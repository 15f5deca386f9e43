"""The memtable of an LSM store: the newest events, in memory.

Columns grow in the order of arrival. Each key keeps the positions of its events, in order of time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.column_types import Types

_FEW = 8
"""Maximum number of events of a key that are inserted one by one."""

KeyEvents = tuple["array[int]", "array[int]"]
"""Times and positions of one key's events, both in read order."""


class Memtable:
    """Events by key. Without an identity, events of one timestamp keep their order of arrival.

    A position is never moved or written twice, so that arrays taken from a memtable stay valid while it grows.

    Attributes:
        times: int64 ``[capacity]``, of which the first ``size`` are written. ``columns`` likewise.
    """

    def __init__(self, types: Types, identity: str | None = None) -> None:
        self.types, self.identity = types, identity
        self.size, self._count = 0, 0
        self.times: NDArray[np.int64] = np.zeros(0, np.int64)
        self.columns: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype) for name, dtype in types.items()}
        self._events_by_key: dict[int, KeyEvents] = {}

    def __len__(self) -> int:
        """Return the number of events, counting each identity once."""
        return self._count

    @property
    def owners(self) -> NDArray[np.int64]:
        """Keys that have events, int64, ascending."""
        return np.sort(np.fromiter(self._events_by_key, np.int64, len(self._events_by_key)))

    def get(self, key: int) -> KeyEvents | None:
        """Return the times and positions of a key, or None if it has no events."""
        return self._events_by_key.get(key)

    def gather_positions(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the concatenated positions of all events of some keys, and the number of events per key."""
        owned = [self._events_by_key[key][1] for key in keys.tolist()]
        counts = np.fromiter(map(len, owned), np.int64, len(owned))
        return np.frombuffer(b"".join(positions.tobytes() for positions in owned), np.int64), counts

    def add(self, keys: NDArray[np.int64], times: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> None:
        """Add events in the types of the store, ``[n]`` or ``[n, W]``, in order of arrival."""
        if not len(keys):
            return
        start = self.size
        self._write(times, columns)
        ids = None if self.identity is None else columns[self.identity]
        order = np.lexsort(
            (times, keys) if ids is None else (ids, times, keys)
        )  # stable: ties stay in order of arrival
        if ids is not None and len(order) > 1:
            same = np.ones(len(order) - 1, bool)
            for values in (keys, times, ids):
                ordered = values[order]
                same &= ordered[1:] == ordered[:-1]
            if same.any():
                order = order[np.append(~same, True)]  # the last written one wins
        owners, timestamps, at = keys[order], times[order], order + start
        bounds = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), len(order)]
        first = bounds[:-1]
        rows = zip(owners[first].tolist(), timestamps[first].tolist(), at[first].tolist(), first, bounds[1:])
        time_bytes, at_bytes = timestamps.tobytes(), at.tobytes()
        for key, timestamp, position, low, high in rows:
            new = time_bytes[8 * low : 8 * high], at_bytes[8 * low : 8 * high]
            own = self._events_by_key.get(key)
            if own is None:
                own = self._events_by_key[key] = (array("q"), array("q"))
            elif timestamp <= own[0][-1] and not self._is_last(own, timestamp, position):
                if high - low <= _FEW:
                    self._count += self._insert_few(own, timestamps[low:high].tolist(), at[low:high].tolist())
                else:
                    self._count += self._merge_events(key, own, new)
                continue
            own[0].frombytes(new[0])
            own[1].frombytes(new[1])
            self._count += high - low

    def _write(self, times: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> None:
        stop = self.size + len(times)
        if stop > len(self.times):
            capacity = max(stop, 2 * len(self.times), 256)
            self.times = _grow(self.times, self.size, capacity)
            self.columns = {name: _grow(column, self.size, capacity) for name, column in self.columns.items()}
        self.times[self.size : stop] = times
        for name, column in self.columns.items():
            column[self.size : stop] = columns[name]
        self.size = stop

    def _is_last(self, own: KeyEvents, timestamp: int, position: int) -> bool:
        """Return True if an event that is no later than the last of its key still comes after it in read order."""
        if timestamp < own[0][-1]:
            return False
        if self.identity is None:
            return True
        ids = self.columns[self.identity]
        return bool(ids[position] > ids[own[1][-1]])

    def _insert_few(self, own: KeyEvents, times: list[int], positions: list[int]) -> int:
        """Insert a few late or updated events and return the number of new ones."""
        before, ids = len(own[0]), None if self.identity is None else self.columns[self.identity]
        for time, position in zip(times, positions):
            low, high = bisect_left(own[0], time), bisect_right(own[0], time)
            if ids is not None and low < high:
                tied = ids.take(own[1][low:high])
                low += int(tied.searchsorted(ids[position]))
                if low < high and ids[own[1][low]] == ids[position]:
                    own[1][low] = position
                    continue
                high = low
            own[0].insert(high, time)
            own[1].insert(high, position)
        return len(own[0]) - before

    def _merge_events(self, key: int, own: KeyEvents, new: tuple[bytes, bytes]) -> int:
        """Merge late or updated events into those of a key and return the number of new ones."""
        times = np.frombuffer(own[0].tobytes() + new[0], np.int64)
        positions = np.frombuffer(own[1].tobytes() + new[1], np.int64)
        ids = None if self.identity is None else self.columns[self.identity].take(positions)
        order = compute_merge_order(times, ids)
        self._events_by_key[key] = (array("q", times[order].tobytes()), array("q", positions[order].tobytes()))
        return len(order) - len(own[0])

    def sort_events(self, names: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Return keys, times and some columns of all events, sorted by (key, time)."""
        owners = self.owners
        positions, counts = self.gather_positions(owners)
        return (
            np.repeat(owners, counts),
            self.times.take(positions),
            {name: self.columns[name].take(positions, axis=0) for name in names},
        )


def count_before(own: KeyEvents, timestamp: int | None) -> int:
    """Return the number of a key's events strictly before a timestamp (all of them for None)."""
    return len(own[0]) if timestamp is None else bisect_left(own[0], timestamp)


def compute_merge_order(times: NDArray[np.int64], ids: NDArray[Any] | None) -> NDArray[np.int64]:
    """Return the read order of events without repeated identities, from events in order of arrival."""
    if ids is None:
        return np.argsort(times, kind="stable")
    order = np.lexsort((ids, times))
    times, ids = times[order], ids[order]
    last = np.ones(len(order), bool)
    last[:-1] = (times[1:] != times[:-1]) | (ids[1:] != ids[:-1])
    return order[last]


def _grow(column: NDArray[Any], size: int, capacity: int) -> NDArray[Any]:
    grown = np.empty((capacity, *column.shape[1:]), column.dtype)
    grown[:size] = column[:size]
    return grown
