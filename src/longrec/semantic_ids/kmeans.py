"""k-means of many vectors: k-means++ on a sample, then Lloyd's iterations over all of them.

    minimize  J = sum_i |x_i - c_(k_i)|^2     by turns over the codes k and the centroids c

The first centroids are drawn by greedy k-means++ (Arthur and Vassilvitskii 2007): a few candidates with a probability
proportional to the squared distance from those drawn before, of which the best one is taken. Each iteration assigns
every vector to its nearest centroid (``nearest.py``) and moves every centroid to the mean of its vectors. An empty
centroid moves to the vector that is farthest from its own. Iterations end early when J no longer falls. The same seed
gives the same result.

With a capacity, each assignment is repaired (``capacity.py``) before the centroids move.

Shapes: N vectors, D width, K centroids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.errors import DataError
from longrec.semantic_ids.capacity import Capacity, CapacityReport, repair
from longrec.semantic_ids.nearest import find_best, find_nearest

_SAMPLE = 16
"""Vectors per centroid in the sample from which the first centroids are drawn."""
_RESEEDINGS = 20
"""Repetitions of the last assignment while centroids are empty."""
_CANDIDATES = 8
"""Least number of candidates for each of the first centroids."""
_EQUAL = 1e-10
"""Squared distance, as a share of the squared length, up to which a vector counts as equal to its centroid."""
_AT_ONCE = 1 << 16
"""Vectors whose distances are computed at once."""


@dataclass(frozen=True)
class KMeans:
    """Result of k-means.

    Attributes:
        centroids: float32 ``[K, D]``.
        codes: the centroid of each vector, int64 ``[N]``. Without a capacity it is the nearest one.
        inertia: sum of the squared distances of all vectors from their centroids.
        history: inertia of the assignment of each iteration.
        reseeded: number of times that an empty centroid was moved.
        empty: number of centroids without vectors at the end. It is 0 unless vectors are equal to each other.
        capacity: report of the last repair, or None without a capacity.
    """

    centroids: Float[Tensor, "K D"]
    codes: Int[Tensor, " N"]
    inertia: float
    history: tuple[float, ...] = ()
    reseeded: int = 0
    empty: int = 0
    capacity: CapacityReport | None = None

    @property
    def iterations(self) -> int:
        """Number of iterations."""
        return len(self.history)


def fit_kmeans(
    x_ND: Float[Tensor, "N D"],
    size: int,
    *,
    iterations: int = 25,
    seed: int = 0,
    weights: Float[Tensor, " N"] | None = None,
    capacity: Capacity | None = None,
    tolerance: float = 1e-4,
    vectors_per_code: int | None = None,
    advance: Callable[[], None] | None = None,
) -> KMeans:
    """Fit k-means.

    Args:
        x_ND: vectors, float32.
        size: number K of centroids.
        iterations: largest number of iterations.
        weights: weight of each vector in the loads that ``capacity`` bounds, such as its exposure. Default: 1 each.
            Weights do not change the means.
        capacity: bound on the load of each centroid. With ``vectors_per_code`` it holds for the last assignment alone.
        tolerance: iterations end when the inertia falls by less than this share. 0 runs all of them.
        vectors_per_code: fit on a random sample of this many vectors per centroid. Default: all vectors. All vectors
            are assigned at the end in both cases.
        advance: called after each iteration.

    Raises:
        DataError: if there are fewer vectors than centroids.
    """
    require_vectors(len(x_ND), size, "k-means")
    random = torch.Generator().manual_seed(seed)
    wanted = size * (vectors_per_code or 0)
    is_sampled = vectors_per_code is not None and wanted < len(x_ND)
    fitted_ND = x_ND[torch.randperm(len(x_ND), generator=random)[: max(wanted, size)]] if is_sampled else x_ND
    fitted_weights = weights if not is_sampled else None
    bound = capacity if not is_sampled else None
    centroid_KD = draw_centroids(fitted_ND, size, random)
    norm = sum_squares(fitted_ND)
    history: list[float] = []
    reseeded = 0
    for _ in range(iterations):
        code_N, inertia = _assign(fitted_ND, centroid_KD, norm, fitted_weights, bound)
        reseeded += _fill_empty(fitted_ND, centroid_KD, code_N)
        centroid_KD = compute_means(fitted_ND, code_N, centroid_KD)
        history.append(inertia)
        if advance is not None:
            advance()
        if len(history) > 1 and history[-2] - inertia < tolerance * history[-2]:
            break
    code_N = find_nearest(x_ND, centroid_KD)
    for _ in range(_RESEEDINGS):
        moved = _fill_empty(x_ND, centroid_KD, code_N)
        if not moved:
            break
        reseeded += moved
        code_N = find_nearest(x_ND, centroid_KD)
    report = None
    if capacity is not None:
        code_N, report = repair(x_ND, centroid_KD, code_N, weights, capacity)
    empty = int((torch.bincount(code_N, minlength=size) == 0).sum())
    inertia = compute_inertia(x_ND, centroid_KD, code_N)
    return KMeans(centroid_KD, code_N, inertia, tuple(history), reseeded, empty, report)


def require_vectors(vectors: int, size: int, where: str) -> None:
    """Refuse fewer vectors than codes.

    Raises:
        DataError: if there are fewer.
    """
    if vectors < size:
        raise DataError(
            where,
            f"{vectors:,} vectors for {size:,} codes",
            "at least as many vectors as codes",
            "use a smaller size: each code should stand for 10 vectors or more",
        )


def _assign(
    x_ND: Tensor, centroid_KD: Tensor, norm: tuple[float, Tensor], weights: Tensor | None, capacity: Capacity | None
) -> tuple[Tensor, float]:
    """Return the codes and their inertia."""
    code_N, score_N = find_best(x_ND, centroid_KD)
    if capacity is not None and capacity.is_bounded:
        code_N, _ = repair(x_ND, centroid_KD, code_N, weights, capacity)
        return code_N, compute_inertia(x_ND, centroid_KD, code_N)
    squares, sum_D = norm
    mean_D = centroid_KD.double().mean(0)
    centered = squares - 2 * float(mean_D @ sum_D) + len(x_ND) * float(mean_D @ mean_D)
    return code_N, max(centered - 2 * float(score_N.double().sum()), 0.0)


def sum_squares(x_ND: Float[Tensor, "N D"]) -> tuple[float, Float[Tensor, " D"]]:
    """Return the sum of the squared lengths, and the sum of the vectors, in float64."""
    squares, sum_D = 0.0, torch.zeros(x_ND.shape[1], dtype=torch.float64, device=x_ND.device)
    for chunk_BD in torch.split(x_ND, _AT_ONCE):
        exact_BD = chunk_BD.double()
        squares += float(exact_BD.square().sum())
        sum_D += exact_BD.sum(0)
    return squares, sum_D


def compute_inertia(x_ND: Float[Tensor, "N D"], centroid_KD: Float[Tensor, "K D"], code_N: Int[Tensor, " N"]) -> float:
    """Return the sum of the squared distances of vectors from the centroids of their codes."""
    return float(compute_distances(x_ND, centroid_KD, code_N).double().sum())


def compute_distances(
    x_ND: Float[Tensor, "N D"], centroid_KD: Float[Tensor, "K D"], code_N: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Return the squared distance of each vector from the centroid of its code."""
    distance_N = torch.empty(len(x_ND), device=x_ND.device)
    for first in range(0, len(x_ND), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        distance_N[rows] = (x_ND[rows] - centroid_KD[code_N[rows]]).square_().sum(1)
    return distance_N


def compute_means(
    x_ND: Float[Tensor, "N D"], code_N: Int[Tensor, " N"], centroid_KD: Float[Tensor, "K D"]
) -> Float[Tensor, "K D"]:
    """Return the mean of the vectors of each code. A code without vectors keeps its centroid."""
    count_K1 = torch.bincount(code_N, minlength=len(centroid_KD)).unsqueeze(1)
    sum_KD = torch.zeros_like(centroid_KD, dtype=torch.float64)
    for first in range(0, len(x_ND), _AT_ONCE):  # float32 sums of one chunk, float64 over chunks
        rows = slice(first, first + _AT_ONCE)
        sum_KD += torch.zeros_like(centroid_KD).index_add_(0, code_N[rows], x_ND[rows])
    return torch.where(count_K1 > 0, sum_KD / count_K1.clamp(min=1), centroid_KD.double()).float()


def draw_centroids(
    x_ND: Float[Tensor, "N D"], size: int, random: torch.Generator, per_code: int = _SAMPLE
) -> Float[Tensor, "K D"]:
    """Draw centroids among vectors by greedy k-means++, from a random sample of ``per_code`` vectors per centroid."""
    count = min(len(x_ND), size * per_code)
    sample = torch.randperm(len(x_ND), generator=random)[:count] if count < len(x_ND) else torch.arange(len(x_ND))
    sample_SD = x_ND[sample.to(x_ND.device)]
    sample_SD = sample_SD - sample_SD.mean(0)
    square_S = sample_SD.square().sum(1)
    candidates = max(2 + int(math.log(size)), _CANDIDATES)
    uniform_KT = torch.rand(size, candidates, generator=random, dtype=torch.float64)
    chosen = [int(uniform_KT[0, 0] * count)]
    distance_S = (sample_SD - sample_SD[chosen[0]]).square_().sum(1)
    for at in range(1, size):
        total_S = distance_S.cumsum(0, dtype=torch.float64)
        total = float(total_S[-1])
        if total <= 0:  # all vectors of the sample are equal to a centroid
            free_S = torch.ones(count, dtype=torch.bool)
            free_S[chosen] = False
            chosen += free_S.nonzero().squeeze(1)[: size - at].tolist()
            break
        drawn_T = torch.searchsorted(total_S, uniform_KT[at].to(total_S.device) * total, right=True).clamp(
            max=count - 1
        )
        new_TS = torch.addmm(square_S, sample_SD[drawn_T], sample_SD.t(), alpha=-2)
        new_TS += square_S[drawn_T].unsqueeze(1)
        new_TS = torch.minimum(new_TS.clamp_(min=0), distance_S, out=new_TS)
        best = int(new_TS.sum(1).argmin())
        chosen.append(int(drawn_T[best]))
        distance_S = new_TS[best].clone()
        distance_S[chosen[-1]] = 0
    return x_ND[sample[torch.tensor(chosen)].to(x_ND.device)].clone()


def _fill_empty(x_ND: Tensor, centroid_KD: Tensor, code_N: Tensor) -> int:
    """Move each empty centroid to the vector farthest from its own, and its code with it. Return how many moved.

    A vector that is alone with its centroid stays, and so does one that is equal to it.
    """
    count_K = torch.bincount(code_N, minlength=len(centroid_KD))
    empty = (count_K == 0).nonzero().squeeze(1).tolist()
    if not empty:
        return 0
    distance_N = compute_distances(x_ND, centroid_KD, code_N)
    far = distance_N.argsort(descending=True, stable=True)[: 2 * len(centroid_KD)]  # at most K vectors are alone
    moved = 0
    for row in far.tolist():
        if moved == len(empty) or float(distance_N[row]) <= _EQUAL * float(x_ND[row].square().sum()):
            break
        own = int(code_N[row])
        if count_K[own] < 2:
            continue
        count_K[own] -= 1
        centroid_KD[empty[moved]] = x_ND[row]
        code_N[row] = empty[moved]
        moved += 1
    return moved
