"""Residual codebooks: a vector becomes the sum of one codeword per level.

    r^1 = z;     k_l = argmin_k |r^l - c^l_k|^2;     r^(l+1) = r^l - c^l_(k_l);     z^ = sum_l c^l_(k_l)

so that z = z^ + r^(L+1). The codebooks of ``fit_residual_kmeans`` are the centroids of k-means on the residuals of each
level, over all vectors.

Shapes: N vectors, L levels, K codes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from longrec.semantic_ids.capacity import Capacity, CapacityReport, repair
from longrec.semantic_ids.kmeans import compute_inertia, fit_kmeans
from longrec.semantic_ids.nearest import find_nearest


@dataclass(frozen=True)
class LevelFacts:
    """Facts about one level of the codes of the fitted items.

    Attributes:
        inertia: sum of the squared distances of the residuals from their codewords: the energy that is left over.
        energy: sum of the squared residuals before this level.
        active: number of codes with items.
        iterations: iterations of k-means, 0 for other methods.
        reseeded: number of times that k-means moved an empty centroid.
        capacity: report of the repair, or None without a capacity.
    """

    inertia: float
    energy: float
    active: int
    iterations: int = 0
    reseeded: int = 0
    capacity: CapacityReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for a file."""
        plain: dict[str, Any] = {
            "inertia": self.inertia,
            "energy": self.energy,
            "active": self.active,
            "iterations": self.iterations,
            "reseeded": self.reseeded,
        }
        return plain if self.capacity is None else {**plain, "capacity": self.capacity.to_dict()}


@dataclass(frozen=True)
class FittedCodes:
    """Codes of the items that a tokenizer was fitted on.

    Attributes:
        codes: int32 ``[N, L]``. With a capacity they are not always the nearest ones.
        levels: facts about each level.
    """

    codes: Int32[Tensor, "N L"]
    levels: tuple[LevelFacts, ...]


@dataclass(frozen=True)
class ResidualCodebooks:
    """Codebooks of all levels.

    Attributes:
        codebooks: float32 ``[L, K, D]``.
    """

    codebooks: Float[Tensor, "L K D"]

    def encode(self, z_ND: Float[Tensor, "N D"]) -> Int32[Tensor, "N L"]:
        """Return the nearest code of each level, level by level."""
        codes = [code_N.int() for code_N, _ in self._descend(z_ND)]
        return torch.stack(codes, 1)

    def decode(self, code_NL: Int32[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        """Return the sums of the codewords of codes, also of the first levels alone (``[N, l]``)."""
        z_ND = torch.zeros(len(code_NL), self.codebooks.shape[2])
        for level in range(code_NL.shape[1]):
            z_ND += self.codebooks[level][code_NL[:, level].long()]
        return z_ND

    def assign(
        self, z_ND: Float[Tensor, "N D"], weights: Float[Tensor, " N"] | None, capacity: Capacity | None
    ) -> FittedCodes:
        """Return the codes of vectors within a capacity, level by level, with facts. The codebooks do not change."""
        rest_ND, codes, facts = z_ND.clone(), [], []
        for book_KD in self.codebooks:
            energy = float(rest_ND.double().square().sum())
            code_N, report = find_nearest(rest_ND, book_KD), None
            if capacity is not None:
                code_N, report = repair(rest_ND, book_KD, code_N, weights, capacity)
            inertia, active = (
                compute_inertia(rest_ND, book_KD, code_N),
                int((torch.bincount(code_N, minlength=len(book_KD)) > 0).sum()),
            )
            facts.append(LevelFacts(inertia, energy, active, capacity=report))
            codes.append(code_N.int())
            _subtract(rest_ND, book_KD, code_N)
        return FittedCodes(torch.stack(codes, 1), tuple(facts))

    def _descend(self, z_ND: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the codes of each level, and the residuals after it. The next level overwrites these."""
        rest_ND = z_ND.clone()
        for book_KD in self.codebooks:
            code_N = find_nearest(rest_ND, book_KD)
            _subtract(rest_ND, book_KD, code_N)
            yield code_N, rest_ND


_AT_ONCE = 1 << 16


def _subtract(rest_ND: Tensor, book_KD: Tensor, code_N: Tensor) -> None:
    for first in range(0, len(rest_ND), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        rest_ND[rows] -= book_KD[code_N[rows]]


def fit_residual_kmeans(
    z_ND: Float[Tensor, "N D"],
    levels: int,
    size: int,
    *,
    iterations: int = 25,
    tolerance: float = 1e-4,
    vectors_per_code: int | None = None,
    seed: int = 0,
    weights: Float[Tensor, " N"] | None = None,
    capacity: Capacity | None = None,
    advance: Callable[[], None] | None = None,
) -> tuple[ResidualCodebooks, FittedCodes]:
    """Fit codebooks by k-means on the residuals of each level. Arguments are those of ``fit_kmeans``.

    Raises:
        DataError: if there are fewer vectors than codes.
    """
    rest_ND, books, codes, facts = z_ND.clone(), [], [], []
    for level in range(levels):
        energy = float(rest_ND.double().square().sum())
        fitted = fit_kmeans(
            rest_ND,
            size,
            iterations=iterations,
            seed=seed + level,
            weights=weights,
            capacity=capacity,
            tolerance=tolerance,
            vectors_per_code=vectors_per_code,
            advance=advance,
        )
        active = size - fitted.empty
        facts.append(LevelFacts(fitted.inertia, energy, active, fitted.iterations, fitted.reseeded, fitted.capacity))
        books.append(fitted.centroids)
        codes.append(fitted.codes.int())
        _subtract(rest_ND, fitted.centroids, fitted.codes)
    return ResidualCodebooks(torch.stack(books)), FittedCodes(torch.stack(codes, 1), tuple(facts))
