"""Collisions of semantic IDs: items with equal codes (twins), told apart by a suffix code.

The suffix is the index of an item among its twins, 0 for the first. New twins get the next index, so that no suffix
ever changes.

Shapes: N items, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32
from numpy.typing import NDArray

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class CollisionFacts:
    """Facts about items with equal codes.

    Attributes:
        items: number of items.
        distinct: number of distinct tuples of codes.
        colliding: number of items that share their codes with another item.
        largest: number of items of the most frequent codes.
    """

    items: int
    distinct: int
    colliding: int
    largest: int

    @property
    def rate(self) -> float:
        """Share of items that share their codes with another item."""
        return self.colliding / max(self.items, 1)


def group_codes(codes: Int32[Codes, "N L"]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the group of equal codes of each item, int64 ``[N]``, and the size of each group."""
    if not len(codes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, group, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return group.reshape(-1), count


def count_collisions(codes: Int32[Codes, "N L"]) -> CollisionFacts:
    """Return the facts about equal codes."""
    _, count = group_codes(codes)
    colliding = int(count[count > 1].sum())
    return CollisionFacts(len(codes), len(count), colliding, int(count.max(initial=0)))


def index_twins(codes: Int32[Codes, "N L"], earlier: Int32[Codes, "M L"] | None = None) -> Int32[Codes, " N"]:
    """Return the index of each item among its twins, in the order of the rows: the suffix code, int32 ``[N]``.

    Args:
        earlier: codes of items that have their suffix already. The items continue after those.
    """
    before = 0 if earlier is None else len(earlier)
    both = codes if earlier is None else np.concatenate([earlier, codes])
    group, count = group_codes(both)
    order = np.argsort(group, kind="stable")
    index = np.empty(len(both), np.int32)
    index[order] = np.arange(len(both)) - np.repeat(np.cumsum(count) - count, count)
    return index[before:]


def describe_collisions(codes: Int32[Codes, "N L"]) -> Mapping[str, float]:
    """Return the facts about equal codes for a file."""
    facts = count_collisions(codes)
    return {
        "distinct": facts.distinct,
        "colliding": facts.colliding,
        "collision_rate": facts.rate,
        "largest_group": facts.largest,
    }
