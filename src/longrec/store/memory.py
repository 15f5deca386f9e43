"""A history store in memory: small arrays a key, kept in time order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.store import Events, checked, reading_types


class MemoryStore:
    """Events of each key as arrays sorted by time; equal times keep the order in which they came."""

    def __init__(self, columns: Mapping[str, Any], rows: int) -> None:
        self.types: Mapping[str, np.dtype[Any]] = reading_types({n: np.dtype(dtype) for n, dtype in columns.items()})
        self.rows = rows
        self._times: dict[int, NDArray[np.int64]] = {}
        self._columns: dict[int, dict[str, NDArray[Any]]] = {}
        self._none = {name: np.zeros(0, dtype) for name, dtype in self.types.items()}

    def __len__(self) -> int:
        return sum(map(len, self._times.values()))

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events; see ``HistoryStore.append``."""
        keys, times, columns = checked(self.types, self.rows, keys, times, values)
        order = np.lexsort((times, keys))  # a stable sort: events of one key and moment keep their order
        keys, times = keys[order], times[order]
        owners, starts = np.unique(keys, return_index=True)
        for key, start, stop in zip(owners.tolist(), starts.tolist(), [*starts[1:].tolist(), len(keys)]):
            old, had = self.of(key)
            new = {name: column[order[start:stop]] for name, column in columns.items()}
            joined = np.concatenate([old, times[start:stop]])
            both = {name: np.concatenate([had[name], new[name]]) for name in self.types}
            if len(old) and times[start] < old[-1]:
                late = np.argsort(joined, kind="stable")
                joined, both = joined[late], {name: column[late] for name, column in both.items()}
            self._times[key], self._columns[key] = joined, both

    def __contains__(self, key: int) -> bool:
        """Whether a key owns events."""
        return key in self._times

    def of(self, key: int) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """All times and columns of one key."""
        if key not in self._times:
            return np.zeros(0, np.int64), self._none
        return self._times[key], self._columns[key]

    def last(
        self, keys: int | NDArray[Any], before: int | NDArray[np.int64], n: int, where: str | None = None
    ) -> Events:
        """The last ``n`` events of each key strictly before a moment; see ``HistoryStore.last``."""
        parts = []
        for key, moment in pairs(keys, before, self.rows):
            times, columns = self.of(key)
            stop = int(np.searchsorted(times, moment, side="left"))
            at = latest(0, stop, n, None if where is None else columns[where])
            parts.append((times[at], {name: column[at] for name, column in columns.items()}))
        return join(parts, self.types)

    def scan(self) -> Iterator[tuple[int, Events]]:
        """Every key with events; see ``HistoryStore.scan``."""
        for key in sorted(self._times):
            yield key, join([self.of(key)], self.types)


def pairs(keys: int | NDArray[Any], before: int | NDArray[np.int64], rows: int) -> Iterator[tuple[int, int]]:
    """Keys with their moments, as plain numbers.

    Raises:
        StoreError: a key that is no row of the store.
    """
    if isinstance(keys, int) and isinstance(before, int):  # one user of one request: no arrays
        if not 0 <= keys < rows:
            raise _no_row(keys, keys, rows)
        return iter([(keys, before)])
    wanted = np.atleast_1d(np.asarray(keys))
    moments = np.broadcast_to(np.asarray(before, np.int64), wanted.shape)
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() < rows:
        raise _no_row(int(wanted.min()), int(wanted.max()), rows)
    return zip(wanted.tolist(), moments.tolist())


def _no_row(low: int, high: int, rows: int) -> StoreError:
    found = f"the key row {low}" if low == high else f"the key rows {low} to {high}"
    return StoreError("store", found, f"rows from 0 to {rows - 1}")


def latest(start: int, stop: int, n: int, mask: NDArray[Any] | None) -> slice | NDArray[np.int64]:
    """Positions of the last ``n`` events of ``start:stop``, those with a mask of 0 left out."""
    if mask is None:
        return slice(max(start, stop - n), stop)
    met = np.flatnonzero(mask[start:stop]) + start
    return met[max(0, len(met) - n) :]


def join(parts: list[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]], types: Mapping[str, np.dtype[Any]]) -> Events:
    """Events of several keys end to end."""
    if len(parts) == 1:
        return Events(np.array([0, len(parts[0][0])]), parts[0][0], parts[0][1])
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(times) for times, _ in parts], out=offsets[1:])
    times = np.concatenate([np.zeros(0, np.int64), *(times for times, _ in parts)])
    columns = {
        name: np.concatenate([np.zeros(0, dtype), *(part[name] for _, part in parts)]) for name, dtype in types.items()
    }
    return Events(offsets, times, columns)
