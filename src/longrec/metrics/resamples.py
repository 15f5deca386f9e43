"""Resamples of users, and the values of metrics on them, paired across metrics and runs.

Rows and lists of one user are alike, so that intervals are over users (the cluster bootstrap; Field and Welsh, JRSS B
2007). A resample is a vector of counts, one per user. All metrics and all runs have the same resamples, so that a
difference between runs is paired: its interval is that of the differences.

Shapes: L lists, U users, R resamples, M metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import Floats, number_groups
from longrec.metrics.compare import Comparison, Difference, Verdict
from longrec.metrics.interval import Interval

Better = Literal["higher", "lower", "neither"]
"""The better direction of a metric. Concentration, popularity or novelty are not better in one direction."""


class UserResamples:
    """Resamples of the users of lists.

    Args:
        user: ``[L]`` user of each list.
        n_resamples: number of resamples, at least 2.
        seed: the same seed and users are the same resamples.

    Attributes:
        owner: int64 ``[L]``, number of the user of each list.
        users: number of users.

    Raises:
        DataError: if there are fewer than two users.
        ConfigError: if there are fewer than two resamples.
    """

    def __init__(self, user: ArrayLike, n_resamples: int = 300, seed: int = 0) -> None:
        if n_resamples < 2:
            raise ConfigError("n_resamples", [f"must be at least 2, got {n_resamples}"])
        self.owner, self.users = number_groups(user, "user", len(np.asarray(user)))
        if self.users < 2:
            expected, do = "two users or more to draw from", "measure more rows"
            raise DataError("column 'user'", f"{self.users} user", expected, do)
        self.n_resamples, self.seed = n_resamples, seed

    def __iter__(self) -> Iterator[Floats]:
        """Yield the number of times that each user is drawn, float64 ``[U]``."""
        random = np.random.default_rng(self.seed)
        for _ in range(self.n_resamples):
            drawn = random.integers(0, self.users, self.users)
            yield np.bincount(drawn, minlength=self.users).astype(np.float64)

    def draw_means(self, values: Mapping[str, Floats]) -> MetricDraws:
        """Return the means over lists. A list whose value is NaN is left out.

        Args:
            values: metric -> float64 ``[L]``.

        Raises:
            DataError: if a metric has another number of lists.
        """
        lists = len(self.owner)
        if not values:
            return MetricDraws({}, {})
        for name, value in values.items():
            if value.shape != (lists,):
                raise DataError(f"metric {name}", f"values of shape {value.shape}", f"{lists:,}, one per list")
        values_LM = np.stack(list(values.values()), 1)
        absent_LM = np.isnan(values_LM)
        filled_LM = np.where(absent_LM, 0.0, values_LM)
        counts_M = (lists - absent_LM.sum(0)).astype(np.float64)
        sums_UM, counts_UM = (self._sum(columns) for columns in (filled_LM, (~absent_LM).astype(np.float64)))
        draws = np.empty((self.n_resamples, len(values)))
        with np.errstate(invalid="ignore"):  # a metric without a list is undefined
            mean_M = filled_LM.sum(0) / counts_M
            for r, drawn_U in enumerate(self):
                draws[r] = drawn_U @ sums_UM / (drawn_U @ counts_UM)
        return MetricDraws(
            {name: float(mean_M[m]) for m, name in enumerate(values)},
            {name: draws[:, m] for m, name in enumerate(values)},
        )

    def _sum(self, columns: Floats) -> Floats:
        """Return the sums ``[U, M]`` of columns ``[L, M]`` over the lists of each user."""
        return np.stack([np.bincount(self.owner, column, self.users) for column in columns.T], 1)


@dataclass(frozen=True)
class MetricDraws:
    """Values of metrics on all lists and on every resample.

    Attributes:
        values: metric -> value, NaN where undefined.
        draws: metric -> ``[R]``.
        better: metric -> the better direction. Default: higher.
    """

    values: Mapping[str, float]
    draws: Mapping[str, Floats]
    better: Mapping[str, Better] = field(default_factory=dict)

    def join(self, other: MetricDraws) -> MetricDraws:
        """Return the metrics of both. They are of the same resamples."""
        return MetricDraws(
            {**self.values, **other.values}, {**self.draws, **other.draws}, {**self.better, **other.better}
        )

    def rename(self, pattern: str) -> MetricDraws:
        """Return the metrics under other names, such as ``"{}@10"``."""
        return MetricDraws(*({pattern.format(n): one for n, one in own.items()} for own in vars(self).values()))

    def summarize(self) -> dict[str, Interval]:
        """Return each metric with its 95 % interval."""
        return {name: _interval(value, self.draws[name]) for name, value in self.values.items()}

    def subtract(self, baseline: MetricDraws) -> dict[str, Difference]:
        """Return the difference of each metric to a baseline on the same resamples, with its paired interval."""
        result = {}
        for name, value in self.values.items():
            gain = _interval(value - baseline.values[name], self.draws[name] - baseline.draws[name])
            verdict: Verdict = "unclear"
            if gain.excludes_zero:
                better = self.better.get(name, "higher")
                verdict = (
                    "differs"
                    if better == "neither"
                    else "worse"
                    if (gain.low > 0) != (better == "higher")
                    else "better"
                )
            result[name] = Difference(gain, gain.excludes_zero, verdict)
        return result


def _interval(value: float, draws: Floats) -> Interval:
    """Return the interval. Resamples without a list that defines the metric are left out."""
    defined = draws[np.isfinite(draws)]
    return Interval.of(value, defined) if len(defined) else Interval.undefined()


def summarize_lists(
    values: Mapping[str, Floats], user: ArrayLike, *, n_resamples: int = 300, seed: int = 0
) -> dict[str, Interval]:
    """Return the mean of each metric over lists, with a 95 % bootstrap interval over users.

    Args:
        values: metric -> ``[L]`` values per list, such as those of ``rate_lists``. NaN leaves out a list.
        user: ``[L]`` user of each list.

    Raises:
        DataError: if a metric has another number of lists, or there are fewer than two users.

    >>> import numpy as np
    >>> print(summarize_lists({"hr@1": np.array([1.0, 0.0, np.nan])}, [7, 8, 9], n_resamples=20)["hr@1"])
    0.5000 [0.0000, 1.0000]
    """
    return UserResamples(user, n_resamples, seed).draw_means(values).summarize()


def compare_lists(
    runs: Mapping[str, Mapping[str, Floats]],
    user: ArrayLike,
    *,
    baseline: str | None = None,
    n_resamples: int = 300,
    seed: int = 0,
    split: str = "",
) -> Comparison:
    """Compare metrics of runs on the same requests, with paired intervals over users.

    Args:
        runs: run -> metric -> ``[L]`` values per list. List l of all runs answers the same request.
        user: ``[L]`` user of each list.
        baseline: run to compare the others with. Default: the first.

    Raises:
        ConfigError: if there are fewer than two runs, or no run of the name of the baseline.
        DataError: if a metric has another number of lists, or there are fewer than two users.

    >>> import numpy as np
    >>> hits = {"a": {"hr@1": np.array([1.0, 0.0, 1.0])}, "b": {"hr@1": np.array([0.0, 0.0, 0.0])}}
    >>> print(compare_lists(hits, [7, 8, 9], n_resamples=20).differences["b"]["hr@1"].interval)
    -0.6667 [-1.0000, -0.3333]
    """
    resamples = UserResamples(user, n_resamples, seed)
    drawn = {run: resamples.draw_means(values) for run, values in runs.items()}
    return compare_draws(drawn, resamples, baseline=baseline, split=split)


def compare_draws(
    drawn: Mapping[str, MetricDraws], resamples: UserResamples, *, baseline: str | None = None, split: str = ""
) -> Comparison:
    """Compare runs by the values of their metrics on the same resamples.

    Raises:
        ConfigError: if there are fewer than two runs, or no run of the name of the baseline.

    >>> import numpy as np
    >>> resamples = UserResamples([7, 8], n_resamples=10)
    >>> drawn = {run: resamples.draw_means({"hr@1": np.array([1.0, 0.0])}) for run in "ab"}
    >>> compare_draws(drawn, resamples).differences["b"]["hr@1"].verdict
    'unclear'
    """
    baseline = next(iter(drawn), "") if baseline is None else baseline
    if len(drawn) < 2 or baseline not in drawn:
        raise ConfigError("compare", [f"needs two runs or more and one named {baseline!r}, got {', '.join(drawn)}"])
    lists = len(resamples.owner)
    return Comparison(
        baseline,
        {run: own.summarize() for run, own in drawn.items()},
        {run: own.subtract(drawn[baseline]) for run, own in drawn.items() if run != baseline},
        lists,
        resamples.users,
        lists,
        0,
        0,
        "user",
        resamples.n_resamples,
        split,
        objective="next_item",
    )
