"""Prefixes of semantic IDs: exposure, branching of the prefix tree, and collisions of full IDs.

A prefix of length l is the tuple of the first l codes. A generator emits IDs code by code, so that a prefix is a node
of the tree that it walks down.

Shapes: N items, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.metrics.columns import Floats, Ints
from longrec.semantic_ids.diagnostics.usage import as_codes, check_weights

TOP_SHARES = (0.01, 0.05, 0.10)
"""Shares of the most exposed prefixes that are reported."""


@dataclass(frozen=True)
class PrefixLevel:
    """Prefixes of one length.

    Attributes:
        length: number of codes of the prefix.
        prefixes: number of different prefixes, which are nodes of the tree.
        top: share of the exposure that the most exposed 1 %, 5 % and 10 % of these prefixes hold, at least one prefix.
        exposure: float64 ``[prefixes]`` share of each prefix, descending.
        children: mean number of next codes per prefix of length - 1.
        most_children: largest number of them.
        single: share of prefixes of length - 1 with one next code, where the last code says nothing.
        choices: exp of the entropy of the last code given the codes before it, weighted by exposure.
    """

    length: int
    prefixes: int
    top: tuple[float, ...]
    exposure: Floats
    children: float
    most_children: int
    single: float
    choices: float


@dataclass(frozen=True)
class Collisions:
    """Items with equal full IDs (twins).

    Attributes:
        items: number of items N.
        distinct: number of different IDs.
        twins: number of items that share their ID with another one.
        rate: ``twins`` / N.
        largest: number of items of the most frequent ID.
        entropy: entropy of the IDs in bits. log2 N if all are different.
        group_sizes: number of IDs by the number of their items.
        equal_vectors: number of items whose vector equals that of another item. None without vectors.
    """

    items: int
    distinct: int
    twins: int
    rate: float
    largest: int
    entropy: float
    group_sizes: dict[int, int]
    equal_vectors: int | None = None


def number_prefixes(codes: ArrayLike) -> Ints:
    """Return the number of the prefix of each item and length, int64 ``[N, L]``, from 0 in the order of the codes.

    >>> number_prefixes([[1, 0], [1, 5], [3, 0]]).tolist()
    [[0, 0], [0, 1], [1, 2]]
    """
    codes_NL = as_codes(codes)
    number_NL = np.empty_like(codes_NL)
    before = np.zeros(len(codes_NL), np.int64)
    for level in range(codes_NL.shape[1]):
        key = before * (int(codes_NL[:, level].max()) + 1) + codes_NL[:, level]
        before = np.unique(key, return_inverse=True)[1].astype(np.int64)
        number_NL[:, level] = before
    return number_NL


def measure_prefixes(codes: ArrayLike, weights: ArrayLike | None = None) -> list[PrefixLevel]:
    """Return exposure and branching of the prefixes of every length.

    Args:
        codes: ``[N, L]`` codes of each item.
        weights: ``[N]`` exposure of each item, such as its events. Default: every item counts once.

    Raises:
        DataError: codes or weights that cannot be used.
    """
    number_NL = number_prefixes(codes)
    weight_N = check_weights(weights, len(number_NL))
    levels, parent_N, entropy = [], np.zeros(len(number_NL), np.int64), 0.0
    for level in range(number_NL.shape[1]):
        node_N = number_NL[:, level]
        count = int(node_N.max()) + 1
        share = np.bincount(node_N, weight_N, minlength=count) / weight_N.sum()
        parent = np.empty(count, np.int64)
        parent[node_N] = parent_N
        children = np.bincount(parent)
        own_entropy = _entropy(share)
        ordered = np.sort(share)[::-1]
        levels.append(
            PrefixLevel(
                length=level + 1,
                prefixes=count,
                top=tuple(float(ordered[: count_top(count, top)].sum()) for top in TOP_SHARES),
                exposure=ordered,
                children=float(children.mean()),
                most_children=int(children.max()),
                single=float((children == 1).mean()),
                choices=float(np.exp(max(own_entropy - entropy, 0.0))),
            )
        )
        parent_N, entropy = node_N, own_entropy
    return levels


def count_top(count: int, share: float) -> int:
    """Return how many of ``count`` prefixes are the top ``share``: rounded up, at least one.

    >>> count_top(256, 0.01), count_top(20, 0.01)
    (3, 1)
    """
    return max(1, int(np.ceil(count * share - 1e-9)))


def measure_collisions(codes: ArrayLike, vectors: ArrayLike | None = None) -> Collisions:
    """Return how many items share their full ID with another item.

    Args:
        codes: ``[N, L]`` codes of each item, without a code that tells twins apart.
        vectors: ``[N, D]`` item vectors, to count those that are equal.

    Raises:
        DataError: codes that cannot be used.

    >>> collisions = measure_collisions([[0, 1], [0, 1], [2, 2], [3, 3]])
    >>> collisions.distinct, collisions.rate, collisions.largest, collisions.entropy
    (3, 0.5, 2, 1.5)
    """
    group_N = number_prefixes(codes)[:, -1]
    sizes = np.bincount(group_N)
    items, twins = len(group_N), int(sizes[sizes > 1].sum())
    size, count = np.unique(sizes, return_counts=True)
    entropy = _entropy(sizes / items) / float(np.log(2))
    groups = dict(zip(size.tolist(), count.tolist()))
    equal = None if vectors is None else count_equal_rows(vectors)
    return Collisions(items, len(sizes), twins, twins / items, int(sizes.max()), entropy, groups, equal)


def count_equal_rows(vectors: ArrayLike) -> int:
    """Return the number of rows that equal another row.

    >>> count_equal_rows([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    2
    """
    rows = np.ascontiguousarray(np.asarray(vectors) + 0.0)  # -0.0 becomes 0.0
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    counts = np.unique(keys, return_counts=True)[1]
    return int(counts[counts > 1].sum())


def is_suffix(codes: ArrayLike) -> bool:
    """Return True if the last code only numbers the twins of the codes before it: 0, 1, 2 and so on in every group.

    >>> is_suffix([[4, 0], [4, 1], [7, 0]]), is_suffix([[4, 0], [4, 2], [7, 0]])
    (True, False)
    """
    codes_NL = as_codes(codes)
    if codes_NL.shape[1] < 2:
        return False
    group_N, last_N = number_prefixes(codes_NL[:, :-1])[:, -1], codes_NL[:, -1]
    order = np.lexsort([last_N, group_N])
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return bool((last_N[order] == rank).all())


def _entropy(share: Floats) -> float:
    used = share[share > 0]
    return float(-(used * np.log(used)).sum())
