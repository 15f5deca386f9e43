"""A history store on disk: one immutable, memory-mapped segment, and the events appended since, in memory.

What was appended is not yet durable: it is gone with the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.memory import MemoryStore, join, latest, pairs
from longrec.store.segment import Segment
from longrec.store.store import Events


class DiskStore:
    """A segment and a delta, read as one: merged by time, the segment's events first where times are equal."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._delta = MemoryStore({name: column.dtype for name, column in segment.columns.items()}, segment.rows)
        self.types, self.rows = self._delta.types, segment.rows
        self._none = join([], self.types)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> DiskStore:
        """Map a segment.

        Raises:
            StoreError: missing, damaged, or of another version.
        """
        return cls(Segment.open(folder, verify=verify))

    def __len__(self) -> int:
        return len(self._segment) + len(self._delta)

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events to the delta; see ``HistoryStore.append``."""
        self._delta.append(keys, times, values)

    def last(
        self, keys: int | NDArray[Any], before: int | NDArray[np.int64], n: int, where: str | None = None
    ) -> Events:
        """The last ``n`` events of each key strictly before a moment; see ``HistoryStore.last``."""
        parts = []
        for key, moment in pairs(keys, before, self.rows):
            mask = None if where is None else self._segment.columns[where]
            at = latest(*self._segment.before(key, moment), n, mask)
            new = self._delta.last(key, moment, n, where) if key in self._delta else self._none
            parts.append(self._merged(at, new, n))
        return join(parts, self.types)

    def _merged(
        self, at: slice | NDArray[np.int64], new: Events, n: int
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """The last ``n`` of the segment's events ``at`` and the delta's events ``new``."""
        segment = self._segment
        times = segment.times[at]
        columns = {name: segment.columns[name][at].astype(dtype) for name, dtype in self.types.items()}
        if not len(new):
            return times, columns
        times = np.concatenate([times, new.times])
        order = np.argsort(times, kind="stable")[max(0, len(times) - n) :]
        return times[order], {name: np.concatenate([columns[name], new.columns[name]])[order] for name in self.types}

    def scan(self) -> Iterator[tuple[int, Events]]:
        """Every key with events; see ``HistoryStore.scan``."""
        new, offsets = dict(self._delta.scan()), self._segment.offsets
        for key in sorted({*np.flatnonzero(np.diff(offsets)).tolist(), *new}):
            own = slice(int(offsets[key]), int(offsets[key + 1]))
            yield key, join([self._merged(own, new.get(key, self._none), len(self))], self.types)
