"""Pairs of items that follow each other in histories, and the exposure of items.

Shapes: E events, P pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.columns import Floats, Ints


def list_next_items(user: ArrayLike, item: ArrayLike) -> Ints:
    """Return pairs of an item and the next item of the same user, int64 ``[P, 2]``.

    A pair of an item with itself is left out, and so are pairs with an item that has no number (-1).

    Args:
        user: ``[E]`` user of each event, sorted.
        item: ``[E]`` number of the item of each event, in the order of time within a user. Only events of the training
            window belong here.

    >>> list_next_items([0, 0, 0, 1, 1], [5, 7, 7, 5, -1]).tolist()
    [[5, 7]]
    """
    user_E, item_E = np.asarray(user), np.asarray(item, np.int64)
    if user_E.shape != item_E.shape or user_E.ndim != 1:
        raise DataError("events", f"users {user_E.shape} and items {item_E.shape}", "one user and one item per event")
    first, second = item_E[:-1], item_E[1:]
    taken = (user_E[:-1] == user_E[1:]) & (first != second) & (first >= 0) & (second >= 0)
    return np.stack([first[taken], second[taken]], axis=1)


def count_exposure(item: ArrayLike, items: int) -> Floats:
    """Return the number of events of each item, float64 ``[items]``. Events without an item (-1) do not count.

    >>> count_exposure([0, 2, 2, -1], items=3).tolist()
    [1.0, 0.0, 2.0]
    """
    item_E = np.asarray(item, np.int64)
    return np.bincount(item_E[item_E >= 0], minlength=items).astype(np.float64)


def sample_pairs(pairs: Ints, count: int, seed: int) -> Ints:
    """Return at most ``count`` of the pairs, drawn without replacement, in their order."""
    if len(pairs) <= count:
        return pairs
    return pairs[np.sort(np.random.default_rng(seed).choice(len(pairs), count, replace=False))]
