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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import DataError
from longrec.metrics.accuracy import list_mrr, rate_lists
from longrec.metrics.columns import as_labels, number_groups
from longrec.metrics.compare import Comparison
from longrec.metrics.interval import Interval
from longrec.metrics.relevant import RelevantRanks
from longrec.metrics.resamples import MetricDraws, UserResamples, compare_draws

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

    def draw(self, n_resamples: int, seed: int) -> tuple[UserResamples, dict[str, MetricDraws]]:
        """Return resamples of the users, and the metrics of each order on them.

        Raises:
            DataError: if there are fewer than two users.
        """
        resamples = UserResamples(self.users, n_resamples, seed)
        columns = {order: dict(zip(self.names, values_LM.T)) for order, values_LM in self.values.items()}
        return resamples, {order: resamples.draw_means(values) for order, values in columns.items()}


def rate_orders(
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
    owner_L = np.zeros(count, np.int64)
    owner_L[list_N] = user_N
    kept = np.bincount(list_N, weights=label_N, minlength=count) > 0
    if not kept.any():
        raise DataError("column 'label'", f"no click in {count:,} lists", "a list with a click")
    names: tuple[str, ...] = ()
    values = {}
    for order, score in scores.items():
        ranks = RelevantRanks.of_scores(label_N, score, list_N)
        rated = {**rate_lists(ranks, k, ("ndcg", "hr")), "mrr": list_mrr(ranks)}
        names, values[order] = tuple(rated), np.stack(list(rated.values()), 1)[kept]
    return RatedLists(names, values, owner_L[kept])


def summarize_orders(rated: RatedLists, *, n_resamples: int = 300, seed: int = 0) -> dict[str, Interval]:
    """Return the metrics of the two orders ``""`` and ``base`` and their gains, each with a 95 % interval over users.

    Raises:
        DataError: if there are fewer than two users.
    """
    _, drawn = rated.draw(n_resamples, seed)
    gains = {name: one.interval for name, one in drawn[""].subtract(drawn[BASE]).items()}
    by_order = {"": drawn[""].summarize(), BASE: drawn[BASE].summarize(), GAIN: gains}
    return {f"{name}.{order}" if order else name: one for order, own in by_order.items() for name, one in own.items()}


def compare_orders(
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
    resamples, drawn = rated.draw(n_resamples, seed)
    comparison = compare_draws(drawn, resamples, baseline=baseline, split=split)
    rows, users, positives = (counts[name] for name in ("rows", "users", "positives"))
    return replace(comparison, rows=rows, users=users, positives=positives, objective="lists")
