"""Spacing of categories: at most m items of one category in any w consecutive items, in the order of a list otherwise.

Greedy: each position gets the first remaining item whose category has fewer than m of the last w - 1 items. If all
remaining items are of full categories, the first of them is put there nevertheless, and counted. No item is lost, and
items of one category keep their order. Greedy does not look ahead: a list whose first items use up the rare categories
may end in one category although another order would not.

Shapes: N items of the list.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ConfigError


def space_categories(
    categories_N: Sequence[Hashable | None], at_most: int, within: int
) -> tuple[NDArray[np.int64], int]:
    """Return the indices of all items in their new order, int64 ``[N]``, and how many of them break the rule.

    Args:
        categories_N: category of every item, in the order of the list. An item without one (None) is never moved back.
        at_most: m, the largest number of items of one category in any ``within`` consecutive items.
        within: w.

    Raises:
        ConfigError: if ``at_most`` or ``within`` is below 1.

    >>> space_categories(["a", "a", "a", "b", "c"], at_most=1, within=3)  # a third "a" has no place at a distance of 3
    (array([0, 3, 4, 1, 2]), 1)
    """
    faults = [f"{name}: must be at least 1, got {n}" for name, n in [("at_most", at_most), ("within", within)] if n < 1]
    if faults:
        raise ConfigError("spacing", faults)
    queues: dict[tuple[str, Hashable], deque[int]] = {}
    keys = [
        ("none", index) if category is None else ("category", category) for index, category in enumerate(categories_N)
    ]
    for index, key in enumerate(keys):
        queues.setdefault(key, deque()).append(index)
    recent = dict.fromkeys(queues, 0)
    free = [(queue[0], key) for key, queue in queues.items()]  # sorted by the first item, hence a heap
    order: list[int] = []
    broken = 0
    while len(order) < len(keys):
        if len(order) >= within:
            left = keys[order[len(order) - within]]
            recent[left] -= 1
            if recent[left] == at_most - 1 and queues[left]:
                heapq.heappush(free, (queues[left][0], left))
        if free:
            _, key = heapq.heappop(free)
        else:
            key = min((queue[0], key) for key, queue in queues.items() if queue)[1]
            broken += 1
        order.append(queues[key].popleft())
        recent[key] += 1
        if recent[key] < at_most and queues[key]:
            heapq.heappush(free, (queues[key][0], key))
    return np.array(order, np.int64), broken
