r"""Greedy MAP of a DPP: Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation Diversity.

Chen, Zhang, Zhou, NeurIPS 2018. https://arxiv.org/abs/1709.05135

A set of items is as good as the determinant of its kernel, which is the squared volume that its vectors span:

    L = diag(q) S diag(q)    S_ij = (1 + <f_i, f_j>) / 2    q_i = exp(alpha r_i)    alpha = theta / (2 (1 - theta))
    log det L_Y = 2 alpha sum_{i in Y} r_i + log det S_Y

f are unit vectors. Greedy: the next item is the one that raises log det L_Y most. The increase is log d_i^2, with the
Cholesky factor of S extended by one row per chosen item j (c_i is the row of item i, s_i^2 what is left of S_ii):

    log d_i^2 = 2 alpha r_i + log s_i^2
    e_i = (S_ji - <c_j, c_i>) / s_j        c_i <- [c_i, e_i]        s_i^2 <- s_i^2 - e_i^2

No matrix is inverted, and S is never formed: O(N K^2 + N K D). With a window of w items only the last w - 1 chosen
items repel the next one. The oldest row of the factor is removed by w - 1 rotations: O(N K w + N K D).

Differences from the paper
    - S is not the plain inner product, by which opposite vectors would be as similar as equal ones;
    - q is kept out of the factor (that of L is q times that of S), so that no exponential overflows, and eps is
      compared with s^2, which has no unit;
    - r is relevance scaled to 0 .. 1 within the list, so that theta means the same for every ranker;
    - items that chosen ones explain (s^2 < eps) are not candidates. If no other is left, the remaining items follow by
      relevance, and their number is returned. With a window, its oldest items leave it early instead;
    - theta = 1 is allowed: order by relevance.

Shapes: N items of the list, K chosen items, D width of a vector, T rows of the factor.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.pipeline.rerank_inputs import Floats, check_count, check_share, normalize_relevance, normalize_vectors

EPS = 1e-10
"""Smallest s^2 of an item that chosen ones do not explain."""


def dpp(
    relevance_N: ArrayLike, vectors_ND: ArrayLike, k: int, theta: float, window: int | None = None
) -> tuple[NDArray[np.int64], int]:
    """Return the indices of the first ``k`` items, int64 ``[min(k, N)]``, and how many of them relevance filled.

    The filled items are the last ones. Of equal values the most relevant item comes first, then the first of the list.

    Args:
        relevance_N: score of every item, in any unit. Higher is better.
        vectors_ND: vector of every item, of any length. A zero vector is as different from all items as an orthogonal
            one.
        k: number of items.
        theta: trade-off. 1 sorts by relevance, 0 regards diversity alone.
        window: number of consecutive items that are diverse. None for the whole list.

    Raises:
        ConfigError: if ``k`` is negative, theta is outside 0 .. 1, or the window is below 1.
        DataError: if a shape is wrong or a value is not finite.

    >>> dpp([0.9, 0.8, 0.7], [[1, 0], [1, 0], [0, 1]], k=3, theta=0.5)  # the second item repeats the first
    (array([0, 2, 1]), 1)
    """
    check_count("k", k)
    check_share("theta", theta)
    if window is not None:
        check_count("window", window, 1)
    r_N = normalize_relevance(relevance_N)
    f_ND = normalize_vectors(vectors_ND, len(r_N))
    order = np.argsort(-r_N, kind="stable")
    count = min(k, len(order))
    if theta == 1 or window == 1:
        return order[:count], 0
    gain_N = theta / (1 - theta) * r_N[order]
    chosen = _choose(gain_N, _Factor(f_ND[order], count if window is None else min(window - 1, count)), count, window)
    filled = count - len(chosen)
    if filled:
        rest_N = np.ones(len(order), bool)
        rest_N[chosen] = False
        chosen = [*chosen, *np.flatnonzero(rest_N)[:filled].tolist()]
    return order[np.array(chosen, np.int64)], filled


def _choose(gain_N: Floats, factor: _Factor, count: int, window: int | None) -> list[int]:
    """Return chosen items, fewer than ``count`` if the others are explained by them."""
    chosen: list[int] = []
    gain_N = gain_N.copy()
    while len(chosen) < count:
        value_N = factor.log_rest() + gain_N
        best = int(value_N.argmax())
        if math.isinf(value_N[best]):
            if window is None or not factor.rows:
                break
            factor.remove_oldest()
            continue
        chosen.append(best)
        gain_N[best] = -np.inf
        if len(chosen) < count:
            if factor.rows == factor.capacity:
                factor.remove_oldest()
            factor.append(best)
    return chosen


class _Factor:
    """Rows of the Cholesky factor of S for all items, conditioned on chosen items.

    Attributes:
        rows: T, the number of chosen items in the factor.
        capacity: largest T.
    """

    def __init__(self, f_ND: Floats, capacity: int) -> None:
        self.rows, self.capacity = 0, capacity
        # With one more number in every vector, inner products are (1 + <f_i, f_j>) / 2.
        self._f_ND = np.concatenate([f_ND, np.ones((len(f_ND), 1))], 1) / math.sqrt(2)
        self._zero_N: NDArray[np.bool_] = np.abs(f_ND).sum(1) == 0
        self._c_TN = np.zeros((capacity, len(f_ND)))
        self._rest_N = np.ones(len(f_ND))  # S_ii of a zero vector is 1 too
        self._items: list[int] = []

    def log_rest(self) -> Floats:
        """Return log s^2 of every item, -inf if the items of the factor explain it."""
        explained_N = self._rest_N < EPS
        return np.where(explained_N, -np.inf, np.log(np.where(explained_N, 1.0, self._rest_N)))

    def append(self, item: int) -> None:
        """Condition on one more item, whose s^2 is at least ``EPS``."""
        similarity_N = self._f_ND @ self._f_ND[item]
        if self._zero_N[item]:
            similarity_N[item] = 1.0
        c_TN = self._c_TN[: self.rows]
        e_N = (similarity_N - c_TN[:, item] @ c_TN) / math.sqrt(self._rest_N[item])
        self._c_TN[self.rows] = e_N
        self._rest_N -= e_N * e_N
        self._items.append(item)
        self.rows += 1

    def remove_oldest(self) -> None:
        """Condition on the oldest item no longer: rotate its column of the factor into the others."""
        for row in range(1, self.rows):
            pair_2N = self._c_TN[row - 1 : row + 1]  # the oldest column, rotated so far, and that of this row
            oldest, own = pair_2N[:, self._items[row]].tolist()
            length = math.hypot(oldest, own)
            pair_2N[:] = np.array([[oldest / length, own / length], [own / length, -oldest / length]]) @ pair_2N
        self._rest_N += self._c_TN[self.rows - 1] ** 2
        self._items.pop(0)
        self.rows -= 1
