"""Metrics of lists of items beyond their accuracy, on the rows of a log: coverage, novelty, popularity bias, slices.

Popularity is counted on the positive rows of the training split. The history of a request has the positives of its user
strictly before its timestamp. The catalog has the items that could be listed for the latest request.

Shapes: I items of the table (row 0 is the unknown item), L lists, N listed items, T relevant items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from longrec.data.availability import expand_ranges
from longrec.data.catalog import compute_first_timestamps, count_items
from longrec.data.log import Log
from longrec.features.entity_versions import find_first_from
from longrec.metrics import (
    Interval,
    MetricDraws,
    RelevantRanks,
    UserResamples,
    draw_exposure,
    list_diversity,
    rate_lists,
)
from longrec.metrics.popularity import (
    item_shares,
    list_novelty,
    list_popularity_bias,
    list_serendipity,
    popularity_percentiles,
)
from longrec.metrics.resamples import Better
from longrec.metrics.slices import Slices, slice_by_quantile, slice_by_share
from longrec.training.settings import EvaluateConfig

Floats = NDArray[np.float64]
_NEITHER = ("candidates", "gini", "entropy", "novelty", "popularity_bias", "diversity")
"""Metrics that are not better in one direction."""
LEAST = 20
"""Number of users that a slice needs for its metrics."""


@dataclass(frozen=True)
class Lists:
    """Lists of items that answer L requests.

    Attributes:
        item: int64 ``[N]``, rows of the item table, those of a list in the order of their ranks.
        group: int64 ``[N]``, number of the list of each item.
        lists: number of lists.
    """

    item: NDArray[np.int64]
    group: NDArray[np.int64]
    lists: int

    @classmethod
    def of_table(cls, items: NDArray[np.int32]) -> Lists:
        """Return the lists of a table ``[L, count]``, where 0 stands for no item."""
        group, at = np.nonzero(items)
        return cls(items[group, at].astype(np.int64), group.astype(np.int64), len(items))

    @property
    def rank(self) -> NDArray[np.int64]:
        """Rank of each item in its list, from 0. Lists are in order."""
        counts = np.bincount(self.group, minlength=self.lists)
        return np.arange(len(self.item)) - np.repeat(np.cumsum(counts) - counts, counts)

    def cut(self, k: int) -> Lists:
        """Return the first k items of each list."""
        kept = self.rank < k
        return Lists(self.item[kept], self.group[kept], self.lists)

    @property
    def size(self) -> Floats:
        """Number of items of each list, float64 ``[L]``."""
        return np.bincount(self.group, minlength=self.lists).astype(np.float64)


class ListEvaluator:
    """Metrics of lists that answer requests at rows of a log, with what they read of the log.

    Args:
        rows: int64 ``[L]`` row of each request.
        relevant: int64 ``[T]``, relevant items, rows of the item table. None: the item of each row.
        owner: int64 ``[T]``, request of each relevant item.

    Attributes:
        percentile, share, popularity_rank: float64 ``[I]`` of each item, by training.
        resamples: resamples of the users of the requests.
        catalog: number of items that could be listed.
    """

    def __init__(
        self,
        log: Log,
        rows: NDArray[np.int64],
        config: EvaluateConfig,
        relevant: NDArray[np.int64] | None = None,
        owner: NDArray[np.int64] | None = None,
    ) -> None:
        self.log, self.rows, self.config = log, rows, config
        self.relevant = log.events.columns["item"].take(rows).astype(np.int64) if relevant is None else relevant
        self.owner = np.arange(len(rows)) if owner is None else owner
        self.resamples = UserResamples(log.user(rows), config.n_resamples, config.seed)
        train = log.rows_of("train")
        train = train[log.labels.take(train) > 0.5]
        count_I, users_I, users = _count_users(log, train)
        self.slices = slice_by_share(count_I[1:])
        # Index 0, the unknown item, is never listed.
        self.percentile = np.append(0.0, popularity_percentiles(count_I[1:]))
        self.share = np.append(1.0, item_shares(users_I[1:], users))
        rank_I = np.empty(len(count_I))
        rank_I[np.argsort(-count_I, kind="stable")] = np.arange(len(count_I))
        self.popularity_rank = np.where(count_I > 0, rank_I, np.inf)
        self.history, self.history_owner = list_earlier_positives(log, rows)
        existing = compute_first_timestamps(log)[1:] < int(log.timestamps.take(rows).max())
        # A relevant item can be listed whenever it is one.
        self.catalog_items = (
            np.union1d(np.flatnonzero(existing) + 1, self.relevant[self.relevant > 0])
            if config.catalog == "existing"
            else np.arange(1, len(log.items))
        )
        self.catalog = len(self.catalog_items)

    def rank(self, lists: Lists) -> RelevantRanks:
        """Return the ranks of the relevant items in lists."""
        return RelevantRanks.of_items(lists.item, lists.group, self.relevant, self.owner, lists.lists)

    def measure(self, lists: Lists, k: int, vectors: NDArray[np.float32] | None = None) -> MetricDraws:
        """Return the metrics beyond accuracy of the first k items of each list, on all resamples.

        Args:
            vectors: float32 ``[I, D]`` vectors of items, for diversity. None leaves it out.
        """
        return self.draw(self.rate_beyond(lists, k, vectors), lists.cut(k), k)

    def draw(self, values: Mapping[str, Floats], listed: Lists, k: int) -> MetricDraws:
        """Return the means of values per list, and coverage, Gini and entropy of listed items, on all resamples."""
        drawn = replace(self.resamples.draw_means(values), better={name: find_better(name) for name in values})
        if not len(listed.item):
            return drawn
        position = np.searchsorted(self.catalog_items, listed.item)
        return drawn.join(draw_exposure(position, listed.group, self.catalog, self.resamples).rename(f"{{}}@{k}"))

    def rate_beyond(self, lists: Lists, k: int, vectors: NDArray[np.float32] | None = None) -> dict[str, Floats]:
        """Return novelty, popularity bias, serendipity and diversity of the first k items of each list ``[L]``."""
        first = lists.cut(k)
        wanted = self.owner * len(self.percentile) + self.relevant
        hit = np.isin(first.group * len(self.percentile) + first.item, wanted)
        values = {
            f"novelty@{k}": list_novelty(self.share[first.item], first.group, lists.lists),
            f"popularity_bias@{k}": list_popularity_bias(
                self.percentile[first.item],
                first.group,
                self.percentile[self.history],
                self.history_owner,
                lists.lists,
            ),
            f"serendipity@{k}": list_serendipity(
                hit,
                first.rank,
                self.popularity_rank[first.item],
                first.group,
                lists.lists,
                k,
                catalog=self.catalog,
            ),
        }
        if vectors is not None:
            values[f"diversity@{k}"] = list_diversity(vectors[first.item], first.group, lists.lists)
        return values

    def slice(
        self, ranks: RelevantRanks, k: int, names: Sequence[str] = ("hr", "ndcg")
    ) -> dict[str, dict[str, dict[str, Interval]]]:
        """Return metrics of accuracy by the activity of users, and by the popularity of relevant items.

        A slice with fewer than 20 users has none.
        """
        active = slice_by_quantile(np.bincount(self.history_owner, minlength=len(self.rows)), unit="earlier positives")
        of_item = Slices(self.slices.names, np.append(len(self.slices.names), self.slices.number)[self.relevant])
        divisions = {
            "user activity": (active.names, active.number[ranks.owner]),
            "item popularity": (of_item.names, of_item.number),
        }
        result: dict[str, dict[str, dict[str, Interval]]] = {}
        for title, (labels, number) in divisions.items():
            result[title] = {}
            for code, label in enumerate(labels):
                own = number == code
                some = RelevantRanks(ranks.owner[own], ranks.rank[own], ranks.grade[own], ranks.lists)
                if len(np.unique(self.resamples.owner[some.owner])) < LEAST:
                    continue
                result[title][label] = self.resamples.draw_means(rate_lists(some, [k], names)).summarize()
        return result


def find_better(name: str) -> Better:
    """Return the better direction of a metric, from its name before the cut.

    >>> find_better("ndcg@10"), find_better("cpu_ms"), find_better("novelty@10")
    ('higher', 'lower', 'neither')
    """
    base = name.partition("@")[0]
    return "lower" if base == "cpu_ms" else "neither" if base in _NEITHER else "higher"


def list_earlier_positives(log: Log, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the items of the positives of each row's user strictly before its timestamp, with the index of the row."""
    first, timestamps = log.events.offsets[log.user(rows)], log.timestamps.take(rows)
    at, offsets = expand_ranges(first, find_first_from(log.events.times, first, rows, timestamps) - first)
    owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
    kept = log.labels.take(at) > 0.5
    if log.available is not None:
        kept &= log.available.take(at) < timestamps[owner]
    return log.events.columns["item"].take(at[kept]).astype(np.int64), owner[kept]


def _count_users(log: Log, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the rows and the distinct users of each item ``[I]`` in these rows, and the number of users."""
    items, users = log.events.columns["item"].take(rows).astype(np.int64), log.user(rows)
    pairs = np.unique(users * len(log.items) + items)
    return count_items(log, rows), np.bincount(pairs % len(log.items), minlength=len(log.items)), len(np.unique(users))
