"""Down-sampling of negatives: random selection of the rows with label 0 that enter the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sample_negatives(rows: NDArray[np.int64], label: NDArray[np.float32], rate: float, seed: int) -> NDArray[np.int64]:
    """Return all positive rows, and each negative row with probability ``rate``.

    The selection of a row depends only on the seed and the row index, not on other rows or on how often it is read.

    Args:
        rows: row indices in the log, int64 ``[n]``.
        label: label of each row, float32 ``[n]``.
    """
    if rate >= 1:
        return rows
    return rows[(label > 0.5) | (_uniform(rows, seed) < rate)]


def _uniform(rows: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return one number in [0, 1) per row, by SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) of seed and row."""
    x = _mix(rows.astype(np.uint64) + _mix(np.array([seed], np.uint64)))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
