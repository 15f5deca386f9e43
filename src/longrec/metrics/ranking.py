"""Metrics of ranked lists of rows: NDCG, hit rate, recall, precision, reciprocal rank and average precision.

Every function takes one row per (list, item) pair in any order, and averages over lists. Formulas and values per list
are in :mod:`longrec.metrics.accuracy`. Items of equal score are ranked with the least relevant first, so that a
constant score gains nothing from the row order. A list without a relevant item is left out (``empty="skip"``, as
:func:`lists_skipped` counts), or has the value 0 (``empty="zero"``).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError, UnknownName
from longrec.metrics.accuracy import (
    Divisor,
    Gain,
    list_average_precision,
    list_hit_rate,
    list_mrr,
    list_ndcg,
    list_precision,
    list_recall,
)
from longrec.metrics.columns import Floats, Ints, as_numbers, number_groups
from longrec.metrics.relevant import RelevantRanks, rank_rows

Empty = Literal["skip", "zero"]
"""What a list without a relevant item does: it is left out, or counts as 0."""


def ndcg_at_k(
    relevance: ArrayLike,
    score: ArrayLike,
    group: ArrayLike,
    k: int,
    *,
    gain: Gain = "exponential",
    empty: Empty = "skip",
) -> float:
    r"""Return the normalized discounted cumulative gain of the first ``k``.

        DCG = sum_{r=1..k} (2^rel_r - 1) / log2(r + 1)        NDCG = DCG / DCG of the ideal order

    Järvelin and Kekäläinen, TOIS 2002; exponential gain as in Burges et al., ICML 2005.

    Args:
        relevance: ``[N]`` grades, not negative: 0 and 1 for clicks. An item with a grade above 0 is relevant.
        score: ``[N]`` finite numbers.
        group: ``[N]`` the list (or user) of each row.
        k: cut, at least 1. All rows of a list shorter than ``k`` count.
        gain: ``exponential`` is ``2^rel - 1``, ``linear`` is ``rel``. Both are the same for 0 and 1.
        empty: ``skip`` leaves out lists without a relevant item, ``zero`` counts them as 0.

    Raises:
        ConfigError: if ``k`` is below 1, or a choice is unknown.
        DataError: if a grade is negative, nothing is relevant in any list, or a column cannot be used.

    >>> round(ndcg_at_k([1, 0, 0], [0.1, 0.9, 0.5], [7, 7, 7], k=3), 4)  # found at rank 3: 1 / log2(4)
    0.5
    """
    return mean_of_lists(list_ndcg(_rank(relevance, score, group, empty), k, gain), empty)


def hit_rate_at_k(relevance: ArrayLike, score: ArrayLike, group: ArrayLike, k: int, *, empty: Empty = "skip") -> float:
    """Return the share of lists with a relevant item among the first ``k``.

    Args and errors: as :func:`ndcg_at_k`.

    >>> hit_rate_at_k([1, 0, 0, 1], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2], k=1)
    0.5
    """
    return mean_of_lists(list_hit_rate(_rank(relevance, score, group, empty), k), empty)


def recall_at_k(relevance: ArrayLike, score: ArrayLike, group: ArrayLike, k: int, *, empty: Empty = "skip") -> float:
    """Return the mean share of a list's relevant items among its first ``k``.

    Relevant items that are not in the list do not count. Args and errors: as :func:`ndcg_at_k`.

    >>> recall_at_k([1, 1, 0], [0.9, 0.1, 0.5], [7, 7, 7], k=2)
    0.5
    """
    return mean_of_lists(list_recall(_rank(relevance, score, group, empty), k), empty)


def precision_at_k(relevance: ArrayLike, score: ArrayLike, group: ArrayLike, k: int, *, empty: Empty = "skip") -> float:
    """Return the mean share of relevant items among the first ``k``. Shorter lists are divided by ``k`` too.

    Args and errors: as :func:`ndcg_at_k`.

    >>> precision_at_k([1, 1, 0], [0.9, 0.1, 0.5], [7, 7, 7], k=2)
    0.5
    """
    return mean_of_lists(list_precision(_rank(relevance, score, group, empty), k), empty)


def map_at_k(
    relevance: ArrayLike,
    score: ArrayLike,
    group: ArrayLike,
    k: int,
    *,
    divide_by: Divisor = "reachable",
    empty: Empty = "skip",
) -> float:
    """Return the mean over lists of the average precision at the relevant items among the first ``k``.

    Manning, Raghavan and Schütze 2008, section 8.4. Args and errors: as :func:`ndcg_at_k`.

    Args:
        divide_by: ``reachable`` divides by ``min(k, relevant items)``, ``relevant`` by the relevant items.

    >>> map_at_k([1, 0, 1], [0.9, 0.5, 0.1], [7, 7, 7], k=3)  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    return mean_of_lists(list_average_precision(_rank(relevance, score, group, empty), k, divide_by), empty)


def mrr(
    relevance: ArrayLike, score: ArrayLike, group: ArrayLike, k: int | None = None, *, empty: Empty = "skip"
) -> float:
    """Return the mean reciprocal rank: 1 / rank of the first relevant item, averaged over lists.

    Voorhees, TREC-8 1999. Args and errors: as :func:`ndcg_at_k`.

    Args:
        k: cut. A list whose first relevant item is below it has 0. None: no cut.

    >>> mrr([1, 0, 0, 1], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2])  # ranks 1 and 2
    0.75
    """
    return mean_of_lists(list_mrr(_rank(relevance, score, group, empty), k), empty)


def lists_skipped(relevance: ArrayLike, group: ArrayLike) -> int:
    """Return the number of lists without a relevant item, which ``empty="skip"`` leaves out.

    >>> lists_skipped([1, 0, 0, 0], [1, 1, 2, 2])
    1
    """
    rel = as_numbers(relevance, "relevance")
    lists, count = number_groups(group, "group", len(rel))
    return int((np.bincount(lists, weights=rel > 0, minlength=count) == 0).sum())


def compute_ranks(score: ArrayLike, worth: ArrayLike, group: ArrayLike) -> Ints:
    """Return the rank of each row in its list ``[N]``, from 1. Among equal scores the least ``worth`` comes first.

    >>> compute_ranks([0.2, 0.9, 0.9], [0, 1, 0], [7, 7, 7]).tolist()
    [3, 2, 1]
    """
    s = as_numbers(score, "score")
    w = as_numbers(worth, "worth", len(s))
    return rank_rows(s, w, number_groups(group, "group", len(s))[0]) + 1


def mean_of_lists(values: Floats, empty: Empty = "skip") -> float:
    """Return the mean of the values per list, where NaN is a list without a relevant item.

    Raises:
        UnknownName: an unknown choice of ``empty``.

    >>> import numpy as np
    >>> mean_of_lists(np.array([1.0, np.nan])), mean_of_lists(np.array([1.0, np.nan]), "zero")
    (1.0, 0.5)
    """
    _check_empty(empty)
    return float(np.where(np.isnan(values), 0.0, values).mean()) if empty == "zero" else float(np.nanmean(values))


def _rank(relevance: ArrayLike, score: ArrayLike, group: ArrayLike, empty: Empty) -> RelevantRanks:
    _check_empty(empty)
    ranks = RelevantRanks.of_scores(relevance, score, group)
    if empty == "skip" and not len(ranks.owner):
        rows = len(np.asarray(relevance))
        raise DataError(
            "column 'relevance'",
            f"nothing relevant in {rows:,} rows",
            "a list with a relevant item",
            "measure other rows, or count such lists as 0 with empty='zero'",
        )
    return ranks


def _check_empty(empty: str) -> None:
    if empty not in get_args(Empty):
        raise UnknownName("empty", empty, get_args(Empty))
