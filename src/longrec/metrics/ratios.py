r"""Ratios of sums over users, with intervals by the delta method or the bootstrap.

A click rate is clicks / impressions, both summed over users. Impressions of one user are alike, so that the interval is
over users: numerator and denominator of a user vary together.

    R = sum_u y_u / sum_u x_u        e_u = (y_u - R x_u) / sum_v x_v        Var R = U / (U - 1) sum_u e_u^2

is the delta method (Cochran 1977, chapter 6; Deng et al., KDD 2018). The difference of two ratios has ``e_u - e'_u`` in
place of ``e_u``: paired where a user is in both, and the sum of two variances where each user is in one.

Shapes: N rows, U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError, UnknownName
from longrec.metrics.columns import Floats
from longrec.metrics.interval import Interval
from longrec.metrics.resamples import UserResamples

Method = Literal["delta", "bootstrap"]
"""How the interval of a ratio is estimated."""
_WIDTH = 1.959963984540054
"""Quantile of the normal distribution for 95 %."""


@dataclass(frozen=True)
class UserSums:
    """Sums of a numerator and a denominator by user.

    Attributes:
        user: ``[U]`` distinct users, ascending.
        numerator, denominator: float64 ``[U]``.
    """

    user: np.ndarray
    numerator: Floats
    denominator: Floats

    @classmethod
    def of(cls, user: ArrayLike, numerator: ArrayLike, denominator: ArrayLike) -> UserSums:
        """Sum the rows ``[N]`` of each user.

        Raises:
            DataError: if columns have different lengths, or the denominator is 0.
        """
        y_N, x_N = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
        user_N = np.asarray(user)
        if not len(user_N) or y_N.shape != user_N.shape or x_N.shape != user_N.shape:
            raise DataError("columns", f"{y_N.shape}, {x_N.shape} for users {user_N.shape}", "one value per row")
        distinct, owner_N = np.unique(user_N, return_inverse=True)
        y_U, x_U = (np.bincount(owner_N, column, len(distinct)).astype(np.float64) for column in (y_N, x_N))
        if not x_U.sum() > 0:
            do = "measure a period with such rows"
            raise DataError("denominator", f"a sum of {x_U.sum():g}", "a positive one", do)
        return cls(distinct, y_U, x_U)

    @property
    def ratio(self) -> float:
        """The ratio over all users."""
        return float(self.numerator.sum() / self.denominator.sum())

    @property
    def influence(self) -> Floats:
        """Contribution of each user to the error of the ratio, float64 ``[U]``, with the sum 0."""
        return (self.numerator - self.ratio * self.denominator) / self.denominator.sum()

    def spread(self, users: np.ndarray, values: Floats) -> Floats:
        """Return the values of its users at their positions among all ``users``, and 0 for others."""
        result = np.zeros(len(users))
        result[np.searchsorted(users, self.user)] = values
        return result


def ratio_interval(sums: UserSums, method: Method = "delta", *, n_resamples: int = 300, seed: int = 0) -> Interval:
    """Return a ratio with its 95 % interval over users.

    Args:
        method: ``delta`` needs no draws, and is accurate for many users. ``bootstrap`` draws users, and its interval
            may be asymmetric.

    Raises:
        UnknownName: an unknown method.
        DataError: if there are fewer than two users.

    >>> print(ratio_interval(UserSums.of([1, 1, 2, 3], [1, 0, 0, 1], [1, 1, 1, 1])))
    0.5000 [0.0757, 0.9243]
    """
    return difference_of_ratios(sums, None, method, n_resamples=n_resamples, seed=seed)


def difference_of_ratios(
    first: UserSums, baseline: UserSums | None, method: Method = "delta", *, n_resamples: int = 300, seed: int = 0
) -> Interval:
    """Return a ratio minus another, with its 95 % interval over the users of both.

    Users in both are paired. Of two groups with different users, as in an A/B test, the interval is that of independent
    samples.

    Args:
        baseline: sums of the other ratio. None: the ratio itself.

    Raises:
        UnknownName: an unknown method.
        DataError: if there are fewer than two users.

    >>> one, other = UserSums.of([1, 2, 3], [1, 0, 1], [2, 1, 1]), UserSums.of([1, 2, 3], [0, 0, 1], [2, 1, 1])
    >>> print(difference_of_ratios(one, other))
    0.2500 [-0.1175, 0.6175]
    """
    if method not in get_args(Method):
        raise UnknownName("method", str(method), get_args(Method))
    users = first.user if baseline is None else np.union1d(first.user, baseline.user)
    if len(users) < 2:
        raise DataError("column 'user'", f"{len(users)} user", "two users or more", "measure more rows")
    value = first.ratio - (0.0 if baseline is None else baseline.ratio)
    if method == "delta":
        error_U = first.spread(users, first.influence)
        if baseline is not None:
            error_U = error_U - baseline.spread(users, baseline.influence)
        half = _WIDTH * float(np.sqrt(len(users) / (len(users) - 1) * (error_U @ error_U)))
        return Interval(value, value - half, value + half)
    columns = [first.spread(users, first.numerator), first.spread(users, first.denominator)]
    if baseline is not None:
        columns += [baseline.spread(users, baseline.numerator), baseline.spread(users, baseline.denominator)]
    columns_CU = np.stack(columns)
    draws = []
    for drawn_U in UserResamples(users, n_resamples, seed):
        sums = columns_CU @ drawn_U
        if (sums[1::2] > 0).all():  # a resample without a denominator defines no ratio
            draws.append(sums[0] / sums[1] - (sums[2] / sums[3] if baseline is not None else 0.0))
    if not draws:
        raise DataError("denominator", "0 on every resample", "users with a positive one", "measure more rows")
    return Interval.of(value, np.array(draws))


def summarize_ratios(
    sums: Mapping[str, UserSums], method: Method = "delta", *, n_resamples: int = 300, seed: int = 0
) -> dict[str, Interval]:
    """Return the interval of each ratio.

    >>> summarize_ratios({"ctr": UserSums.of([1, 2], [1, 1], [2, 2])})["ctr"].value
    0.5
    """
    return {name: ratio_interval(one, method, n_resamples=n_resamples, seed=seed) for name, one in sums.items()}
