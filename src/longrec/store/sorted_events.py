"""Vectorized search and sorting of events by (key, time, identity)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.segment import Segment


def find_lower_bounds(
    times: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    *,
    ties: bool = False,
    ids: tuple[NDArray[Any], NDArray[np.int64]] | None = None,
) -> NDArray[np.int64]:
    """Return for each b the first position in ``[low[b], high[b]]`` at or after ``timestamps[b]``.

    All binary searches advance together.

    Args:
        times: int64, ascending inside every ``[low[b], high[b])``.
        ties: return the first position *after* the timestamp instead (an upper bound).
        ids: second sort key, of the events and of the searched values. It orders equal timestamps.
    """
    low, high = low.astype(np.int64), high.astype(np.int64)
    active = np.flatnonzero(low < high)
    while len(active):
        start, stop, timestamp = low[active], high[active], timestamps[active]
        middle = (start + stop) >> 1
        values = times.take(middle)
        earlier = values <= timestamp if ties else values < timestamp
        if ids is not None:
            earlier |= (values == timestamp) & (ids[0].take(middle) < ids[1][active])
        start, stop = np.where(earlier, middle + 1, start), np.where(earlier, stop, middle)
        low[active], high[active] = start, stop
        active = active[start < stop]
    return low


def locate_events(
    segment: Segment,
    keys: NDArray[np.int64],
    times: NDArray[np.int64],
    ids: NDArray[np.int64] | None,
    identity: str | None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the position of each event among a segment's events, and True if it updates the event there.

    Args:
        keys, times, ids: int64 ``[n]``, one event each. Without an identity an event comes after its ties.
    """
    first, stop = segment.find_ranges(keys)
    if ids is None or identity is None:
        return find_lower_bounds(segment.times, first, stop, times, ties=True), np.zeros(len(keys), bool)
    positions = find_lower_bounds(segment.times, first, stop, times, ids=(segment.columns[identity], ids))
    is_update = positions < stop
    at = positions[is_update]
    is_update[is_update] = (segment.times.take(at) == times[is_update]) & (
        segment.columns[identity].take(at) == ids[is_update]
    )
    return positions, is_update


def compute_read_order(
    keys: NDArray[np.int64], times: NDArray[np.int64], ids: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """Return the order by (key, time, identity), without repeated events. None if the events already have it."""
    rising = (keys[1:] > keys[:-1]) | ((keys[1:] == keys[:-1]) & (times[1:] >= times[:-1]))
    if not rising.all():
        order = np.lexsort((times, keys) if ids is None else (ids, times, keys))
        if ids is None:
            return order
        is_last = np.append(
            (np.diff(keys[order]) != 0) | (np.diff(times[order]) != 0) | (np.diff(ids[order]) != 0), True
        )
        return order[is_last] if len(order) else order
    if ids is None:
        return None
    tied = (keys[1:] == keys[:-1]) & (times[1:] == times[:-1])
    if (ids[1:] > ids[:-1])[tied].all():
        return None
    return _sort_ties(times, ids, tied)


def _sort_ties(times: NDArray[np.int64], ids: NDArray[np.int64], tied: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the order of events sorted by (key, time) in which ties are sorted by identity."""
    order = np.arange(len(times))
    run = np.cumsum(np.append(True, ~tied))  # one number per key and timestamp
    among = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
    by_id = np.lexsort((ids[among], run[among]))
    order[among] = among[by_id]
    same = np.append((run[1:] == run[:-1]) & (ids[order][1:] == ids[order][:-1]), False)
    return order[~same]
