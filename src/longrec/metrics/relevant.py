r"""Metrics of single lists, from the ranks of their relevant items.

A list has one relevant item or several, each with a grade above 0. What is known of a list is where these items are,
whatever ranked them: a full ranking of a catalog, the first items of a pipeline, or scores of shown items.

    HR@k          1 if a relevant item is among the first k, else 0
    recall@k      relevant items among the first k / relevant items
    precision@k   relevant items among the first k / k, also of a list that is shorter
    MRR@k         1 / (rank of the first relevant item + 1), 0 if it is not among the first k
    NDCG@k        DCG / DCG of the ideal order, both of the first k; DCG = sum of gain / log2(rank + 2)
    MAP@k         sum over relevant items among the first k of (relevant items up to it) / (rank + 1), divided by
                  min(k, relevant items) or by the relevant items

A rank is 0 for the best item. An item whose score equals that of others may have the mean of their ranks: with a rank
of 9.5 it is among the first 10. Each function returns one value per list, NaN for a list without a relevant item.

Shapes: L lists, T relevant items of all lists, N rows of lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import ConfigError, DataError, UnknownName
from longrec.metrics.columns import Floats, Ints, as_numbers, number_groups

Gain = Literal["exponential", "linear"]
"""Gain of a grade: ``2^grade - 1``, or the grade."""
Divisor = Literal["reachable", "relevant"]
"""Divisor of average precision: ``min(k, relevant items)``, with which the best list has 1, or the relevant items."""
NAMES = ("hr", "recall", "precision", "ndcg", "mrr", "map")


@dataclass(frozen=True)
class RelevantRanks:
    """Ranks of the relevant items of L lists.

    Attributes:
        owner: int64 ``[T]``, list of each relevant item.
        rank: float64 ``[T]``, 0 for the best item of a list, infinite for an item that is not in it.
        grade: float64 ``[T]``, above 0.
        lists: number of lists, with those that have no relevant item.
    """

    owner: Ints
    rank: Floats
    grade: Floats
    lists: int

    @classmethod
    def of_targets(cls, rank: ArrayLike) -> RelevantRanks:
        """Return lists of one relevant item each.

        Args:
            rank: ``[L]`` rank of the item of each list.

        Raises:
            DataError: if there are no ranks, or one is negative or not a number.
        """
        rank_L = np.asarray(rank, np.float64)
        if rank_L.ndim != 1 or not len(rank_L):
            raise DataError("ranks", f"an array of shape {rank_L.shape}", "one rank per target, and at least one")
        if not (rank_L >= 0).all():
            raise DataError("ranks", "a rank that is negative or not a number", "ranks from 0, the best")
        return cls(np.arange(len(rank_L)), rank_L, np.ones(len(rank_L)), len(rank_L))

    @classmethod
    def of_scores(cls, relevance: ArrayLike, score: ArrayLike, group: ArrayLike) -> RelevantRanks:
        """Return the ranks by a score. Items of equal score are ranked with the least relevant first.

        Args:
            relevance: ``[N]`` grades, not negative.
            score: ``[N]`` finite numbers.
            group: ``[N]`` the list of each row. Lists are numbered in ascending order of it.

        Raises:
            DataError: if a grade is negative, or a column cannot be used.
        """
        grade = as_numbers(relevance, "relevance")
        if (grade < 0).any():
            raise DataError("column 'relevance'", f"the value {grade.min():g}", "grades of 0 or more")
        lists, count = number_groups(group, "group", len(grade))
        rank = rank_rows(as_numbers(score, "score", len(grade)), grade, lists)
        kept = grade > 0
        return cls(lists[kept], rank[kept].astype(np.float64), grade[kept], count)

    @classmethod
    def of_items(
        cls,
        item: ArrayLike,
        group: ArrayLike,
        relevant: ArrayLike,
        relevant_group: ArrayLike,
        lists: int,
        grade: ArrayLike | None = None,
    ) -> RelevantRanks:
        """Return the ranks of relevant items in lists of items. An item that its list does not have has no rank.

        Args:
            item: ``[N]`` items of all lists, those of a list in the order of their ranks.
            group: ``[N]`` number of the list of each item, from 0.
            relevant: ``[T]`` relevant items.
            relevant_group: ``[T]`` number of the list of each relevant item.
            lists: number of lists.
            grade: ``[T]`` above 0. None: ones.

        Raises:
            DataError: if columns do not fit, or a list has an item twice.

        >>> RelevantRanks.of_items(["a", "b", "c"], [0, 0, 1], ["b", "a"], [0, 1], lists=2).rank.tolist()
        [1.0, inf]
        """
        item_N, group_N = np.asarray(item), _check_numbers(group, "group", len(np.asarray(item)), lists)
        relevant_T = np.asarray(relevant)
        owner_T = _check_numbers(relevant_group, "relevant_group", len(relevant_T), lists)
        grade_T = np.ones(len(relevant_T)) if grade is None else as_numbers(grade, "grade", len(relevant_T))
        if (grade_T <= 0).any():
            raise DataError("column 'grade'", f"the value {grade_T.min():g}", "grades above 0")
        order = np.argsort(group_N, kind="stable")
        starts = np.searchsorted(group_N[order], np.arange(lists))
        rank_N = np.empty(len(order), np.int64)
        rank_N[order] = np.arange(len(order)) - starts[group_N[order]]
        both = np.concatenate([item_N, relevant_T]) if len(item_N) and len(relevant_T) else item_N
        _, number = np.unique(both, return_inverse=True)
        items = int(number.max(initial=0)) + 1
        pair_N = group_N * items + number[: len(item_N)]
        by_pair = np.argsort(pair_N, kind="stable")
        if (np.diff(pair_N[by_pair]) == 0).any():
            twice = by_pair[1:][np.diff(pair_N[by_pair]) == 0][0]
            named = f"item {item_N.tolist()[twice]!r} twice in list {group_N[twice]}"
            raise DataError("column 'item'", named, "it once", "merge the sources of a list without duplicates")
        rank_T = np.full(len(relevant_T), np.inf)
        if len(item_N) and len(relevant_T):
            pair_T = owner_T * items + number[len(item_N) :]
            at = np.minimum(np.searchsorted(pair_N[by_pair], pair_T), len(pair_N) - 1)
            listed = pair_N[by_pair][at] == pair_T
            rank_T[listed] = rank_N[by_pair[at[listed]]]
        return cls(owner_T, rank_T, grade_T, lists)

    @property
    def total(self) -> Floats:
        """Number of relevant items of each list, float64 ``[L]``."""
        return self.count(np.ones(len(self.owner)))

    def count(self, values: ArrayLike) -> Floats:
        """Return the sum of the values of the relevant items of each list, float64 ``[L]``."""
        return np.bincount(self.owner, np.asarray(values, np.float64), self.lists).astype(np.float64)

    def mask_empty(self, values: Floats) -> Floats:
        """Return values per list with NaN for lists without a relevant item."""
        return np.where(self.total > 0, values, np.nan)


def rank_rows(score: Floats, worth: Floats, lists: Ints) -> Ints:
    """Return the rank of each row in its list ``[N]``, from 0. Among equal scores the least ``worth`` comes first."""
    order = np.lexsort((worth, -score, lists))
    starts = np.flatnonzero(np.diff(lists[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(order)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return rank


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


def _check_numbers(values: ArrayLike, name: str, rows: int, lists: int) -> Ints:
    column = np.asarray(values)
    if column.shape != (rows,):
        raise DataError(f"column '{name}'", f"an array of shape {column.shape}", f"{rows:,} numbers of lists")
    if rows and (column.dtype.kind not in "iu" or column.min() < 0 or column.max() >= lists):
        wrong = f"values of type {column.dtype}" if column.dtype.kind not in "iu" else f"{column.min()}..{column.max()}"
        raise DataError(f"column '{name}'", wrong, f"numbers of lists, 0 to {lists - 1}")
    return column.astype(np.int64)
