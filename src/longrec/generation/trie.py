"""Trie of the paths of servable items, as sorted integer arrays.

The items are sorted by their paths. A node of depth t is a run of items whose first t tokens agree, so the children of
a node are adjacent, and so are its items:

    tokens[t][starts[t][n] : starts[t][n + 1]]      tokens of the children of node n of depth t, ascending
    items[leaf_starts[n] : leaf_starts[n + 1]]      items of leaf n: several if they are twins

Building a trie is one sort of the items and one comparison per level. A change of the catalog merges sorted items, and
sorts the new ones alone.

Shapes: I items, S steps (tokens of a path), n nodes of a depth, m their children.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_BITS = 62
"""Bits of a path that fits into one sort key."""


@dataclass(frozen=True)
class Trie:
    """A trie over the paths of items.

    Attributes:
        paths: int32 ``[I, S]``, sorted lexicographically.
        items: int64 ``[I]``, the item of each path. Twins are in ascending order.
        sizes: number of tokens of each step.
        tokens: int32 ``[m]`` per depth 0 .. S - 1, the tokens of the children of all nodes of that depth. These
            children are the nodes of the next depth, in this order.
        starts: int64 ``[n + 1]`` per depth 0 .. S - 1, the first child of each node.
        leaf_starts: int64 ``[leaves + 1]``, the first item of each leaf.
    """

    paths: NDArray[np.int32]
    items: NDArray[np.int64]
    sizes: tuple[int, ...]
    tokens: tuple[NDArray[np.int32], ...]
    starts: tuple[NDArray[np.int64], ...]
    leaf_starts: NDArray[np.int64]

    @classmethod
    def build(cls, paths: NDArray[Any], items: NDArray[Any], sizes: Sequence[int]) -> Trie:
        """Return the trie of paths.

        Args:
            paths: integers ``[I, S]``, S at least 1, each at least 0 and below the size of its step.
            items: integers ``[I]``, no item twice.
            sizes: number of tokens of each step.

        Raises:
            ValueError: a token out of range, another number of steps, or an item with two paths.
        """
        paths, items = np.ascontiguousarray(paths, np.int32), np.asarray(items, np.int64)
        _check(paths, items, sizes)
        order = _sort(paths, items, sizes)
        return cls._of_sorted(paths[order], items[order], tuple(sizes))

    @classmethod
    def _of_sorted(cls, paths: NDArray[np.int32], items: NDArray[np.int64], sizes: tuple[int, ...]) -> Trie:
        count, steps = paths.shape
        first = np.zeros(count, np.bool_)  # True for the first item of each node
        first[:1] = True
        parents = np.zeros(min(count, 1), np.int64)  # index of the first item of each node of the depth before
        tokens, starts = [], []
        for step in range(steps):
            first[1:] |= paths[1:, step] != paths[:-1, step]
            nodes = np.flatnonzero(first)
            tokens.append(paths[nodes, step])
            starts.append(np.append(np.searchsorted(nodes, parents), len(nodes)))
            parents = nodes
        if not count:
            starts[0] = np.zeros(2, np.int64)  # a root without children
        return cls(paths, items, sizes, tuple(tokens), tuple(starts), np.append(parents, count))

    @property
    def steps(self) -> int:
        """S."""
        return len(self.sizes)

    @property
    def leaves(self) -> int:
        """Number of distinct paths."""
        return len(self.leaf_starts) - 1

    def leaf_paths(self) -> NDArray[np.int32]:
        """Return the path of each leaf, int32 ``[leaves, S]``."""
        return self.paths[self.leaf_starts[:-1]]

    def node_paths(self, depth: int) -> NDArray[np.int32]:
        """Return the first ``depth`` tokens of each node of a depth, int32 ``[n, depth]``."""
        if depth == 0:
            return np.zeros((1, 0), np.int32)
        first = self.leaf_starts[:-1]
        for step in range(self.steps - 1, depth - 1, -1):
            first = first[self.starts[step][:-1]]
        return self.paths[first, :depth]

    def leaf_of_item(self) -> NDArray[np.int64]:
        """Return the leaf of each entry of ``items``, int64 ``[I]``."""
        return np.repeat(np.arange(self.leaves), np.diff(self.leaf_starts))

    def add(self, paths: NDArray[Any], items: NDArray[Any]) -> Trie:
        """Return the trie with more items. An item that it has gets its new path."""
        items = np.asarray(items, np.int64)
        base = self.remove(items)
        new = Trie.build(paths, items, self.sizes)
        old_keys, new_keys = _pack(base.paths, self.sizes), _pack(new.paths, self.sizes)
        if old_keys is None or new_keys is None:
            return Trie.build(np.concatenate([base.paths, new.paths]), np.append(base.items, new.items), self.sizes)
        at = np.searchsorted(old_keys, new_keys, side="right")
        # Twins are in ascending order: an added item may belong before items of its own path.
        low = np.searchsorted(old_keys, new_keys, side="left")
        for index in np.flatnonzero(at > low):
            at[index] = low[index] + np.searchsorted(base.items[low[index] : at[index]], new.items[index])
        return Trie._of_sorted(
            np.insert(base.paths, at, new.paths, axis=0), np.insert(base.items, at, new.items), self.sizes
        )

    def remove(self, items: NDArray[Any]) -> Trie:
        """Return the trie without some items. Items that it does not have are ignored."""
        kept = ~np.isin(self.items, np.asarray(items, np.int64))
        return self if kept.all() else Trie._of_sorted(self.paths[kept], self.items[kept], self.sizes)

    def select(self, allowed: NDArray[np.bool_]) -> Trie:
        """Return the trie of the allowed items.

        Args:
            allowed: mask of all items by their numbers.
        """
        kept = allowed[self.items]
        return self if kept.all() else Trie._of_sorted(self.paths[kept], self.items[kept], self.sizes)


def _check(paths: NDArray[np.int32], items: NDArray[np.int64], sizes: Sequence[int]) -> None:
    if paths.ndim != 2 or not sizes or paths.shape[1] != len(sizes) or len(paths) != len(items):
        raise ValueError(f"paths {paths.shape} of {len(items)} items, expected ({len(items)}, {len(sizes)})")
    if len(paths) and (paths.min() < 0 or (paths.max(0) >= np.asarray(sizes)).any()):
        raise ValueError(f"tokens from {paths.min()} to {paths.max(0).tolist()}, expected 0 to below {list(sizes)}")
    ordered = np.sort(items)
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("an item has two paths, expected one per item")


def _sort(paths: NDArray[np.int32], items: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return the order of items by path, then by item."""
    keys = _pack(paths, sizes)
    if keys is None:
        return np.lexsort((items, *reversed(paths.T)))
    if (items[1:] > items[:-1]).all():
        return np.argsort(keys, kind="stable")
    return np.lexsort((items, keys))


def _pack(paths: NDArray[np.int32], sizes: Sequence[int]) -> NDArray[np.int64] | None:
    """Return one integer per path in the order of the paths, or None if it takes too many bits."""
    bits = [max(size - 1, 1).bit_length() for size in sizes]
    if sum(bits) > _MOST_BITS:
        return None
    keys = np.zeros(len(paths), np.int64)
    for step, width in enumerate(bits):
        keys = (keys << width) | paths[:, step]
    return keys
