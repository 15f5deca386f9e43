"""Metrics of next-item recommendation from the rank of each target in the whole catalog, with intervals over users.

    HR@k      share of targets among the first k
    NDCG@k    mean of 1 / log2(rank + 2) for targets among the first k, 0 for others
    MRR       mean of 1 / (rank + 1)
    recall@k  the same as HR@k, because a request has one target

A rank is 0 for the best item. A target whose score equals that of others has the mean of their ranks, which may be a
half: with a rank of 9.5 it is among the first 10.

Shapes: N targets, U users, R resamples, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import ConfigError, DataError
from longrec.metrics.compare import Comparison, Difference
from longrec.metrics.interval import Interval


def next_item_metrics(
    rank: ArrayLike, k: Sequence[int] = (10,), recall_k: Sequence[int] = (), weight: ArrayLike | None = None
) -> dict[str, float]:
    """Return HR and NDCG at each of ``k``, MRR, and recall at each of ``recall_k``.

    Args:
        rank: ``[N]`` rank of each target, 0 is the best.
        weight: ``[N]`` not negative. None: ones.

    Raises:
        DataError: if there are no ranks, or one is negative or not a number.

    >>> next_item_metrics([0, 1, 30], k=(10,))["hr@10"]
    0.6666666666666666
    """
    values_NM, names = _rate_rows(rank, k, recall_k)
    w_N = np.ones(len(values_NM)) if weight is None else np.asarray(weight, np.float64)
    return dict(zip(names, (w_N @ values_NM / w_N.sum()).tolist()))


def summarize_ranks(
    rank: ArrayLike,
    user: ArrayLike,
    k: Sequence[int] = (10,),
    recall_k: Sequence[int] = (),
    *,
    n_resamples: int = 300,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the metrics of ``next_item_metrics``, each with a 95 % bootstrap interval over users.

    Args:
        rank: ``[N]`` rank of each target.
        user: ``[N]`` the user of each target.

    Raises:
        DataError: if a column cannot be used, or there are fewer than two users.
    """
    values, draws, names = _resample({"": rank}, user, k, recall_k, n_resamples, seed)
    return {name: Interval.of(float(values[""][m]), draws[""][:, m]) for m, name in enumerate(names)}


def compare_ranks(
    ranks: Mapping[str, ArrayLike],
    user: ArrayLike,
    k: Sequence[int] = (10,),
    recall_k: Sequence[int] = (),
    *,
    baseline: str | None = None,
    n_resamples: int = 300,
    seed: int = 0,
    split: str = "",
) -> Comparison:
    """Compare runs on the same targets. Differences are paired: every resample has the same users for all runs.

    Args:
        ranks: run -> ``[N]`` rank of each target.
        baseline: run to compare the others with. Default: the first.

    Raises:
        ConfigError: if there are fewer than two runs, or no run of the name of the baseline.
        DataError: if a column cannot be used, or there are fewer than two users.
    """
    baseline = next(iter(ranks), "") if baseline is None else baseline
    if len(ranks) < 2 or baseline not in ranks:
        raise ConfigError("compare", [f"needs two runs or more and one named {baseline!r}, got {', '.join(ranks)}"])
    values, draws, names = _resample(ranks, user, k, recall_k, n_resamples, seed)
    runs = {
        run: {name: Interval.of(float(values[run][m]), draws[run][:, m]) for m, name in enumerate(names)}
        for run in ranks
    }
    differences: dict[str, dict[str, Difference]] = {}
    for run in ranks:
        if run == baseline:
            continue
        gains = values[run] - values[baseline]
        drawn = draws[run] - draws[baseline]
        intervals = [Interval.of(float(gains[m]), drawn[:, m]) for m in range(len(names))]
        differences[run] = {name: _judge(interval) for name, interval in zip(names, intervals)}
    count = len(np.unique(np.asarray(user)))
    rows = len(np.asarray(user))
    return Comparison(
        baseline, runs, differences, rows, count, rows, 0, 0, "user", n_resamples, split, objective="next_item"
    )


def _judge(gain: Interval) -> Difference:
    if not gain.excludes_zero:
        return Difference(gain, False, "unclear")
    return Difference(gain, True, "better" if gain.low > 0 else "worse")


def _rate_rows(
    rank: ArrayLike, k: Sequence[int], recall_k: Sequence[int]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the metrics of every single target ``[N, M]``, and their names."""
    rank_N = np.asarray(rank, np.float64)
    if rank_N.ndim != 1 or not len(rank_N):
        raise DataError("ranks", f"an array of shape {rank_N.shape}", "one rank per target, and at least one")
    if not (rank_N >= 0).all():
        raise DataError("ranks", "a rank that is negative or not a number", "ranks from 0, the best")
    gain_N = 1 / np.log2(rank_N + 2)
    columns: dict[str, NDArray[np.float64]] = {}
    for cut in k:
        columns[f"hr@{cut}"] = (rank_N < cut).astype(np.float64)
        columns[f"ndcg@{cut}"] = np.where(rank_N < cut, gain_N, 0.0)
    columns["mrr"] = 1 / (rank_N + 1)
    for cut in recall_k:
        columns[f"recall@{cut}"] = (rank_N < cut).astype(np.float64)
    return np.stack(list(columns.values()), 1), tuple(columns)


def _resample(
    ranks: Mapping[str, ArrayLike],
    user: ArrayLike,
    k: Sequence[int],
    recall_k: Sequence[int],
    n_resamples: int,
    seed: int,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]], tuple[str, ...]]:
    """Return the metrics of each run ``[M]``, those of every resample ``[R, M]``, and their names."""
    _, owner_N = np.unique(np.asarray(user), return_inverse=True)
    users = int(owner_N.max(initial=-1)) + 1
    if users < 2:
        raise DataError("column 'user'", f"{users} user", "two users or more to draw from")
    count_U = np.bincount(owner_N, minlength=users).astype(np.float64)
    names: tuple[str, ...] = ()
    values, sums = {}, {}
    for run, rank in ranks.items():
        rated_NM, names = _rate_rows(rank, k, recall_k)
        if len(rated_NM) != len(owner_N):
            raise DataError(f"ranks of {run}", f"{len(rated_NM):,} ranks", f"{len(owner_N):,}, one per target")
        values[run] = rated_NM.mean(0)
        sums[run] = np.stack([np.bincount(owner_N, rated_NM[:, m], users) for m in range(len(names))], 1)
    random = np.random.default_rng(seed)
    draws: dict[str, list[NDArray[np.float64]]] = {run: [] for run in ranks}
    for _ in range(n_resamples):
        drawn_U = np.bincount(random.integers(0, users, users), minlength=users).astype(np.float64)
        total = drawn_U @ count_U
        for run in ranks:
            draws[run].append(drawn_U @ sums[run] / total)
    return values, {run: np.stack(drawn) for run, drawn in draws.items()}, names
