"""Counts of the users of items, and of pairs of items that one user has, without a matrix of all pairs.

Shapes: N events, V rows of the item table, Z pairs of items with a count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.models.core.pair_counts import add_equal_keys
from longrec.nn.embedding import RESERVED

_PAIRS = 4_000_000
"""Number of pairs that are counted together, beside those of one user."""


class UserCounts:
    """Numbers of users. A deep copy shares them, because they never change after they were counted.

    Args:
        rows: V. Values of the reserved rows are not counted.
        longest: number of distinct items of a user that are counted, the newest ones.

    Attributes:
        users: int64 ``[V]`` users of each item.
    """

    def __init__(self, rows: int, longest: int) -> None:
        self.rows, self.longest = rows, longest
        self.users = np.zeros(rows, np.int64)
        self._pairs: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def __deepcopy__(self, memo: object) -> UserCounts:
        return self

    def add(self, id_N: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        """Count the histories of some users, oldest event first."""
        row_N = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        # The newest event of each item of a user: the first one from the end.
        cell_N = (row_N * self.rows + id_N)[::-1]
        at = np.sort(len(id_N) - 1 - np.unique(cell_N, return_index=True)[1])
        at = at[id_N[at] >= RESERVED]
        row, lengths = row_N[at], np.bincount(row_N[at], minlength=len(offsets) - 1)
        newer = np.cumsum(lengths)[row] - 1 - np.arange(len(at))
        at = at[newer < self.longest]
        cell = np.sort(row_N[at] * self.rows + id_N[at])
        row, item = cell // self.rows, cell % self.rows
        self.users += np.bincount(item, minlength=self.rows)
        stop = np.searchsorted(row, row, side="right")
        self._count_pairs(item, stop - np.arange(len(item)) - 1)

    def _count_pairs(self, item: NDArray[np.int64], later: NDArray[np.int64]) -> None:
        """Count the pairs of each item with the next ``later`` ones, which are larger items of the same user."""
        ends = np.cumsum(later)
        cuts = np.searchsorted(ends, np.arange(_PAIRS, int(ends[-1]) if len(ends) else 0, _PAIRS))
        for low, high in zip([0, *cuts.tolist()], [*cuts.tolist(), len(item)]):
            own = later[low:high]
            first = np.repeat(np.arange(low, high), own)
            within = np.arange(len(first)) - np.repeat(np.cumsum(own) - own, own)
            keys, counts = np.unique(item[first] * self.rows + item[first + 1 + within], return_counts=True)
            self._pairs.append((keys, counts.astype(np.float64)))
            if len(self._pairs) > 1 and sum(len(key) for key, _ in self._pairs[1:]) > 2 * _PAIRS + len(keys):
                self._pairs = [self._add_up()]

    def _add_up(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        keys = [np.zeros(0, np.int64), *(key for key, _ in self._pairs)]
        counts = [np.zeros(0), *(count for _, count in self._pairs)]
        return add_equal_keys(np.concatenate(keys), np.concatenate(counts), self.rows)

    def sum(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the pairs as ascending numbers ``a V + b``, int64 ``[Z]``, in both orders, and the users of each."""
        self._pairs = [self._add_up()]
        key, count = self._pairs[0]
        turned = key % self.rows * self.rows + key // self.rows
        every = np.concatenate([key, turned])
        order = np.argsort(every)
        return every[order], np.concatenate([count, count])[order]
