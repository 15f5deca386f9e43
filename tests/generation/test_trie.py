"""The trie of paths: its nodes and items against plain Python, changes of the catalog, and its limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from longrec.generation.trie import Trie

SIZES = (3, 5, 4)


def draw(count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, SIZES, (count, 3))


def list_paths(trie: Trie) -> dict[tuple[int, ...], list[int]]:
    """Walk the trie from its root, and return the items of each path in the order of the walk."""
    result: dict[tuple[int, ...], list[int]] = {}

    def walk(depth: int, node: int, path: tuple[int, ...]) -> None:
        assert depth == 0 or trie.node_paths(depth)[node].tolist() == list(path)
        if depth == trie.steps:
            result[path] = trie.items[trie.leaf_starts[node] : trie.leaf_starts[node + 1]].tolist()
            return
        for child in range(*trie.starts[depth][node : node + 2]):
            walk(depth + 1, child, (*path, int(trie.tokens[depth][child])))

    walk(0, 0, ())
    return result


def by_hand(paths: NDArray[np.int64], items: NDArray[np.int64]) -> dict[tuple[int, ...], list[int]]:
    pairs = sorted((tuple(path), item) for path, item in zip(paths.tolist(), items.tolist()))
    return {path: [item for _, item in group] for path, group in itertools.groupby(pairs, key=lambda pair: pair[0])}


@pytest.mark.parametrize("count", [0, 1, 2, 40, 300])
def test_paths_and_items(count: int) -> None:
    paths, items = draw(count), np.random.default_rng(1).permutation(count) * 3
    trie = Trie.build(paths, items, SIZES)
    walked = list_paths(trie)
    assert walked == by_hand(paths, items)
    assert list(walked) == sorted(walked)  # leaves are in the order of their paths
    assert trie.leaves == len(walked)
    assert trie.leaf_paths().tolist() == [list(path) for path in walked]
    assert (trie.paths == trie.leaf_paths()[trie.leaf_of_item()]).all()


@pytest.mark.parametrize("sizes", [SIZES, (2**31 - 1,) * 3])
def test_a_changed_trie_is_a_new_one(sizes: tuple[int, ...]) -> None:
    """Also if paths do not fit into one sort key. An item that is added again gets its new path."""
    paths, items = draw(60), np.arange(60)
    trie = Trie.build(paths, items, sizes).remove(np.array([3, 5, 999])).add(draw(30, 1), np.arange(50, 80)[::-1])
    kept = np.setdiff1d(np.arange(50), [3, 5])
    new_paths, new_items = np.concatenate([paths[kept], draw(30, 1)]), np.append(kept, np.arange(50, 80)[::-1])
    expected = Trie.build(new_paths, new_items, sizes)
    for name in ("paths", "items", "leaf_starts"):
        assert np.array_equal(getattr(trie, name), getattr(expected, name)), name
    for name in ("tokens", "starts"):
        assert all(map(np.array_equal, getattr(trie, name), getattr(expected, name))), name
    assert trie.remove(trie.items).leaves == 0


def test_twins_come_together() -> None:
    trie = Trie.build(np.array([[1, 1, 1], [0, 0, 0], [1, 1, 1]]), np.array([7, 4, 2]), SIZES)
    assert trie.items.tolist() == [4, 2, 7]
    assert trie.leaf_starts.tolist() == [0, 1, 3]
    assert trie.add(np.array([[1, 1, 1]]), np.array([5])).items.tolist() == [4, 2, 5, 7]


@pytest.mark.parametrize(
    ("paths", "items", "message"),
    [
        ([[0, 0, 4]], [0], "expected 0 to below"),
        ([[0, -1, 0]], [0], "expected 0 to below"),
        ([[0, 0]], [0], "expected"),
        ([[0, 0, 0], [1, 0, 0]], [3, 3], "two paths"),
    ],
)
def test_wrong_paths_are_refused(paths: list[list[int]], items: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.build(np.array(paths), np.array(items), SIZES)
