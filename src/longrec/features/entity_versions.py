"""Versions of users and items: the dated row of an entity that was valid at a timestamp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Versions:
    """The dated rows of all entities, by entity and time. A column that has versions has 1 + V entries: entry 0 for
    an entity without a version, entry v > 0 for the v-th row.

    Attributes:
        offsets: int64 ``[E + 1]``: the rows of entity e begin at ``offsets[e]``. Entity 0, the unknown one, has none.
        times: int64 ``[V]``: start of each row, ascending within an entity.
    """

    offsets: NDArray[np.int64]
    times: NDArray[np.int64]

    def rows(self, entities: NDArray[Any], now: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Return the entry of the newest row of each entity strictly before a timestamp, 0 if there is none.

        Args:
            entities: integers ``[n]``, rows of the entity table.
            now: int64 ``[n]``, or one timestamp for all.

        >>> two = Versions(np.array([0, 0, 2, 3]), np.array([10, 20, 15]))
        >>> two.rows(np.array([1, 1, 1, 2, 0]), np.array([10, 11, 99, 15, 99])).tolist()
        [0, 1, 2, 0, 0]
        """
        entities = entities.astype(np.int64, copy=False)  # the last row of a narrow type has no successor in it
        first = self.offsets.take(entities)
        stop = find_first_from(self.times, first, self.offsets.take(entities + 1), np.broadcast_to(now, first.shape))
        return np.where(stop > first, stop, 0)


def find_first_from(
    times: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64], timestamps: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Find for each b the first index in ``[low, high]`` whose time is at or after ``timestamps[b]``.

    All binary searches advance together.

    Args:
        times: int64, ascending inside every ``[low[b], high[b])``.
    """
    low, high = low.astype(np.int64), high.astype(np.int64)
    while (open_ := low < high).any():
        middle = (low + high) >> 1
        earlier = open_ & (times.take(np.where(open_, middle, 0)) < timestamps)
        low = np.where(earlier, middle + 1, low)
        high = np.where(open_ & ~earlier, middle, high)
    return low
