"""A delta: the newest events, in memory. Columns grow in the order in which events came; each key keeps the places of
its own, in order of time.
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
"""Up to so many events of a key are put in their places one by one."""

Own = tuple["array[int]", "array[int]"]
"""Times and places of one key's events, both in the order in which they are read."""


class Memtable:
    """Events by key; without an identity, those of one moment keep the order in which they came.

    Places are never moved or written twice, so that arrays taken from a delta stay valid while it grows.

    Attributes:
        times: int64 ``[room]``, the first ``size`` of them written; ``columns`` likewise.
    """

    def __init__(self, types: Types, identity: str | None = None) -> None:
        self.types, self.identity = types, identity
        self.size, self._count = 0, 0
        self.times: NDArray[np.int64] = np.zeros(0, np.int64)
        self.columns: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype) for name, dtype in types.items()}
        self._own: dict[int, Own] = {}

    def __len__(self) -> int:
        """Events, each identity counted once."""
        return self._count

    @property
    def owners(self) -> NDArray[np.int64]:
        """int64 keys that own events, rising."""
        return np.sort(np.fromiter(self._own, np.int64, len(self._own)))

    def get(self, key: int) -> Own | None:
        """Times and places of a key, or None when it owns nothing."""
        return self._own.get(key)

    def places(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of all events of some keys that own some, end to end, and how many each has."""
        owned = [self._own[key][1] for key in keys.tolist()]
        counts = np.fromiter(map(len, owned), np.int64, len(owned))
        return np.frombuffer(b"".join(places.tobytes() for places in owned), np.int64), counts

    def add(self, keys: NDArray[np.int64], times: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> None:
        """Add events in the types of the store, ``[n]`` or ``[n, W]``; they came in this order."""
        if not len(keys):
            return
        start = self.size
        self._write(times, columns)
        ids = None if self.identity is None else columns[self.identity]
        order = np.lexsort((times, keys) if ids is None else (ids, times, keys))  # stable: arrival decides the rest
        if ids is not None and len(order) > 1:
            same = np.ones(len(order) - 1, bool)
            for part in (keys, times, ids):
                ordered = part[order]
                same &= ordered[1:] == ordered[:-1]
            if same.any():
                order = order[np.append(~same, True)]  # the last written one wins
        owners, moments, at = keys[order], times[order], order + start
        bounds = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), len(order)]
        first = bounds[:-1]
        rows = zip(owners[first].tolist(), moments[first].tolist(), at[first].tolist(), first, bounds[1:])
        time_bytes, at_bytes = moments.tobytes(), at.tobytes()
        for key, moment, place, low, high in rows:
            new = time_bytes[8 * low : 8 * high], at_bytes[8 * low : 8 * high]
            own = self._own.get(key)
            if own is None:
                own = self._own[key] = (array("q"), array("q"))
            elif moment <= own[0][-1] and not self._after(own, moment, place):
                if high - low <= _FEW:
                    self._count += self._squeeze(own, moments[low:high].tolist(), at[low:high].tolist())
                else:
                    self._count += self._mix(key, own, new)
                continue
            own[0].frombytes(new[0])
            own[1].frombytes(new[1])
            self._count += high - low

    def _write(self, times: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> None:
        stop = self.size + len(times)
        if stop > len(self.times):
            room = max(stop, 2 * len(self.times), 256)
            self.times = _grown(self.times, self.size, room)
            self.columns = {name: _grown(column, self.size, room) for name, column in self.columns.items()}
        self.times[self.size : stop] = times
        for name, column in self.columns.items():
            column[self.size : stop] = columns[name]
        self.size = stop

    def _after(self, own: Own, moment: int, place: int) -> bool:
        """Whether an event, no later than the last that its key owns, comes after it nevertheless."""
        if moment < own[0][-1]:
            return False
        if self.identity is None:
            return True
        ids = self.columns[self.identity]
        return bool(ids[place] > ids[own[1][-1]])

    def _squeeze(self, own: Own, times: list[int], places: list[int]) -> int:
        """Put a few late or rewritten events where they belong; returns how many were new."""
        before, ids = len(own[0]), None if self.identity is None else self.columns[self.identity]
        for time, place in zip(times, places):
            low, high = bisect_left(own[0], time), bisect_right(own[0], time)
            if ids is not None and low < high:
                tied = ids.take(own[1][low:high])
                low += int(tied.searchsorted(ids[place]))
                if low < high and ids[own[1][low]] == ids[place]:
                    own[1][low] = place
                    continue
                high = low
            own[0].insert(high, time)
            own[1].insert(high, place)
        return len(own[0]) - before

    def _mix(self, key: int, own: Own, new: tuple[bytes, bytes]) -> int:
        """Merge late or rewritten events into a key's own; returns by how many they grew."""
        times = np.frombuffer(own[0].tobytes() + new[0], np.int64)
        places = np.frombuffer(own[1].tobytes() + new[1], np.int64)
        ids = None if self.identity is None else self.columns[self.identity].take(places)
        order = merged(times, ids)
        self._own[key] = (array("q", times[order].tobytes()), array("q", places[order].tobytes()))
        return len(order) - len(own[0])

    def sorted(self, names: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Keys, times and some columns of all events, by (key, time)."""
        owners = self.owners
        places, counts = self.places(owners)
        return (
            np.repeat(owners, counts),
            self.times.take(places),
            {name: self.columns[name].take(places, axis=0) for name in names},
        )


def until(own: Own, moment: int | None) -> int:
    """How many of a key's events lie strictly before a moment (all, when it is None)."""
    return len(own[0]) if moment is None else bisect_left(own[0], moment)


def merged(times: NDArray[np.int64], ids: NDArray[Any] | None) -> NDArray[np.int64]:
    """The order in which events are read, each once, given those written first at the front."""
    if ids is None:
        return np.argsort(times, kind="stable")
    order = np.lexsort((ids, times))
    times, ids = times[order], ids[order]
    last = np.ones(len(order), bool)
    last[:-1] = (times[1:] != times[:-1]) | (ids[1:] != ids[:-1])
    return order[last]


def _grown(column: NDArray[Any], size: int, room: int) -> NDArray[Any]:
    grown = np.empty((room, *column.shape[1:]), column.dtype)
    grown[:size] = column[:size]
    return grown
