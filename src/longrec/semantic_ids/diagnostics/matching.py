"""Behavior-matching AUCs: do items that follow each other in histories have more similar codes than random items?

Three scores of a pair of items (Xuesi Wang et al., "DRQ", arXiv 2606.01844, section 5, whose weights are unstated):

    embedding   cosine of the quantized vectors z^ = sum_l C^l[k_l]
    weighted    sum_l 2^-l [the first l codes are equal], l from 1
    exact       [all codes are equal]

The AUC is the probability that a pair of consecutive items has a higher score than a pair of an item and a random item.
A tie counts half, so that scores that are mostly equal give about 0.5.

Shapes: N items, L levels, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.metrics.auc import auc
from longrec.metrics.columns import Floats, Ints
from longrec.semantic_ids.diagnostics.latent import normalize_rows
from longrec.semantic_ids.diagnostics.usage import as_codes

UNIFORM, POPULAR = "random items", "random items of the same popularity"
"""Kinds of negatives: uniform over the items, and the second items of other pairs."""
WEIGHTED, EXACT = "weighted match", "exact match"
"""Scores from codes alone."""


@dataclass(frozen=True)
class Matching:
    """AUC of each score against each kind of negatives.

    Attributes:
        pairs: number of pairs of consecutive items, and of random ones.
        aucs: kind of negatives -> score -> AUC.
        equal: share of consecutive pairs, and of random ones, whose first l codes are equal, by level.
    """

    pairs: int
    aucs: dict[str, dict[str, float]]
    equal: tuple[tuple[float, float], ...]


def count_equal_prefixes(codes: ArrayLike, pairs: ArrayLike) -> Ints:
    """Return the number of leading codes that the items of each pair share, int64 ``[P]``.

    >>> count_equal_prefixes([[1, 2, 3], [1, 9, 3], [1, 2, 3]], [[0, 1], [0, 2]]).tolist()
    [1, 3]
    """
    codes_NL, pair_P2 = as_codes(codes), np.asarray(pairs)
    equal = codes_NL[pair_P2[:, 0]] == codes_NL[pair_P2[:, 1]]
    return np.logical_and.accumulate(equal, axis=1).sum(1).astype(np.int64)


def score_weighted(common: Ints) -> Floats:
    """Return sum of 2^-l over the equal leading codes: 1 - 2^-common.

    >>> score_weighted(np.array([0, 1, 3])).tolist()
    [0.0, 0.5, 0.875]
    """
    return 1.0 - 0.5 ** common.astype(np.float64)


def measure_matching(
    codes: ArrayLike, pairs: ArrayLike, vectors: Mapping[str, ArrayLike] | None = None, *, seed: int = 0
) -> Matching:
    """Return the behavior-matching AUCs of codes, and of vectors beside them.

    Args:
        codes: ``[N, L]`` codes of each item.
        pairs: ``[P, 2]`` pairs of items that follow each other.
        vectors: vectors ``[N, D]`` of the items by label, scored by cosine.
        seed: of the random items.
    """
    codes_NL, pair_P2 = as_codes(codes), np.asarray(pairs, np.int64)
    unit = {label: normalize_rows(np.asarray(own, np.float64)) for label, own in (vectors or {}).items()}
    negatives = draw_negatives(pair_P2, len(codes_NL), seed)
    common = count_equal_prefixes(codes_NL, pair_P2)
    aucs: dict[str, dict[str, float]] = {}
    for kind, random_P2 in negatives.items():
        label = np.repeat([1, 0], len(pair_P2))
        both = np.concatenate([pair_P2, random_P2])
        equal = count_equal_prefixes(codes_NL, both)
        aucs[kind] = {
            name: auc(label, np.einsum("pd,pd->p", own[both[:, 0]], own[both[:, 1]])) for name, own in unit.items()
        }
        aucs[kind] |= {
            WEIGHTED: auc(label, score_weighted(equal)),
            EXACT: auc(label, (equal == codes_NL.shape[1]).astype(np.float64)),
        }
    uniform = count_equal_prefixes(codes_NL, negatives[UNIFORM])
    depths = range(1, codes_NL.shape[1] + 1)
    shares = tuple((float((common >= depth).mean()), float((uniform >= depth).mean())) for depth in depths)
    return Matching(len(pair_P2), aucs, shares)


def draw_negatives(pair_P2: Ints, items: int, seed: int) -> dict[str, Ints]:
    """Return a random pair per pair, with the same first item: one kind uniform, one by popularity.

    The second item always differs from the first. It can be a true neighbor by chance, as in any sampled evaluation.
    """
    random = np.random.default_rng(seed)
    first = pair_P2[:, 0]
    uniform = (first + random.integers(1, items, len(first))) % items
    popular = random.permutation(pair_P2[:, 1])
    popular = np.where(popular == first, uniform, popular)
    return {UNIFORM: np.stack([first, uniform], axis=1), POPULAR: np.stack([first, popular], axis=1)}
