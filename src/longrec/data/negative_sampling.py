"""Down-sampling of negatives: the rows with label 0 that enter the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sample_negatives(rows: NDArray[np.int64], label: NDArray[np.float32], rate: float, seed: int) -> NDArray[np.int64]:
    """Return the rows that are kept: every positive, and each negative with probability ``rate``.

    Only the seed and the number of a row decide, so that the decision depends neither on other rows nor on how often
    the row is read.

    Args:
        rows: int64 ``[n]`` of the log.
        label: float32 ``[n]``.
    """
    if rate >= 1:
        return rows
    return rows[(label > 0.5) | (_uniform(rows, seed) < rate)]


def _uniform(rows: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) per row: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) of seed and row."""
    x = _mix(rows.astype(np.uint64) + _mix(np.array([seed], np.uint64)))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
