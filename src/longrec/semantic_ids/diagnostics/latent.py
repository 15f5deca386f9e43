"""Geometry of vectors: how many directions they use, and how similar two of them are.

Shapes: N items, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import DataError
from longrec.metrics.columns import Floats

_PAIRS = 100_000
Real = TypeVar("Real", np.float32, np.float64)


@dataclass(frozen=True)
class LatentGeometry:
    """Geometry of vectors, from the eigenvalues of their covariance.

    Attributes:
        dimensions: number of dimensions D.
        participation: participation ratio (sum l)^2 / sum l^2, 1 to D.
        effective_rank: exp of the entropy of the eigenvalues, 1 to D (Roy and Vetterli, EUSIPCO 2007).
        largest: share of the largest eigenvalue.
        cosine: mean absolute cosine of two different random items.
        spectrum: float64 ``[D]`` share of each eigenvalue, descending.
    """

    dimensions: int
    participation: float
    effective_rank: float
    largest: float
    cosine: float
    spectrum: Floats


def measure_geometry(vectors: ArrayLike, *, pairs: int = _PAIRS, seed: int = 0) -> LatentGeometry:
    """Return the geometry of vectors.

    Args:
        vectors: ``[N, D]``.
        pairs: number of random pairs of items for the mean cosine.
        seed: of the pairs.

    Raises:
        DataError: fewer than two vectors, or vectors that are all equal.
    """
    x_ND = np.asarray(vectors, np.float64)
    if x_ND.ndim != 2 or len(x_ND) < 2:
        raise DataError("vectors", f"an array of shape {x_ND.shape}", "two vectors or more, as [N, D]")
    eigenvalues = np.maximum(np.linalg.eigvalsh(np.cov(x_ND, rowvar=False, ddof=0).reshape(x_ND.shape[1], -1)), 0.0)
    if eigenvalues.sum() <= 0:
        raise DataError("vectors", "vectors that are all equal", "vectors that differ between items")
    share = np.sort(eigenvalues / eigenvalues.sum())[::-1]
    used = share[share > 0]
    return LatentGeometry(
        dimensions=x_ND.shape[1],
        participation=float(1.0 / (share @ share)),
        effective_rank=float(np.exp(-(used * np.log(used)).sum())),
        largest=float(share[0]),
        cosine=_mean_cosine(x_ND, pairs, seed),
        spectrum=share,
    )


def _mean_cosine(x_ND: Floats, pairs: int, seed: int) -> float:
    random = np.random.default_rng(seed)
    first = random.integers(0, len(x_ND), pairs)
    second = (first + random.integers(1, len(x_ND), pairs)) % len(x_ND)  # never the item itself
    unit = normalize_rows(x_ND)
    return float(np.abs(np.einsum("pd,pd->p", unit[first], unit[second])).mean())


def normalize_rows(x_ND: NDArray[Real]) -> NDArray[Real]:
    """Return rows of length 1. Rows of zeros stay zero, so that their cosine with any row is 0."""
    length = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.divide(x_ND, length, out=np.zeros_like(x_ND), where=length > 0)
