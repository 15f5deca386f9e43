"""Ranks of the relevant items of lists, from which the metrics of single lists follow (``accuracy.py``).

A list has one relevant item or several, each with a grade above 0. What is known of a list is where these items are,
whatever ranked them: a full ranking of a catalog, the first items of a pipeline, or scores of shown items. A rank is 0
for the best item. An item whose score equals that of others may have the mean of their ranks, which may be a half.

Shapes: L lists, T relevant items of all lists, N rows of lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.columns import Floats, Ints, as_numbers, number_groups


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


def _check_numbers(values: ArrayLike, name: str, rows: int, lists: int) -> Ints:
    column = np.asarray(values)
    if column.shape != (rows,):
        raise DataError(f"column '{name}'", f"an array of shape {column.shape}", f"{rows:,} numbers of lists")
    if rows and (column.dtype.kind not in "iu" or column.min() < 0 or column.max() >= lists):
        wrong = f"values of type {column.dtype}" if column.dtype.kind not in "iu" else f"{column.min()}..{column.max()}"
        raise DataError(f"column '{name}'", wrong, f"numbers of lists, 0 to {lists - 1}")
    return column.astype(np.int64)
