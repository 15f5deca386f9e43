"""Metrics of lists that are ordered again, beside those of their initial order, with intervals over users.

    NDCG@k    DCG of the first k by the score, over that of the best order
    HR@k      share of lists with a click among the first k
    MRR       1 / rank of the first click

Lists without a click have no such values and are skipped. Items of equal score are ranked with the clicked ones last,
so that a constant score gains nothing (``ranking.py``). The initial order is measured on the same lists:
``ndcg@10.base`` is its NDCG, and ``ndcg@10.gain`` the difference of both, list by list.

Shapes: N rows, L lists with a click, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import as_labels, number_groups
from longrec.metrics.compare import Comparison, Difference
from longrec.metrics.interval import Interval
from longrec.metrics.ranking import compute_ranks

BASE, GAIN = "base", "gain"
"""Suffixes of the metrics of the initial order, and of the differences to it."""


@dataclass(frozen=True)
class RatedLists:
    """Metrics of every list with a click.

    Attributes:
        names: names of the metrics.
        values: float64 ``[L, M]`` by order.
        users: ``[L]`` the user of each list.
    """

    names: tuple[str, ...]
    values: Mapping[str, NDArray[np.float64]]
    users: NDArray[np.int64]


def rate_lists(
    label: ArrayLike, scores: Mapping[str, ArrayLike], lists: ArrayLike, user: ArrayLike, k: Sequence[int]
) -> RatedLists:
    """Return the metrics of every list with a click, for several orders of its items.

    Args:
        label: ``[N]`` 1 for a click, else 0.
        scores: order -> ``[N]`` finite numbers, highest first.
        lists: ``[N]`` the list of each row.
        user: ``[N]`` the user of each row, one for all rows of a list.
        k: cuts.

    Raises:
        DataError: if a column cannot be used, or no list has a click.
    """
    label_N = as_labels(label)
    list_N, count = number_groups(lists, "list", len(label_N))
    user_N, _ = number_groups(user, "user", len(label_N))
    clicks_L = np.bincount(list_N, weights=label_N, minlength=count)
    kept = clicks_L > 0
    if not kept.any():
        raise DataError("column 'label'", f"no click in {count:,} lists", "a list with a click")
    owner_L = np.zeros(count, np.int64)
    owner_L[list_N] = user_N
    best_N = compute_ranks(label_N, -label_N, list_N)
    names = [f"{metric}@{cut}" for cut in k for metric in ("ndcg", "hr")]
    values = {}
    for order, score in scores.items():
        rank_N = compute_ranks(score, label_N, list_N)
        columns = []
        for cut in k:
            columns.append(_discount(label_N, rank_N, list_N, count, cut)[kept])
            columns[-1] /= _discount(label_N, best_N, list_N, count, cut)[kept]
            hits_L = np.bincount(list_N, label_N * (rank_N <= cut), count)[kept] > 0
            columns.append(hits_L.astype(np.float64))
        first_L = np.full(count, np.inf)
        np.minimum.at(first_L, list_N[label_N > 0], rank_N[label_N > 0])
        values[order] = np.stack([*columns, 1 / first_L[kept]], 1).astype(np.float64)
    return RatedLists((*names, "mrr"), values, owner_L[kept])


def summarize_lists(rated: RatedLists, *, n_resamples: int = 300, seed: int = 0) -> dict[str, Interval]:
    """Return the metrics of the two orders ``""`` and ``base`` and their gains, each with a 95 % interval over users.

    Raises:
        DataError: if there are fewer than two users.
    """
    draws = _resample(rated, n_resamples, seed)
    values = {order: values_LM.mean(0) for order, values_LM in rated.values.items()}
    values[GAIN], draws[GAIN] = values[""] - values[BASE], draws[""] - draws[BASE]
    return {
        f"{name}.{order}" if order else name: Interval.of(float(values[order][m]), draws[order][:, m])
        for order in ("", BASE, GAIN)
        for m, name in enumerate(rated.names)
    }


def compare_lists(
    rated: RatedLists, counts: Mapping[str, int], *, baseline: str, n_resamples: int, seed: int, split: str
) -> Comparison:
    """Compare runs on the same lists. Differences are paired: every resample has the same users for all runs.

    Args:
        rated: metrics with one order per run.
        counts: ``rows``, ``users`` and ``positives`` of the measured rows.

    Raises:
        ConfigError: if there are fewer than two runs, or no run of the name of the baseline.
        DataError: if there are fewer than two users.
    """
    if len(rated.values) < 2 or baseline not in rated.values:
        runs = ", ".join(rated.values)
        raise ConfigError("compare", [f"needs two runs or more and one named {baseline!r}, got {runs}"])
    draws = _resample(rated, n_resamples, seed)
    means = {run: values_LM.mean(0) for run, values_LM in rated.values.items()}

    def describe(mean_M: NDArray[np.float64], drawn: NDArray[np.float64]) -> dict[str, Interval]:
        return {name: Interval.of(float(mean_M[m]), drawn[:, m]) for m, name in enumerate(rated.names)}

    gains = {
        run: describe(mean_M - means[baseline], draws[run] - draws[baseline])
        for run, mean_M in means.items()
        if run != baseline
    }
    return Comparison(
        baseline,
        {run: describe(mean_M, draws[run]) for run, mean_M in means.items()},
        {run: {name: _judge(gain) for name, gain in own.items()} for run, own in gains.items()},
        counts["rows"],
        counts["users"],
        counts["positives"],
        0,
        0,
        "user",
        n_resamples,
        split,
        objective="lists",
    )


def _judge(gain: Interval) -> Difference:
    if not gain.excludes_zero:
        return Difference(gain, False, "unclear")
    return Difference(gain, True, "better" if gain.low > 0 else "worse")


def _discount(
    label_N: NDArray[np.float64], rank_N: NDArray[np.int64], list_N: NDArray[np.int64], count: int, cut: int
) -> NDArray[np.float64]:
    """Return the DCG of every list."""
    gain_N = np.where(rank_N <= cut, label_N / np.log2(rank_N + 1), 0.0)
    return np.bincount(list_N, weights=gain_N, minlength=count).astype(np.float64)


def _resample(rated: RatedLists, n_resamples: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of every resample of users ``[n_resamples, M]`` by order."""
    distinct, owner_L = np.unique(rated.users, return_inverse=True)
    users = len(distinct)
    if users < 2:
        raise DataError("column 'user'", f"lists with a click of {users} user", "two users or more to draw from")
    count_U = np.bincount(owner_L, minlength=users).astype(np.float64)
    random = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(random.integers(0, users, users), minlength=users) for _ in range(n_resamples)])
    total = drawn @ count_U
    sums = {
        order: np.stack([np.bincount(owner_L, values_LM[:, m], users) for m in range(len(rated.names))], 1)
        for order, values_LM in rated.values.items()
    }
    return {order: drawn @ sum_UM / total[:, None] for order, sum_UM in sums.items()}
