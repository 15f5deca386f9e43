"""Controllable aggregation: a list of candidates that weighs scores against the diversity of a category.

    maximize   sum_{i in S} f(i) + diversity * (number of pairs of S with different categories)        |S| = count

f(i) is the score of an item, such as the largest inner product over the interests of a user. ComiRec, Cen et al., KDD
2020 (eq. 15), with each pair counted once. https://arxiv.org/abs/2005.09347

An item adds ``f(i) - diversity * n`` to the list and to a term that is the same for all items, where n counts the
chosen items of its category. Items are chosen one by one by this gain. The result is the best list, and not only a good
one: the best items of a category come first, and each of them gains less than the one before.

Shapes: C candidates.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import LongRecError


def select_controllable(
    scores: NDArray[Any], categories: Sequence[Any] | NDArray[Any], count: int, diversity: float
) -> NDArray[np.int64]:
    """Return the indices of the chosen candidates in the order of the choice.

    Of equal gains the first candidate is chosen. With a diversity of 0 these are the highest scores.

    Args:
        scores: ``[C]``, f.
        categories: ``[C]``, values that can be compared for equality. None is a category of its own.
        count: number of candidates to choose; all if there are fewer.
        diversity: lambda, 0 or more.

    Raises:
        LongRecError: another number of categories than scores, a score that is not finite, or a negative diversity.

    >>> select_controllable(np.array([5.0, 4.0, 3.0, 1.0]), ["a", "a", "b", "c"], 3, 2.0).tolist()
    [0, 2, 1]
    """
    _check(scores, categories, diversity)
    queues: dict[Any, list[int]] = {}
    for index in np.argsort(-scores, kind="stable")[::-1].tolist():
        queues.setdefault(categories[index], []).append(index)  # the best candidate of a category is the last one
    every, chosen = list(queues.values()), list[int]()
    # The next candidate of each category: its negative gain, its index, chosen items of the category, the category.
    heads = [(-float(scores[queue[-1]]), queue[-1], 0, at) for at, queue in enumerate(every)]
    heapq.heapify(heads)
    while heads and len(chosen) < count:
        _, index, number, at = heapq.heappop(heads)
        chosen.append(index)
        queue = every[at]
        queue.pop()
        if queue:
            gain = float(scores[queue[-1]]) - diversity * (number + 1)
            heapq.heappush(heads, (-gain, queue[-1], number + 1, at))
    return np.array(chosen, np.int64)


def _check(scores: NDArray[Any], categories: Sequence[Any] | NDArray[Any], diversity: float) -> None:
    where = "controllable aggregation"
    if len(categories) != len(scores):
        raise LongRecError(where, f"{len(categories)} categories for {len(scores)} scores", "one each")
    if not np.isfinite(scores).all():
        raise LongRecError(where, "a score that is not finite", "finite scores")
    if not diversity >= 0 or not np.isfinite(diversity):
        raise LongRecError(where, f"a diversity of {diversity}", "0 or more")
