"""Searching and merging sorted events, all keys at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.segment import Segment


def first_from(
    times: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    moments: NDArray[np.int64],
    *,
    ties: bool = False,
    ids: tuple[NDArray[Any], NDArray[np.int64]] | None = None,
) -> NDArray[np.int64]:
    """For each b the first place in ``[low, high]`` at or after ``moments[b]``: a binary search in step.

    Args:
        times: int64, rising inside every ``[low[b], high[b])``.
        ties: the first place *after* the moment instead.
        ids: a second key, of the events and of what is searched for; it decides between equal moments.
    """
    low, high = low.astype(np.int64), high.astype(np.int64)
    left = np.flatnonzero(low < high)
    while len(left):
        start, stop, moment = low[left], high[left], moments[left]
        middle = (start + stop) >> 1
        found = times.take(middle)
        earlier = found <= moment if ties else found < moment
        if ids is not None:
            earlier |= (found == moment) & (ids[0].take(middle) < ids[1][left])
        start, stop = np.where(earlier, middle + 1, start), np.where(earlier, stop, middle)
        low[left], high[left] = start, stop
        left = left[start < stop]
    return low


def rewritten(
    segment: Segment,
    keys: NDArray[np.int64],
    times: NDArray[np.int64],
    ids: NDArray[np.int64] | None,
    identity: str | None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each event belongs among a segment's, and whether it is one of them written again.

    Args:
        keys, times, ids: int64 ``[n]``, one event each; without an identity an event comes after its ties.
    """
    first, stop = segment.ranges(keys)
    if ids is None or identity is None:
        return first_from(segment.times, first, stop, times, ties=True), np.zeros(len(keys), bool)
    places = first_from(segment.times, first, stop, times, ids=(segment.columns[identity], ids))
    again = places < stop
    at = places[again]
    again[again] = (segment.times.take(at) == times[again]) & (segment.columns[identity].take(at) == ids[again])
    return places, again


def reading_order(
    keys: NDArray[np.int64], times: NDArray[np.int64], ids: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """The order by (key, time, identity), each event once; None when they lie so already."""
    rising = (keys[1:] > keys[:-1]) | ((keys[1:] == keys[:-1]) & (times[1:] >= times[:-1]))
    if not rising.all():
        order = np.lexsort((times, keys) if ids is None else (ids, times, keys))
        if ids is None:
            return order
        last = np.append((np.diff(keys[order]) != 0) | (np.diff(times[order]) != 0) | (np.diff(ids[order]) != 0), True)
        return order[last] if len(order) else order
    if ids is None:
        return None
    tied = (keys[1:] == keys[:-1]) & (times[1:] == times[:-1])
    if (ids[1:] > ids[:-1])[tied].all():
        return None
    return _ties_ordered(times, ids, tied)


def _ties_ordered(times: NDArray[np.int64], ids: NDArray[np.int64], tied: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The order of events sorted by (key, time): only those that share both are put in order of identity."""
    order = np.arange(len(times))
    run = np.cumsum(np.append(True, ~tied))  # one number for all events of a key and moment
    among = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
    by_id = np.lexsort((ids[among], run[among]))
    order[among] = among[by_id]
    same = np.append((run[1:] == run[:-1]) & (ids[order][1:] == ids[order][:-1]), False)
    return order[~same]
