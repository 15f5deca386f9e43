"""Reconstruction retention: how well item-to-item retrieval with reconstructed vectors finds what the originals find.

    retention@K = HR_sid@K / HR_orig@K

HR@K is the share of pairs (a, b) where b is among the K items nearest to a by cosine. The pairs are items that follow
each other in histories of the training window. Xuesi Wang et al., "DRQ", arXiv 2606.01844 (2026), section 5, whose
protocol is unstated. Reconstructions *with* quantization (from codes) and *without* (the output of the autoencoder
alone) are different figures, and each is labeled.

Twins have equal reconstructions, so that many items tie. A tie counts by the expected share of a random order.

Shapes: N items, D dimensions, P pairs, Q different first items of the pairs, G different vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import DataError
from longrec.metrics.columns import Ints
from longrec.semantic_ids.diagnostics.latent import normalize_rows

CUTS = (20, 50, 100, 200)
_CELLS = 4_000_000
"""Similarities in memory at once."""


@dataclass(frozen=True)
class Retention:
    """Item-to-item hit rates, with original and with reconstructed vectors.

    Attributes:
        cuts: values of K.
        pairs: number of pairs P.
        chance: HR@K of a random order.
        original: HR@K with the original vectors.
        hit_rates: HR@K with each kind of reconstructed vectors, by its label.
        retention: ``hit_rates`` over ``original``. NaN where the original hits nothing.
    """

    cuts: tuple[int, ...]
    pairs: int
    chance: tuple[float, ...]
    original: tuple[float, ...]
    hit_rates: dict[str, tuple[float, ...]]
    retention: dict[str, tuple[float, ...]]


def measure_hit_rates(vectors: ArrayLike, pairs: ArrayLike, cuts: Sequence[int] = CUTS) -> tuple[float, ...]:
    """Return HR@K of item-to-item retrieval by cosine, for each K. The item itself is never retrieved.

    Args:
        vectors: ``[N, D]`` vectors of the items.
        pairs: ``[P, 2]`` numbers of items: the query, and the item to find.
        cuts: values of K.

    Raises:
        DataError: no pairs, or a pair with an item that has no vector or with an item and itself.
    """
    pair_P2 = _check_pairs(pairs, len(np.asarray(vectors)))
    unit_GD, group_N, size_G = _group_equal(normalize_rows(np.asarray(vectors, dtype=np.float32)))
    order = np.argsort(pair_P2[:, 0], kind="stable")
    first, second = pair_P2[order, 0], pair_P2[order, 1]
    query_Q, start_Q = np.unique(first, return_index=True)
    bounds = np.append(start_Q, len(first))
    hits = np.zeros(len(cuts))
    block = max(1, _CELLS // len(unit_GD))
    for at in range(0, len(query_Q), block):
        query = query_Q[at : at + block]
        similarity = unit_GD[group_N[query]] @ unit_GD.T
        for row, own in enumerate(query):
            targets = second[bounds[at + row] : bounds[at + row + 1]]
            for target in group_N[targets]:
                before, tied = _count(similarity[row], size_G, int(target), int(group_N[own]))
                hits += np.clip((np.asarray(cuts) - before) / tied, 0.0, 1.0)
    return tuple((hits / len(first)).tolist())


def measure_retention(
    vectors: ArrayLike,
    reconstructions: Mapping[str, ArrayLike],
    pairs: ArrayLike,
    cuts: Sequence[int] = CUTS,
) -> Retention:
    """Return hit rates of original and reconstructed vectors, and their ratios.

    Args:
        vectors: ``[N, D]`` original vectors.
        reconstructions: reconstructed vectors of the same items, by their label.
        pairs: ``[P, 2]`` items that follow each other.
        cuts: values of K. Those of at least N - 1 items are left out, since they retrieve everything.

    Raises:
        DataError: pairs or vectors that cannot be used.
    """
    items = len(np.asarray(vectors))
    kept = tuple(cut for cut in cuts if cut < items - 1)
    if not kept:
        raise DataError("vectors", f"{items:,} items", f"more than {min(cuts) + 1:,} items, to retrieve some of them")
    original = measure_hit_rates(vectors, pairs, kept)
    rates = {}
    for label, own in reconstructions.items():
        if len(np.asarray(own)) != items:
            raise DataError(f"vectors {label!r}", f"{len(np.asarray(own)):,} rows", f"one for each of {items:,} items")
        rates[label] = measure_hit_rates(own, pairs, kept)
    ratios = {
        label: tuple(rate / base if base > 0 else float("nan") for rate, base in zip(own, original))
        for label, own in rates.items()
    }
    chance = tuple(cut / (items - 1) for cut in kept)
    return Retention(kept, len(np.asarray(pairs)), chance, original, rates, ratios)


def _group_equal(unit_ND: NDArray[np.float32]) -> tuple[NDArray[np.float32], Ints, Ints]:
    """Return the different rows, the number of the row of each item, and the number of items of each row."""
    rows = np.ascontiguousarray(unit_ND + 0.0)  # -0.0 becomes 0.0
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, group, size = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return rows[first], group.reshape(-1).astype(np.int64), size.astype(np.int64)


def _count(similarity_G: NDArray[np.float32], size_G: Ints, target: int, own: int) -> tuple[int, int]:
    """Return how many items are nearer than a target, and how many are as near, with the target, without the query."""
    value = similarity_G[target]
    before = int(size_G @ (similarity_G > value))
    tied = int(size_G @ (similarity_G == value))
    if similarity_G[own] > value:
        return before - 1, tied
    return before, tied - int(similarity_G[own] == value)


def _check_pairs(pairs: ArrayLike, items: int) -> Ints:
    pair_P2 = np.asarray(pairs)
    if pair_P2.ndim != 2 or pair_P2.shape[1] != 2 or not len(pair_P2):
        do = "use a log in which users have two events or more with different items"
        raise DataError("pairs", f"an array of shape {pair_P2.shape}", "pairs of items as [P, 2]", do)
    if pair_P2.min() < 0 or pair_P2.max() >= items or (pair_P2[:, 0] == pair_P2[:, 1]).any():
        actual = f"numbers from {pair_P2.min()} to {pair_P2.max()}"
        raise DataError("pairs", actual, f"two different numbers below {items:,} per pair")
    return pair_P2.astype(np.int64)
