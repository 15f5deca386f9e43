"""Merge of a segment and a memtable: the read order of one key's events, and their values.

A position counts a segment's events from 0. Position p of the memtable is encoded as ``~p``, which is negative, so that
one array holds positions of both layers. An event range is a slice of the segment, or a slice of an array of positions.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.column_types import Types
from longrec.store.history_store import Events
from longrec.store.memtable import KeyEvents, Memtable, compute_merge_order
from longrec.store.segment import Segment

_FEW = 12
"""Maximum number of new events of a key that are inserted among the old ones one by one."""
_TIME = np.dtype(np.int64)

EventRange = tuple[bool, int, int]
"""``(by_position, start, stop)``: a slice of an array of positions if ``by_position`` is True, else of the segment."""


def merge_key_events(
    segment: Segment,
    memtable: Memtable,
    identity: str | None,
    memtable_events: KeyEvents,
    count: int,
    start: int,
    stop: int,
    n: int | None,
    where: str | None,
) -> tuple[NDArray[np.int64], list[EventRange]]:
    """Return the positions and the event ranges of one key that has events in both layers, in read order.

    Args:
        identity: column that identifies an event, or None.
        memtable_events: events of the key in the memtable.
        count: number of those events that are before the timestamp.
        start, stop: positions of the segment's events of the key that are before the timestamp.
        n: number of newest events to read. None: all.
        where: column of the filter, or None.
    """
    low = 0 if n is None or where is not None else max(0, count - n)
    # A copy, because an array with an exported buffer cannot grow.
    new = np.frombuffer(memtable_events[1][low:count].tobytes(), np.int64)
    if where is None:
        if n is not None:
            start = max(start, stop - n)
        if start == stop or segment.times[stop - 1] < memtable_events[0][low]:
            if n is not None:
                start = max(start, stop - n + len(new))
            return ~new, [(False, start, stop), (True, 0, len(new))]
        among = bisect_right(memtable_events[0], int(segment.times[stop - 1]), low, count) - low
        if among <= _FEW:
            ranges = _split_ranges(segment, start, stop, memtable, new[:among], identity)
            return ~new, _keep_last([*ranges, (True, among, len(new))], n)
    ids = None
    positions = np.concatenate([np.arange(start, stop), ~new])
    times = np.concatenate([segment.times[start:stop], memtable.times.take(new)])
    if identity is not None:
        ids = np.concatenate([segment.columns[identity][start:stop], memtable.columns[identity].take(new)])
    positions = positions[compute_merge_order(times, ids)]
    if where is not None:  # after the merge: an updated event may no longer pass
        passed = _Positions(positions).take(segment.columns[where], memtable.columns[where], memtable.types[where]) != 0
        positions = positions[passed]
    return positions, _keep_last([(True, 0, len(positions))], n)


def _split_ranges(
    segment: Segment, start: int, stop: int, memtable: Memtable, new: NDArray[np.int64], identity: str | None
) -> list[EventRange]:
    """Return the ranges of ``start:stop`` of a segment with a few events of the memtable inserted."""
    ranges: list[EventRange] = []
    times, ids = segment.times, None if identity is None else segment.columns[identity]
    for number, position in enumerate(new.tolist()):
        time = memtable.times[position]
        at, again = start + int(times[start:stop].searchsorted(time, side="right" if ids is None else "left")), False
        if ids is not None and identity is not None and at < stop and times[at] == time:
            tied = at + int(times[at:stop].searchsorted(time, side="right"))
            name = memtable.columns[identity][position]
            at += int(ids[at:tied].searchsorted(name))
            again = at < tied and bool(ids[at] == name)
        ranges += [(False, start, at), (True, number, number + 1)]
        start = at + again
    ranges.append((False, start, stop))
    return ranges


def _keep_last(ranges: list[EventRange], n: int | None) -> list[EventRange]:
    """Return the last ``n`` events of event ranges."""
    if n is None:
        return ranges
    kept: list[EventRange] = []
    for by_position, start, stop in reversed(ranges):
        if n <= 0:
            break
        kept.append((by_position, max(start, stop - n), stop))
        n -= stop - start
    return kept[::-1]


def expand_ranges(
    first: NDArray[np.int64], stop: NDArray[np.int64], begin: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all indices of some ranges, concatenated, and their destination indices, which start at ``begin``."""
    lengths = stop - first
    ends = np.cumsum(lengths)
    count = np.arange(ends[-1] if len(ends) else 0)
    return count + np.repeat(first - (ends - lengths), lengths), count + np.repeat(begin - (ends - lengths), lengths)


def gather_ranges(
    segment: Segment,
    memtable: Memtable,
    ranges: list[EventRange],
    positions: NDArray[np.int64],
    types: Types,
    offsets: NDArray[np.int64] | None,
) -> Events:
    """Return the events of event ranges, copied slice by slice.

    Args:
        offsets: offsets of the keys. None: all events are of one key.
    """
    ranges, selection = (
        [event_range for event_range in ranges if event_range[1] < event_range[2]],
        _Positions(positions),
    )

    def concatenate(old: NDArray[Any], added: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        if not len(positions):
            blocks = [old[start:stop] for _, start, stop in ranges]
        else:
            new = selection.take(old, added, dtype)
            blocks = [(new if by_position else old)[start:stop] for by_position, start, stop in ranges]
        return np.concatenate(blocks or [old[:0]], dtype=dtype.base, casting="unsafe")

    columns = {name: concatenate(segment.columns[name], memtable.columns[name], dtype) for name, dtype in types.items()}
    times = concatenate(segment.times, memtable.times, _TIME)
    return Events(np.array([0, len(times)]) if offsets is None else offsets, times, columns)


def gather_events(
    segment: Segment, memtable: Memtable, positions: NDArray[np.int64], offsets: NDArray[np.int64], types: Types
) -> Events:
    """Return the events at the given positions, taken one by one."""
    take = _Positions(positions).take
    columns = {name: take(segment.columns[name], memtable.columns[name], dtype) for name, dtype in types.items()}
    return Events(offsets, take(segment.times, memtable.times, _TIME), columns)


class _Positions:
    """Positions of a segment (0 and up) and of the memtable above it (below 0)."""

    def __init__(self, positions: NDArray[np.int64]) -> None:
        self.positions = positions
        fresh = positions < 0
        count = int(np.count_nonzero(fresh))
        self._old = not count
        self._split = (fresh, ~positions[fresh], ~fresh, positions[~fresh]) if 0 < count < len(positions) else None

    def take(self, old: NDArray[Any], new: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the values of one column, from the segment and the memtable, in its read type."""
        if self._old:
            return old.take(self.positions, axis=0).astype(dtype.base, copy=False)
        if self._split is None:
            return new.take(~self.positions, axis=0)
        at_new, from_new, at_old, from_old = self._split
        values = np.empty((len(self.positions), *dtype.shape), dtype.base)
        values[at_new] = new.take(from_new, axis=0)
        values[at_old] = old.take(from_old, axis=0)
        return values
