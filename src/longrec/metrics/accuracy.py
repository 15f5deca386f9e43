r"""Metrics of single lists, from the ranks of their relevant items.

    HR@k          1 if a relevant item is among the first k, else 0
    recall@k      relevant items among the first k / relevant items
    precision@k   relevant items among the first k / k, also of a list that is shorter
    MRR@k         1 / (rank of the first relevant item + 1), 0 if it is not among the first k
    NDCG@k        DCG / DCG of the ideal order, both of the first k; DCG = sum of gain / log2(rank + 2)
    MAP@k         sum over relevant items among the first k of (relevant items up to it) / (rank + 1), divided by
                  min(k, relevant items) or by the relevant items

A rank is 0 for the best item. An item whose score equals that of others may have the mean of their ranks: with a rank
of 9.5 it is among the first 10. Each function returns one value per list, NaN for a list without a relevant item.

Shapes: L lists, T relevant items of all lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from longrec.errors import ConfigError, UnknownName
from longrec.metrics.columns import Floats
from longrec.metrics.relevant import RelevantRanks, rank_rows

Gain = Literal["exponential", "linear"]
"""Gain of a grade: ``2^grade - 1``, or the grade."""
Divisor = Literal["reachable", "relevant"]
"""Divisor of average precision: ``min(k, relevant items)``, with which the best list has 1, or the relevant items."""
NAMES = ("hr", "recall", "precision", "ndcg", "mrr", "map")


def list_hit_rate(ranks: RelevantRanks, k: int) -> Floats:
    """Return HR of each list ``[L]``.

    >>> list_hit_rate(RelevantRanks.of_targets([0, 9.5, 10]), k=10).tolist()
    [1.0, 1.0, 0.0]
    """
    return ranks.mask_empty((ranks.count(ranks.rank < check_k(k)) > 0).astype(np.float64))


def list_recall(ranks: RelevantRanks, k: int) -> Floats:
    """Return recall of each list ``[L]``.

    >>> list_recall(RelevantRanks.of_scores([1, 1, 0], [0.9, 0.1, 0.5], [7, 7, 7]), k=2).tolist()
    [0.5]
    """
    return ranks.mask_empty(ranks.count(ranks.rank < check_k(k)) / np.maximum(ranks.total, 1))


def list_precision(ranks: RelevantRanks, k: int) -> Floats:
    """Return precision of each list ``[L]``. A list that is shorter than ``k`` is divided by ``k`` too.

    >>> list_precision(RelevantRanks.of_scores([1, 1, 0], [0.9, 0.1, 0.5], [7, 7, 7]), k=4).tolist()
    [0.5]
    """
    return ranks.mask_empty(ranks.count(ranks.rank < check_k(k)) / k)


def list_mrr(ranks: RelevantRanks, k: int | None = None) -> Floats:
    """Return the reciprocal rank of each list ``[L]``: of its first relevant item, 0 if that is not among the first k.

    Voorhees, TREC-8 1999.

    >>> list_mrr(RelevantRanks.of_targets([0, 3, 10]), k=10).tolist()
    [1.0, 0.25, 0.0]
    """
    first = np.full(ranks.lists, np.inf)
    np.minimum.at(first, ranks.owner, ranks.rank)
    return ranks.mask_empty(np.where(first < (np.inf if k is None else check_k(k)), 1 / (first + 1), 0.0))


def list_ndcg(ranks: RelevantRanks, k: int, gain: Gain = "exponential") -> Floats:
    """Return NDCG of each list ``[L]``. The ideal order has ``min(k, relevant items)`` items.

    Järvelin and Kekäläinen, TOIS 2002; exponential gain as in Burges et al., ICML 2005.

    >>> list_ndcg(RelevantRanks.of_targets([0, 2, 10]), k=10).tolist()
    [1.0, 0.5, 0.0]
    """
    check_k(k)
    if gain not in get_args(Gain):
        raise UnknownName("gain", str(gain), get_args(Gain))
    gain_T = np.exp2(ranks.grade) - 1 if gain == "exponential" else ranks.grade
    dcg = ranks.count(_discount(gain_T, ranks.rank, k))
    best_T = rank_rows(ranks.grade, ranks.grade, ranks.owner).astype(np.float64)
    ideal = ranks.count(_discount(gain_T, best_T, k))
    return ranks.mask_empty(dcg / np.where(ideal > 0, ideal, 1.0))


def list_average_precision(ranks: RelevantRanks, k: int, divide_by: Divisor = "reachable") -> Floats:
    """Return the average precision of each list ``[L]``, whose mean is MAP.

    Manning, Raghavan and Schütze 2008, section 8.4.

    Args:
        divide_by: ``reachable`` is ``min(k, relevant items)``; ``relevant`` is the number of relevant items, also of
            those that no list of ``k`` items can hold.

    >>> ranks = RelevantRanks.of_scores([1, 0, 1, 1], [4, 3, 2, 1], [7, 7, 7, 7])  # ranks 0, 2 and 3
    >>> list_average_precision(ranks, k=1).tolist(), list_average_precision(ranks, k=1, divide_by="relevant").round(4)
    ([1.0], array([0.3333]))
    """
    check_k(k)
    if divide_by not in get_args(Divisor):
        raise UnknownName("divide_by", str(divide_by), get_args(Divisor))
    before_T = rank_rows(-ranks.rank, ranks.grade, ranks.owner) + 1
    hit_T = ranks.rank < k
    precision_T = np.where(hit_T, before_T / (np.where(hit_T, ranks.rank, 0.0) + 1), 0.0)
    divisor = np.minimum(ranks.total, k) if divide_by == "reachable" else ranks.total
    return ranks.mask_empty(ranks.count(precision_T) / np.maximum(divisor, 1))


def rate_lists(
    ranks: RelevantRanks,
    k: Sequence[int],
    names: Sequence[str] = NAMES,
    *,
    gain: Gain = "exponential",
    divide_by: Divisor = "reachable",
) -> dict[str, Floats]:
    """Return metrics of each list by name and cut, such as ``ndcg@10``: float64 ``[L]``, NaN without a relevant item.

    Raises:
        UnknownName: an unknown metric, gain or divisor.
        ConfigError: a cut below 1.

    >>> {name: values.tolist() for name, values in rate_lists(RelevantRanks.of_targets([1]), [1, 2], ["hr"]).items()}
    {'hr@1': [0.0], 'hr@2': [1.0]}
    """
    result = {}
    for cut in k:
        for name in names:
            match name:
                case "hr":
                    values = list_hit_rate(ranks, cut)
                case "recall":
                    values = list_recall(ranks, cut)
                case "precision":
                    values = list_precision(ranks, cut)
                case "ndcg":
                    values = list_ndcg(ranks, cut, gain)
                case "mrr":
                    values = list_mrr(ranks, cut)
                case "map":
                    values = list_average_precision(ranks, cut, divide_by)
                case _:
                    raise UnknownName("metric", name, NAMES)
            result[f"{name}@{cut}"] = values
    return result


def check_k(k: int) -> int:
    """Return a cut of lists.

    Raises:
        ConfigError: if it is below 1.
    """
    if k < 1:
        raise ConfigError("k", [f"must be at least 1, got {k}"])
    return k


def _discount(gain: Floats, rank: Floats, k: int) -> Floats:
    return np.where(rank < k, gain / np.log2(rank + 2), 0.0)
