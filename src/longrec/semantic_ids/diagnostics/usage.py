"""Usage of the codes of one level: shares, perplexity, active codes and Gini.

Shapes: N items, K codes of the level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.columns import Floats, Ints
from longrec.metrics.diversity import gini


@dataclass(frozen=True)
class LevelUsage:
    """How one level uses its codes.

    Attributes:
        size: number of codes K of the level.
        active: number of codes with an item.
        perplexity: exp of the entropy of the shares, 1 to ``active``.
        gini: concentration, 0 for even use to nearly 1 for one code.
        largest: share of the most used code.
        shares: float64 ``[K]`` share of each code. They sum to 1.
    """

    size: int
    active: int
    perplexity: float
    gini: float
    largest: float
    shares: Floats


def as_codes(codes: ArrayLike) -> Ints:
    """Return codes as int64 ``[N, L]``.

    Raises:
        DataError: another shape, no items, or values that are no whole numbers from 0.
    """
    codes_NL = np.asarray(codes)
    if codes_NL.ndim != 2 or not codes_NL.size:
        raise DataError("codes", f"an array of shape {codes_NL.shape}", "one row per item and one column per level")
    if codes_NL.dtype.kind not in "iu" or codes_NL.min() < 0:
        actual = f"values of type {codes_NL.dtype}, the smallest {codes_NL.min()}"
        raise DataError("codes", actual, "whole numbers from 0")
    return codes_NL.astype(np.int64)


def compute_shares(codes: ArrayLike, size: int, weights: ArrayLike | None = None) -> Floats:
    """Return the share of each code of a level, float64 ``[K]``, with 0 for unused codes.

    Args:
        codes: ``[N]`` code of each item.
        size: number of codes K.
        weights: ``[N]`` weight of each item, such as its events. Default: every item counts once.

    Raises:
        DataError: a code outside of the level, or weights that are negative or sum to 0.

    >>> compute_shares([0, 0, 2, 2], size=4).tolist()
    [0.5, 0.0, 0.5, 0.0]
    """
    code_N = np.asarray(codes)
    if not len(code_N) or code_N.min() < 0 or code_N.max() >= size:
        actual = f"codes from {code_N.min()} to {code_N.max()}" if len(code_N) else "no codes"
        raise DataError("codes", actual, f"codes from 0 to {size - 1}")
    weight_N = check_weights(weights, len(code_N))
    counts = np.bincount(code_N, weight_N, minlength=size).astype(np.float64)
    return counts / counts.sum()


def check_weights(weights: ArrayLike | None, count: int) -> Floats:
    """Return weights as float64 ``[N]``: ones by default.

    Raises:
        DataError: another length, a negative or undefined weight, or only zeros.
    """
    if weights is None:
        return np.ones(count)
    weight_N = np.asarray(weights, np.float64)
    if weight_N.shape != (count,):
        raise DataError("weights", f"an array of shape {weight_N.shape}", f"one weight for each of {count:,} items")
    if not np.isfinite(weight_N).all() or weight_N.min() < 0 or weight_N.sum() <= 0:
        actual = f"weights from {weight_N.min()} to {weight_N.max()}, with the sum {weight_N.sum()}"
        raise DataError("weights", actual, "numbers from 0 that are not all 0")
    return weight_N


def measure_usage(codes: ArrayLike, size: int, weights: ArrayLike | None = None) -> LevelUsage:
    """Return how one level uses its codes.

    Args:
        codes: ``[N]`` code of each item.
        size: number of codes K.
        weights: ``[N]`` weight of each item. Default: every item counts once.

    Raises:
        DataError: codes or weights that cannot be used.

    >>> usage = measure_usage([0, 1, 1, 0], size=4)
    >>> usage.active, round(usage.perplexity, 6), usage.gini
    (2, 2.0, 0.5)
    """
    shares_K = compute_shares(codes, size, weights)
    used = shares_K[shares_K > 0]
    perplexity = float(np.exp(-(used * np.log(used)).sum()))
    return LevelUsage(size, len(used), perplexity, gini(shares_K), float(shares_K.max()), shares_K)
