"""Metrics of ranked lists: NDCG, hit rate, recall and reciprocal rank.

Every function takes one row per (list, item) pair in any order, and averages over the lists with a relevant item.
:func:`lists_skipped` counts the others. Items of equal score are ranked with the least relevant first, so that a
constant score gains nothing from the row order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import Floats, Ints, as_numbers, number_groups


def ndcg_at_k(relevance: ArrayLike, score: ArrayLike, group: ArrayLike, k: int) -> float:
    r"""Return the normalized discounted cumulative gain of the first ``k``.

        DCG = sum_{r=1..k} (2^rel_r - 1) / log2(r + 1)        NDCG = DCG / DCG of the ideal order

    Järvelin and Kekäläinen, TOIS 2002; exponential gain as in Burges et al., ICML 2005.

    Args:
        relevance: ``[N]`` grades, not negative: 0 and 1 for clicks. An item with a grade above 0 is relevant.
        score: ``[N]`` finite numbers.
        group: ``[N]`` the list (or user) of each row.
        k: cut, at least 1. All rows of a list shorter than ``k`` count.

    Raises:
        ConfigError: if ``k`` is below 1.
        DataError: if a grade is negative, nothing is relevant in any list, or a column cannot be used.

    >>> round(ndcg_at_k([1, 0, 0], [0.1, 0.9, 0.5], [7, 7, 7], k=3), 4)  # found at rank 3: 1 / log2(4)
    0.5
    """
    rel, s, lists, count = _check_columns(relevance, score, group, k)
    gain = np.exp2(rel) - 1
    dcg = _discount(gain, _rank_rows(s, gain, lists), lists, count, k)
    ideal = _discount(gain, _rank_rows(gain, gain, lists), lists, count, k)
    kept = ideal > 0
    return float((dcg[kept] / ideal[kept]).mean())


def hit_rate_at_k(relevance: ArrayLike, score: ArrayLike, group: ArrayLike, k: int) -> float:
    """Return the share of lists with a relevant item among the first ``k``.

    Args:
        relevance: ``[N]`` grades, not negative. An item with a grade above 0 is relevant.
        score: ``[N]`` finite numbers.
        group: ``[N]`` the list (or user) of each row.
        k: cut, at least 1. All rows of a list shorter than ``k`` count.

    Raises:
        ConfigError: if ``k`` is below 1.
        DataError: if a grade is negative, nothing is relevant in any list, or a column cannot be used.

    >>> hit_rate_at_k([1, 0, 0, 1], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2], k=1)
    0.5
    """
    rel, s, lists, count = _check_columns(relevance, score, group, k)
    top = _rank_rows(s, rel, lists) <= k
    hits = np.bincount(lists, weights=(rel > 0) & top, minlength=count) > 0
    return float(hits[_has_relevant(rel, lists, count)].mean())


def recall_at_k(relevance: ArrayLike, score: ArrayLike, group: ArrayLike, k: int) -> float:
    """Return the mean share of a list's relevant items among its first ``k``.

    Relevant items that are not in the list do not count.

    Args:
        relevance: ``[N]`` grades, not negative. An item with a grade above 0 is relevant.
        score: ``[N]`` finite numbers.
        group: ``[N]`` the list (or user) of each row.
        k: cut, at least 1. All rows of a list shorter than ``k`` count.

    Raises:
        ConfigError: if ``k`` is below 1.
        DataError: if a grade is negative, nothing is relevant in any list, or a column cannot be used.

    >>> recall_at_k([1, 1, 0], [0.9, 0.1, 0.5], [7, 7, 7], k=2)
    0.5
    """
    rel, s, lists, count = _check_columns(relevance, score, group, k)
    top = _rank_rows(s, rel, lists) <= k
    hits = np.bincount(lists, weights=(rel > 0) & top, minlength=count)
    total = np.bincount(lists, weights=rel > 0, minlength=count)
    kept = total > 0
    return float((hits[kept] / total[kept]).mean())


def mrr(relevance: ArrayLike, score: ArrayLike, group: ArrayLike) -> float:
    """Return the mean reciprocal rank: 1 / rank of the first relevant item, averaged over lists.

    Voorhees, TREC-8 1999.

    Args:
        relevance: ``[N]`` grades, not negative. An item with a grade above 0 is relevant.
        score: ``[N]`` finite numbers.
        group: ``[N]`` the list (or user) of each row.

    Raises:
        DataError: if a grade is negative, nothing is relevant in any list, or a column cannot be used.

    >>> mrr([1, 0, 0, 1], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2])  # ranks 1 and 2
    0.75
    """
    rel, s, lists, count = _check_columns(relevance, score, group, 1)
    first = np.full(count, np.inf)
    relevant = rel > 0
    np.minimum.at(first, lists[relevant], _rank_rows(s, rel, lists)[relevant])
    return float((1 / first[np.isfinite(first)]).mean())


def lists_skipped(relevance: ArrayLike, group: ArrayLike) -> int:
    """Return the number of lists without a relevant item, which every mean in this file skips.

    >>> lists_skipped([1, 0, 0, 0], [1, 1, 2, 2])
    1
    """
    rel = as_numbers(relevance, "relevance")
    lists, count = number_groups(group, "group", len(rel))
    return int((~_has_relevant(rel, lists, count)).sum())


def compute_ranks(score: ArrayLike, worth: ArrayLike, group: ArrayLike) -> Ints:
    """Return the rank of each row in its list ``[N]``, from 1. Among equal scores the least ``worth`` comes first.

    >>> compute_ranks([0.2, 0.9, 0.9], [0, 1, 0], [7, 7, 7]).tolist()
    [3, 2, 1]
    """
    s = as_numbers(score, "score")
    w = as_numbers(worth, "worth", len(s))
    return _rank_rows(s, w, number_groups(group, "group", len(s))[0])


def _check_columns(
    relevance: ArrayLike, score: ArrayLike, group: ArrayLike, k: int
) -> tuple[Floats, Floats, Ints, int]:
    if k < 1:
        raise ConfigError("k", [f"must be at least 1, got {k}"])
    rel = as_numbers(relevance, "relevance")
    if (rel < 0).any():
        raise DataError("column 'relevance'", f"the value {rel.min():g}", "grades of 0 or more")
    if not rel.any():
        raise DataError("column 'relevance'", f"nothing relevant in {len(rel):,} rows", "a list with a relevant item")
    lists, count = number_groups(group, "group", len(rel))
    return rel, as_numbers(score, "score", len(rel)), lists, count


def _rank_rows(score: Floats, worth: Floats, lists: Ints) -> Ints:
    order = np.lexsort((worth, -score, lists))
    starts = np.flatnonzero(np.diff(lists[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(order)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, lengths) + 1
    return rank


def _discount(gain: Floats, rank: Ints, lists: Ints, count: int, k: int) -> Floats:
    gains = np.where(rank <= k, gain / np.log2(rank + 1), 0.0)
    return np.bincount(lists, weights=gains, minlength=count).astype(np.float64)


def _has_relevant(relevance: Floats, lists: Ints, count: int) -> NDArray[np.bool_]:
    held: NDArray[np.bool_] = np.bincount(lists, weights=relevance > 0, minlength=count) > 0
    return held
