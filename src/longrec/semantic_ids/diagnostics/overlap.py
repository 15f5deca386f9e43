r"""Expected overlap of the codewords of a level, and its effective capacity.

Xuesi Wang, Junjie Wang, Ziliang Wang, Weijie Bian, Guanxing Zhang. "DRQ: Decoupled Residual Quantization for Robust
Semantic IDs", arXiv 2606.01844 (2026), section 3.

At retrieval the vector of code i is observed as c_i + eps with eps ~ N(0, sigma^2 I). With the shares pi of the codes

    O     = sum_i sum_j pi_i pi_j exp(-||c_i - c_j||^2 / (4 sigma^2))        expected overlap, sum pi^2 <= O <= 1
    K_eff = 1 / O                                                            effective capacity, 1 <= K_eff <= K

    K / K_eff = [K sum_i pi_i^2] [O / sum_i pi_i^2] = distribution x geometry

``distribution`` is 1 if all codes are used equally, ``geometry`` is 1 if the codes are far apart relative to sigma.

The paper sets sigma^2 to "the variance" of vectors, which is ambiguous. Here it is the mean variance per dimension,
times a factor: the only reading that fits the published figures. K_eff depends on it, so that a curve is measured.

Shapes: K codes of the level, D dimensions, S values of sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.columns import Floats

SIGMA_FACTORS = (0.25, 1.0, 4.0, 16.0, 64.0)
"""Multiples of the variance per dimension at which the curve is measured."""
_BLOCK = 1_024


@dataclass(frozen=True)
class Overlap:
    """Overlap of the codewords of one level at one sigma.

    Attributes:
        sigma: standard deviation of the perturbation, per dimension.
        overlap: expected overlap O.
        capacity: effective capacity K_eff.
        distribution: loss factor of uneven use, from 1.
        geometry: loss factor of codes that are close to each other, from 1.
    """

    sigma: float
    overlap: float
    capacity: float
    distribution: float
    geometry: float


def compute_overlaps(
    shares: ArrayLike, codebook: ArrayLike, sigmas: Sequence[float], *, block: int = _BLOCK
) -> list[Overlap]:
    """Return the overlap of a level at several values of sigma. Distances are computed once, block by block.

    Args:
        shares: ``[K]`` share of each code, also of unused ones. They sum to 1.
        codebook: ``[K, D]`` vectors of the codes.
        sigmas: ``[S]`` standard deviations of the perturbation, per dimension.
        block: number of codes whose distances are in memory at once.

    Raises:
        DataError: shares of another number of codes, shares that do not sum to 1, or a sigma that is not above 0.
    """
    pi_K, code_KD = np.asarray(shares, np.float64), np.asarray(codebook, np.float64)
    _check(pi_K, code_KD, sigmas)
    size, used = len(pi_K), pi_K > 0
    pi, points = pi_K[used], code_KD[used]
    points = points - pi @ points  # distances do not depend on the origin, and their rounding errors do
    squared = np.einsum("kd,kd->k", points, points)
    scale_S = 1.0 / (4.0 * np.asarray(sigmas, np.float64) ** 2)
    even = float(pi @ pi)
    across_S = np.zeros(len(scale_S))  # sum over i != j
    for start in range(0, len(pi), block):
        rows = slice(start, start + block)
        for other in range(start, len(pi), block):
            columns = slice(other, other + block)
            distance = squared[rows, None] + squared[None, columns] - 2.0 * points[rows] @ points[columns].T
            np.maximum(distance, 0.0, out=distance)
            if start == other:
                np.fill_diagonal(distance, np.inf)
            for at, scale in enumerate(scale_S):
                across_S[at] += (1 + (start != other)) * float(pi[rows] @ np.exp(-scale * distance) @ pi[columns])
    return [
        Overlap(float(sigma), even + across, 1.0 / (even + across), size * even, (even + across) / even)
        for sigma, across in zip(sigmas, across_S.tolist())
    ]


def compute_overlap(shares: ArrayLike, codebook: ArrayLike, sigma: float, *, block: int = _BLOCK) -> Overlap:
    """Return the overlap of a level at one sigma, see ``compute_overlaps``.

    >>> far = compute_overlap([0.5, 0.5, 0, 0], [[0.0], [100.0], [7.0], [8.0]], sigma=1.0)
    >>> far.capacity, far.distribution, far.geometry
    (2.0, 2.0, 1.0)
    """
    return compute_overlaps(shares, codebook, [sigma], block=block)[0]


def measure_sigma(vectors: ArrayLike) -> float:
    """Return the root of the mean variance per dimension of vectors ``[N, D]``: the default sigma of a level.

    >>> round(measure_sigma([[0.0, 0.0], [2.0, 4.0]]) ** 2, 6)  # variances 1 and 4
    2.5
    """
    return float(np.sqrt(np.asarray(vectors).var(0, dtype=np.float64).mean()))


def _check(pi_K: Floats, code_KD: Floats, sigmas: Sequence[float]) -> None:
    if code_KD.ndim != 2 or pi_K.shape != code_KD.shape[:1]:
        actual = f"shares of shape {pi_K.shape} and a codebook of shape {code_KD.shape}"
        raise DataError("codebook", actual, "shares [K] and vectors [K, D] of the same level")
    if not len(pi_K) or pi_K.min() < 0 or abs(pi_K.sum() - 1) > 1e-6:
        raise DataError(
            "shares", f"the sum {pi_K.sum():.6g}", "shares from 0 that sum to 1 over all codes of the level"
        )
    bad = [sigma for sigma in sigmas if not (np.isfinite(sigma) and sigma > 0)]
    if bad:
        do = "the vectors of this level are all equal: drop the level, or set sigma"
        raise DataError("sigma", f"{bad[0]}", "a number above 0", do)
