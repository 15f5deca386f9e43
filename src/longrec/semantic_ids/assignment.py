"""Exact assignment: a permutation with the largest total gain (Hungarian method by shortest augmenting paths).

Reference: Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems"
(1987). The method of scipy's ``linear_sum_assignment``, which is no dependency of this package.

Shapes: K rows and K columns.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray


def assign_exactly(gain: Float[NDArray[np.float64], "K K"]) -> Int64[NDArray[np.int64], " K"]:
    """Return the column of each row, a permutation with the largest sum of gains, int64 ``[K]``.

    It takes about K^2 steps on arrays of length K at worst, and far fewer if most rows have a column of their own.
    """
    size = len(gain)
    cost = gain.max(initial=0.0) - gain
    # Dual values that fit the costs, and a first matching of rows whose best column is free.
    column_price = cost.min(0) if size else np.zeros(0)
    row_of = np.full(size, -1, np.int64)
    column_of = np.full(size, -1, np.int64)
    for row in range(size):
        column = int((cost[row] - column_price).argmin())
        if row_of[column] < 0 and cost[row, column] == column_price[column]:
            row_of[column], column_of[row] = row, column
    row_price = (cost - column_price).min(1) if size else np.zeros(0)
    for row in np.flatnonzero(column_of < 0).tolist():
        _augment(row, cost, row_price, column_price, row_of, column_of)
    return column_of


def _augment(
    start: int,
    cost: NDArray[np.float64],
    row_price: NDArray[np.float64],
    column_price: NDArray[np.float64],
    row_of: NDArray[np.int64],
    column_of: NDArray[np.int64],
) -> None:
    """Match one more row along the shortest alternating path, and update prices and matching."""
    size = len(cost)
    distance = np.full(size, np.inf)
    before = np.full(size, -1, np.int64)
    is_open = np.ones(size, np.bool_)
    visited = [start]
    row, reached, end = start, 0.0, -1
    while end < 0:
        path = reached + cost[row] - row_price[row] - column_price
        shorter = is_open & (path < distance)
        distance[shorter] = path[shorter]
        before[shorter] = row
        column = int(np.where(is_open, distance, np.inf).argmin())
        reached = float(distance[column])
        is_open[column] = False
        if row_of[column] < 0:
            end = column
        else:
            row = int(row_of[column])
            visited.append(row)
    row_price[start] += reached
    others = np.array(visited[1:], np.int64)
    row_price[others] += reached - distance[column_of[others]]
    closed = ~is_open
    column_price[closed] -= reached - distance[closed]
    while True:
        row = int(before[end])
        row_of[end] = row
        column_of[row], end = end, int(column_of[row])
        if row == start:
            return
