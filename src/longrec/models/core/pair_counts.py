"""Counts of pairs of items that follow each other in the histories of the training window, by their distance.

Shapes: N events, V rows of the item table, Z pairs of items with a count.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.nn.embedding import RESERVED

MAX_DENSE = 32_000_000
"""Maximum number of pairs of items for which all counts are one matrix."""


class PairCounts:
    """Pairs of items. A deep copy shares them, because they never change after they were counted.

    Args:
        rows: V. Values of the reserved rows are in no pair.
        window: largest distance.

    Attributes:
        popularity: int64 ``[V]`` events of each item.
    """

    def __init__(self, rows: int, window: int) -> None:
        self.rows = rows
        self.popularity = np.zeros(rows, np.int64)
        self._at: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = [[] for _ in range(window)]

    def __deepcopy__(self, memo: object) -> PairCounts:
        return self

    def add(self, id_N: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        """Count the pairs of some histories."""
        real_N = id_N >= RESERVED
        self.popularity += np.bincount(id_N[real_N], minlength=self.rows)
        row_N = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        for distance, counted in enumerate(self._at, 1):
            pair = (row_N[:-distance] == row_N[distance:]) & real_N[:-distance] & real_N[distance:]
            at = np.flatnonzero(pair)
            if len(at):
                keys, counts = np.unique(id_N[at] * self.rows + id_N[at + distance], return_counts=True)
                counted.append((keys, counts))

    def sum(self, window: int, back: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the pairs as ascending numbers ``a V + b``, int64 ``[Z]``, and C[a, b] + back C[b, a]."""
        keys: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        weights: list[NDArray[np.float64]] = [np.zeros(0)]
        for distance, counted in enumerate(self._at[:window], 1):
            for key, count in counted:
                keys.append(key)
                weights.append(count / distance)
        key, weight = add_equal_keys(np.concatenate(keys), np.concatenate(weights), self.rows)
        if back:
            turned = key % self.rows * self.rows + key // self.rows
            both = np.concatenate([weight, back * weight])
            key, weight = add_equal_keys(np.concatenate([key, turned]), both, self.rows)
        return key, weight


def add_equal_keys(
    key: NDArray[np.int64], weight: NDArray[np.float64], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return distinct keys ``a V + b`` in ascending order, and the sum of the weights of each.

    Args:
        rows: V.
    """
    if rows**2 <= MAX_DENSE:
        total = np.bincount(key, weight, minlength=1)
        distinct = np.flatnonzero(total).astype(np.int64)
        return distinct, np.asarray(total[distinct], np.float64)
    order = torch.from_numpy(key).argsort(stable=True).numpy()
    key, weight = key[order], weight[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    total_Z: NDArray[np.float64] = np.add.reduceat(weight, first) if len(first) else weight
    return key[first].astype(np.int64), total_Z
