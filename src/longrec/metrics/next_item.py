"""Metrics of next-item recommendation from the rank of each target in the whole catalog, with intervals over users.

A request has one target, so that HR@k and recall@k are the same. Formulas are in :mod:`longrec.metrics.accuracy`. A
rank is 0 for the best item. A target whose score equals that of others has the mean of their ranks, which may be a
half.

Shapes: N targets, U users, R resamples, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.accuracy import list_mrr, rate_lists
from longrec.metrics.columns import Floats
from longrec.metrics.compare import Comparison
from longrec.metrics.interval import Interval
from longrec.metrics.relevant import RelevantRanks
from longrec.metrics.resamples import compare_lists, summarize_lists


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
    values = rate_targets(rank, k, recall_k)
    values_NM = np.stack(list(values.values()), 1)
    w_N = np.ones(len(values_NM)) if weight is None else np.asarray(weight, np.float64)
    return dict(zip(values, (w_N @ values_NM / w_N.sum()).tolist()))


def rate_targets(rank: ArrayLike, k: Sequence[int] = (10,), recall_k: Sequence[int] = ()) -> dict[str, Floats]:
    """Return the metrics of every single target, float64 ``[N]`` by name.

    >>> rate_targets([0, 30], k=(10,))["hr@10"].tolist()
    [1.0, 0.0]
    """
    ranks = RelevantRanks.of_targets(rank)
    mrr = {"mrr": list_mrr(ranks)}
    return {**rate_lists(ranks, k, ("hr", "ndcg")), **mrr, **rate_lists(ranks, recall_k, ("recall",))}


def summarize_ranks(
    rank: ArrayLike,
    user: ArrayLike,
    k: Sequence[int] = (10,),
    recall_k: Sequence[int] = (),
    *,
    n_resamples: int = 300,
    seed: int = 0,
    further: Mapping[str, Floats] | None = None,
) -> dict[str, Interval]:
    """Return the metrics of ``next_item_metrics``, each with a 95 % bootstrap interval over users.

    Args:
        rank: ``[N]`` rank of each target.
        user: ``[N]`` the user of each target.
        further: values of further metrics of every target, float64 ``[N]`` by name.

    Raises:
        DataError: if a column cannot be used, or there are fewer than two users.
    """
    values = {**rate_targets(rank, k, recall_k), **(further or {})}
    return summarize_lists(values, user, n_resamples=n_resamples, seed=seed)


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
    further: Mapping[str, Mapping[str, Floats]] | None = None,
) -> Comparison:
    """Compare runs on the same targets. Differences are paired: every resample has the same users for all runs.

    Args:
        ranks: run -> ``[N]`` rank of each target.
        baseline: run to compare the others with. Default: the first.
        further: run -> values of further metrics of every target, float64 ``[N]`` by name. Those of all runs are
            compared.

    Raises:
        ConfigError: if there are fewer than two runs, or no run of the name of the baseline.
        DataError: if a column cannot be used, or there are fewer than two users.
    """
    targets = len(np.asarray(user))
    for run, rank in ranks.items():
        if len(np.asarray(rank)) != targets:
            raise DataError(f"ranks of {run}", f"{len(np.asarray(rank)):,} ranks", f"{targets:,}, one per target")
    own = further or {}
    common = [name for name in own.get(next(iter(ranks)), {}) if all(name in own.get(run, {}) for run in ranks)]
    rated = {
        run: {**rate_targets(rank, k, recall_k), **{name: own[run][name] for name in common}}
        for run, rank in ranks.items()
    }
    return compare_lists(rated, user, baseline=baseline, n_resamples=n_resamples, seed=seed, split=split)
