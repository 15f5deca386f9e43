"""Selection of the highest of many scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 64
"""Number of scores whose maximum stands for all of them in a first pass."""
_MANY = 8
"""Number of blocks per selected score from which a first pass pays."""


def select_top(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the indices of the k highest scores, highest first. Of equal scores the first ones are selected.

    >>> select_top(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 3).tolist()
    [1, 3, 2]
    """
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    if k <= 0:
        return np.zeros(0, np.int64)
    if _MANY * _BLOCK * k > len(scores):
        return _select(scores, k)
    whole = len(scores) // _BLOCK * _BLOCK
    highest = np.append(scores[:whole].reshape(-1, _BLOCK).max(1), scores[whole:])
    # At least k scores reach the k-th highest maximum, so that no score below it is selected.
    some = np.flatnonzero(scores >= np.partition(highest, len(highest) - k)[len(highest) - k])
    return some[_select(scores[some], k)]


def _select(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    lowest = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > lowest)
    chosen = np.concatenate([above, np.flatnonzero(scores == lowest)[: k - len(above)]])
    return chosen[np.argsort(-scores[chosen], kind="stable")]
