"""One key's events in two layers, in the order in which they are read; and the values of what was found.

A place counts a segment's events from 0; an event of the delta at place p is written ``~p``, so that the sign tells
where a value is taken from. A piece is a range of the segment, or of a list of places.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.column_types import Types
from longrec.store.history_store import Events
from longrec.store.memtable import Memtable, Own, merged
from longrec.store.segment import Segment

_FEW = 12
"""Up to so many new events of a key are put among the old ones one by one."""
_TIME = np.dtype(np.int64)

Piece = tuple[bool, int, int]
"""Whether it is a range of the places found (or of the segment), its start and its end."""


def mixed(
    segment: Segment,
    delta: Memtable,
    identity: str | None,
    own: Own,
    count: int,
    start: int,
    stop: int,
    n: int | None,
    where: str | None,
) -> tuple[NDArray[np.int64], list[Piece]]:
    """What to read of one key that owns events in both layers: places, and the pieces to read in turn.

    Args:
        own: what it owns in the delta; the first ``count`` of it lie before the moment.
        start, stop: the segment's events of the key before the moment.
        n: the last so many; None: all.
        where: the column that lets events pass.
    """
    low = 0 if n is None or where is not None else max(0, count - n)
    # Copied, since a buffer that is read cannot grow.
    new = np.frombuffer(own[1][low:count].tobytes(), np.int64)
    if where is None:
        if n is not None:
            start = max(start, stop - n)
        if start == stop or segment.times[stop - 1] < own[0][low]:
            if n is not None:
                start = max(start, stop - n + len(new))
            return ~new, [(False, start, stop), (True, 0, len(new))]
        among = bisect_right(own[0], int(segment.times[stop - 1]), low, count) - low
        if among <= _FEW:
            pieces = _squeezed(segment, start, stop, delta, new[:among], identity)
            return ~new, _newest([*pieces, (True, among, len(new))], n)
    ids = None
    places = np.concatenate([np.arange(start, stop), ~new])
    times = np.concatenate([segment.times[start:stop], delta.times.take(new)])
    if identity is not None:
        ids = np.concatenate([segment.columns[identity][start:stop], delta.columns[identity].take(new)])
    places = places[merged(times, ids)]
    if where is not None:  # only now: an event written again may pass no more
        passed = _Places(places).taken(segment.columns[where], delta.columns[where], delta.types[where]) != 0
        places = places[passed]
    return places, _newest([(True, 0, len(places))], n)


def _squeezed(
    segment: Segment, start: int, stop: int, delta: Memtable, new: NDArray[np.int64], identity: str | None
) -> list[Piece]:
    """``start:stop`` of a segment with a few events of the delta among it."""
    pieces: list[Piece] = []
    times, ids = segment.times, None if identity is None else segment.columns[identity]
    for number, place in enumerate(new.tolist()):
        time = delta.times[place]
        at, again = start + int(times[start:stop].searchsorted(time, side="right" if ids is None else "left")), False
        if ids is not None and identity is not None and at < stop and times[at] == time:
            tied = at + int(times[at:stop].searchsorted(time, side="right"))
            name = delta.columns[identity][place]
            at += int(ids[at:tied].searchsorted(name))
            again = at < tied and bool(ids[at] == name)
        pieces += [(False, start, at), (True, number, number + 1)]
        start = at + again
    pieces.append((False, start, stop))
    return pieces


def _newest(pieces: list[Piece], n: int | None) -> list[Piece]:
    """The last ``n`` events of some pieces."""
    if n is None:
        return pieces
    kept: list[Piece] = []
    for late, start, stop in reversed(pieces):
        if n <= 0:
            break
        kept.append((late, max(start, stop - n), stop))
        n -= stop - start
    return kept[::-1]


def ranges(
    first: NDArray[np.int64], stop: NDArray[np.int64], begin: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All numbers of some ranges, end to end, and the numbers from ``begin`` on that stand beside them."""
    lengths = stop - first
    ends = np.cumsum(lengths)
    count = np.arange(ends[-1] if len(ends) else 0)
    return count + np.repeat(first - (ends - lengths), lengths), count + np.repeat(begin - (ends - lengths), lengths)


def gathered(
    segment: Segment,
    delta: Memtable,
    pieces: list[Piece],
    places: NDArray[np.int64],
    types: Types,
    offsets: NDArray[np.int64] | None,
) -> Events:
    """The events of some pieces, copied slice by slice.

    Args:
        offsets: of the keys; None: all of them are one key's.
    """
    pieces, late = [piece for piece in pieces if piece[1] < piece[2]], _Places(places)

    def joined(old: NDArray[Any], added: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        if not len(places):
            parts = [old[start:stop] for _, start, stop in pieces]
        else:
            new = late.taken(old, added, dtype)
            parts = [(new if late_ else old)[start:stop] for late_, start, stop in pieces]
        return np.concatenate(parts or [old[:0]], dtype=dtype.base, casting="unsafe")

    columns = {name: joined(segment.columns[name], delta.columns[name], dtype) for name, dtype in types.items()}
    times = joined(segment.times, delta.times, _TIME)
    return Events(np.array([0, len(times)]) if offsets is None else offsets, times, columns)


def picked(
    segment: Segment, delta: Memtable, places: NDArray[np.int64], offsets: NDArray[np.int64], types: Types
) -> Events:
    """The events at some places, taken one by one."""
    taken = _Places(places).taken
    columns = {name: taken(segment.columns[name], delta.columns[name], dtype) for name, dtype in types.items()}
    return Events(offsets, taken(segment.times, delta.times, _TIME), columns)


class _Places:
    """Places of a segment (0 and up) and of the delta above it (below 0)."""

    def __init__(self, places: NDArray[np.int64]) -> None:
        self.places = places
        fresh = places < 0
        count = int(np.count_nonzero(fresh))
        self._old = not count
        self._mixed = (fresh, ~places[fresh], ~fresh, places[~fresh]) if 0 < count < len(places) else None

    def taken(self, old: NDArray[Any], late: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Values of one column, of the segment and of the delta, in the type in which it is read."""
        if self._old:
            return old.take(self.places, axis=0).astype(dtype.base, copy=False)
        if self._mixed is None:
            return late.take(~self.places, axis=0)
        at_late, from_late, at_old, from_old = self._mixed
        values = np.empty((len(self.places), *dtype.shape), dtype.base)
        values[at_late] = late.take(from_late, axis=0)
        values[at_old] = old.take(from_old, axis=0)
        return values
