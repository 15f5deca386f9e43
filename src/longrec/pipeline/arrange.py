"""Arrangement of a page by quotas and fixed slots.

The page is filled from the first position to the last with the best candidate that the rules allow:

    1. no candidate that would exceed the most items of a group,
    2. at a fixed slot one of the slot's group, if there is one,
    3. one of a group that lacks items, once the free positions left are no more than the items that the groups lack.

An item of two groups that lack items counts for both. The groups then have theirs a little earlier than they must.

Shapes: C candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

Group = Hashable
"""A group of items with a limit, such as the items of one source."""


def arrange(
    groups_of: Sequence[Sequence[Group]],
    k: int,
    least: Mapping[Group, int],
    most: Mapping[Group, int],
    slots: Mapping[int, Group],
) -> list[int]:
    """Return the candidates of the page, by their indices, in order. It may be shorter than k by the most items.

    Args:
        groups_of: ``[C]`` groups of each candidate, best first.
        k: positions of the page.
        least: least items of a group.
        most: most items of a group.
        slots: group of a fixed position, from 1.
    """
    left, used, page = list(range(len(groups_of))), Counter[Group](), list[int]()

    def is_allowed(index: int) -> bool:
        return all(used[group] < most[group] for group in groups_of[index] if group in most)

    def find(condition: Callable[[int], bool]) -> int | None:
        return next((index for index in left if condition(index) and is_allowed(index)), None)

    for position in range(1, k + 1):
        lacking = {group: count - used[group] for group, count in least.items() if used[group] < count}
        choice = None
        if position in slots:
            choice = find(lambda index, group=slots[position]: group in groups_of[index])  # type: ignore[misc]
        later = sum(other not in slots for other in range(position + 1, k + 1))
        if choice is None and lacking and sum(lacking.values()) > later:
            choice = find(lambda index, lacking=lacking: any(g in lacking for g in groups_of[index]))  # type: ignore[misc]
        if choice is None:
            choice = find(lambda _: True)
        if choice is None:
            break
        left.remove(choice)
        page.append(choice)
        used.update(set(groups_of[choice]))
    return page
