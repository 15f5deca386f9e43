"""Inputs of re-ranking by diversity: relevance scaled within the list, and unit vectors.

Scores of a ranker have a unit of their own: probabilities near 0.01, logits, products of both. Similarities do not.
Both methods, ``mmr`` and ``dpp``, therefore scale relevance to 0 .. 1 within the list, so that one trade-off fits
every ranker.

Shapes: N items of a list, D width of a vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import ConfigError, DataError

Floats = NDArray[np.float64]


def normalize_relevance(relevance: ArrayLike) -> Floats:
    """Return relevance scaled linearly to 0 (the least relevant) .. 1 (the most relevant), ``[N]``. All 0 if equal.

    Raises:
        DataError: if it is not one finite number per item.

    >>> normalize_relevance([0.01, 0.03, 0.02]).round(6).tolist()
    [0.0, 1.0, 0.5]
    """
    r_N = np.asarray(relevance, np.float64)
    if r_N.ndim != 1 or not np.isfinite(r_N).all():
        raise DataError(
            "relevance", f"an array of shape {r_N.shape}", "[N] finite numbers", "re-rank items that a stage has scored"
        )
    if not len(r_N):
        return r_N
    low, high = r_N.min(), r_N.max()
    return (r_N - low) / (high - low) if high > low else np.zeros(len(r_N))


def normalize_vectors(vectors: ArrayLike, items: int) -> Floats:
    """Return vectors of length 1, ``[N, D]``. A zero vector stays zero: it is similar to no item.

    Raises:
        DataError: if it is not one finite vector per item.

    >>> normalize_vectors([[3, 4], [0, 0]], items=2).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    v_ND = np.asarray(vectors, np.float64)
    if v_ND.ndim != 2 or len(v_ND) != items or not np.isfinite(v_ND).all():
        raise DataError(
            "vectors", f"an array of shape {v_ND.shape}", f"[{items}, D] finite numbers", "pass one vector per item"
        )
    norm_N1 = np.sqrt(np.einsum("nd,nd->n", v_ND, v_ND))[:, None]
    return v_ND / np.where(norm_N1 > 0, norm_N1, 1.0)


def check_share(name: str, value: float) -> None:
    """Check a trade-off between diversity (0) and relevance (1).

    Raises:
        ConfigError: if it is outside 0 .. 1.
    """
    if not 0 <= value <= 1:
        raise ConfigError(name, [f"must be between 0 (diversity) and 1 (relevance), got {value:g}"])


def check_count(name: str, value: int, least: int = 0) -> None:
    """Check a number of items.

    Raises:
        ConfigError: if it is below the least.
    """
    if value < least:
        raise ConfigError(name, [f"must be at least {least}, got {value}"])
