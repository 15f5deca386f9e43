r"""Metrics of lists that compare items with their popularity: novelty, popularity bias, serendipity.

Popularity is counted before the lists: on the training rows, or on the events before a request.

    novelty            mean of -log2 p_i over the items of a list, p_i = share of users who had item i
    popularity bias    mean popularity percentile of a list minus that of the user's history
    serendipity        of relevant items that popularity would not have listed, see ``list_serendipity``

Shapes: I items of the catalog, L lists, N listed items.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError, UnknownName
from longrec.metrics.accuracy import check_k
from longrec.metrics.columns import Floats, as_numbers

Serendipity = Literal["rank_gap", "unexpected"]
"""Definition of serendipity."""


def item_shares(count: ArrayLike, users: int, floor: float = 1.0) -> Floats:
    """Return the share of users who had each item, float64 ``[I]``. Items of no user get that of ``floor`` users.

    The floor is a choice: without one the novelty of an unseen item is infinite. 1 is that of RecTools.

    Args:
        count: ``[I]`` number of users who had the item.
        users: number of users.
        floor: number of users that an item has at least, above 0 and at most ``users``.

    Raises:
        DataError: if a count is negative or above ``users``, or the floor is outside of its range.

    >>> item_shares([2, 0, 4], users=4).tolist()
    [0.5, 0.25, 1.0]
    """
    count_I = as_numbers(count, "count")
    if count_I.min() < 0 or count_I.max() > users:
        raise DataError("column 'count'", f"counts {count_I.min():g} to {count_I.max():g}", f"0 to {users:,} users")
    if not 0 < floor <= users:
        raise DataError("floor", f"{floor:g}", f"above 0 and at most {users:,} users", "leave it at 1")
    return np.maximum(count_I, floor) / users


def popularity_percentiles(count: ArrayLike) -> Floats:
    """Return the share of items that are less popular than each item, float64 ``[I]``. Half of its equals count too.

    Args:
        count: ``[I]`` number of events of each item, also of those without any.

    Raises:
        DataError: if the column cannot be used.

    >>> popularity_percentiles([0, 5, 5, 9]).tolist()
    [0.125, 0.5, 0.5, 0.875]
    """
    count_I = as_numbers(count, "count")
    ordered = np.sort(count_I)
    below, upto = np.searchsorted(ordered, count_I, "left"), np.searchsorted(ordered, count_I, "right")
    return (below + upto) / (2 * len(count_I))


def mean_by_list(values: ArrayLike, group: ArrayLike, lists: int) -> Floats:
    """Return the mean of the values of each list, float64 ``[L]``. NaN for a list without values.

    Args:
        values: ``[N]`` value of each listed item.
        group: ``[N]`` number of its list, from 0.

    >>> mean_by_list([1.0, 2.0, 5.0], [0, 0, 2], lists=3).tolist()
    [1.5, nan, 5.0]
    """
    owner_N = np.asarray(group, np.int64)
    counts_L = np.bincount(owner_N, minlength=lists)
    sums_L = np.bincount(owner_N, np.asarray(values, np.float64), lists)
    return np.where(counts_L > 0, sums_L / np.maximum(counts_L, 1), np.nan)


def list_novelty(share: ArrayLike, group: ArrayLike, lists: int) -> Floats:
    """Return the mean self-information of each list in bits, float64 ``[L]``. NaN for an empty list.

    Zhou et al., PNAS 2010; Vargas and Castells, RecSys 2011.

    Args:
        share: ``[N]`` share of users who had each listed item, above 0, as of ``item_shares``.
        group: ``[N]`` number of its list, from 0.

    Raises:
        DataError: if a share is outside (0, 1].

    >>> list_novelty([0.5, 0.125, 1.0], [0, 0, 1], lists=2).tolist()
    [2.0, 0.0]
    """
    p_N = np.asarray(share, np.float64)
    if not ((p_N > 0) & (p_N <= 1)).all():
        do = "use item_shares, whose floor is for items that nobody had"
        raise DataError("column 'share'", f"shares from {p_N.min():g} to {p_N.max():g}", "above 0 and at most 1", do)
    return mean_by_list(np.abs(np.log2(p_N)), group, lists)


def list_popularity_bias(
    percentile: ArrayLike, group: ArrayLike, history_percentile: ArrayLike, history_group: ArrayLike, lists: int
) -> Floats:
    """Return the mean percentile of each list minus that of its user's history, float64 ``[L]``, from -1 to 1.

    Above 0, a list is more popular than what the user took. After Abdollahpouri et al., RMSE workshop at RecSys 2019,
    with percentiles in place of counts, which single very popular items would decide. NaN for an empty list or history.

    Args:
        percentile: ``[N]`` popularity percentile of each listed item.
        group: ``[N]`` number of its list, from 0.
        history_percentile: ``[H]`` popularity percentile of each item of the histories.
        history_group: ``[H]`` number of the list whose user has it.

    >>> list_popularity_bias([0.75, 0.25], [0, 0], [0.25], [0], lists=2).tolist()
    [0.25, nan]
    """
    return mean_by_list(percentile, group, lists) - mean_by_list(history_percentile, history_group, lists)


def list_serendipity(
    relevant: ArrayLike,
    rank: ArrayLike,
    popularity_rank: ArrayLike,
    group: ArrayLike,
    lists: int,
    k: int,
    *,
    catalog: int,
    definition: Serendipity = "rank_gap",
) -> Floats:
    r"""Return the serendipity of the first ``k`` items of each list, float64 ``[L]``. NaN for an empty list.

    Two definitions are in use, and their values do not compare:

        rank_gap      sum of rel_i max(q_i - s_i, 0) / items      q_i = (I - rank_i) / I, s_i the same by popularity
        unexpected    items that are relevant and not among the k most popular / items

    The first is that of RecTools. The second is after Ge, Delgado-Battenfeld and Jannach, RecSys 2010, with the most
    popular items as the list that everybody expects.

    Args:
        relevant: ``[N]`` 1 for a relevant listed item, else 0.
        rank: ``[N]`` rank of each item in its list, 0 for the first.
        popularity_rank: ``[N]`` rank of each item by popularity, 0 for the most popular. Infinite for an item without
            an event.
        group: ``[N]`` number of its list, from 0.
        catalog: number I of items that can be listed.

    Raises:
        UnknownName: an unknown definition.
        ConfigError: ``k`` below 1.

    >>> list_serendipity([1, 0, 1], [0, 1, 0], [5, 0, 0], [0, 0, 1], 2, k=2, catalog=10).tolist()  # 0.5 of two items
    [0.25, 0.0]
    >>> list_serendipity([1, 0, 1], [0, 1, 0], [5, 0, 0], [0, 0, 1], 2, 2, catalog=10, definition="unexpected").tolist()
    [0.5, 0.0]
    """
    if definition not in get_args(Serendipity):
        raise UnknownName("definition", str(definition), get_args(Serendipity))
    rank_N, popular_N = np.asarray(rank, np.float64), np.asarray(popularity_rank, np.float64)
    kept = rank_N < check_k(k)
    rank_N, popular_N = rank_N[kept], popular_N[kept]
    if definition == "rank_gap":
        expected_N = np.where(np.isfinite(popular_N), (catalog - popular_N) / catalog, 0.0)
        worth_N = np.maximum((catalog - rank_N) / catalog - expected_N, 0.0)
    else:
        worth_N = (popular_N >= k).astype(np.float64)
    return mean_by_list(worth_N * np.asarray(relevant, np.float64)[kept], np.asarray(group)[kept], lists)
