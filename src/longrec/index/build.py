"""Choice of an index for the vectors of a catalog: exact, or inverted lists that reach a recall."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError, ConfigError
from longrec.index.inverted_lists import InvertedLists
from longrec.index.item_index import ItemIndex

EXACT, IVF, AUTO = "exact", "ivf", "auto"
EXACT_UP_TO = 200_000
"""Number of items up to which ``auto`` searches exactly, which takes about 3 ms."""
_SEED = 1
LEAST_QUERIES = 20
"""Smallest number of requests that measure the recall of inverted lists."""
_WORTH = 1 / 3
"""Share of the lists above which reading them takes as long as exact search, so that ``auto`` keeps that."""

Queries = Callable[[], NDArray[np.float32]]
"""Function that returns the vectors of requests, float32 ``[R, K, D]``."""


@dataclass(frozen=True)
class IndexSettings:
    """Settings of an index.

    Attributes:
        kind: exact, ivf (inverted lists), or auto: exact up to ``EXACT_UP_TO`` items.
        recall_target: share of the best items by exact search that inverted lists must return.
        recall_at: number of best items.

    Raises:
        ConfigError: if a setting is out of range. All are listed.
    """

    kind: str = AUTO
    recall_target: float = 0.98
    recall_at: int = 100

    def __post_init__(self) -> None:
        faults = []
        if self.kind not in (EXACT, IVF, AUTO):
            faults.append(f"index: must be exact, ivf or auto, got {self.kind!r}")
        if not 0 < self.recall_target <= 1:
            faults.append(f"recall_target: must be above 0 and at most 1, got {self.recall_target:g}")
        if self.recall_at < 1:
            faults.append(f"recall_at: must be at least 1, got {self.recall_at}")
        if faults:
            raise ConfigError("export", faults)


@dataclass(frozen=True)
class IndexFacts:
    """Description of an index in a bundle.

    Attributes:
        kind: exact also where ``auto`` has measured that inverted lists would not be faster.
        lists: number of inverted lists.
        nprobe: number of lists that a search reads: the smallest that reaches the target on half of the queries.
        nprobe_half: the same if half of the items may be returned.
        recall: share of the best ``recall_at`` items that it returns, on the other half.
        queries: number of requests that were measured, of users of the log.
        seconds: duration of building and measuring.
    """

    kind: Literal["exact", "ivf"]
    items: int
    width: int
    lists: int = 0
    nprobe: int = 0
    nprobe_half: int = 0
    recall_target: float = 1.0
    recall_at: int = 0
    recall: float = 1.0
    queries: int = 0
    seconds: float = 0.0


def build_index(
    vectors: NDArray[np.float32], settings: IndexSettings, queries: Queries | None = None
) -> tuple[InvertedLists | None, IndexFacts]:
    """Build the inverted lists of vectors, or none for exact search, and describe the index.

    Args:
        vectors: float32 ``[I, D]``.
        queries: vectors of requests of users, which are read for inverted lists alone. Vectors of items are no
            substitute, since they lie elsewhere.

    Raises:
        BundleError: if inverted lists are wanted, and there are too few requests to measure their recall.
    """
    items, width = vectors.shape
    if settings.kind == EXACT or (settings.kind == AUTO and items <= EXACT_UP_TO):
        return None, IndexFacts("exact", items, width)
    began = time.perf_counter()
    requests = np.zeros((0, 1, width), np.float32) if queries is None else queries()
    if len(requests) < LEAST_QUERIES:
        raise BundleError(
            "index",
            f"{len(requests)} requests to measure the recall of inverted lists",
            f"at least {LEAST_QUERIES}, of rows of the log",
            "export with an exact index, or a run whose log has more rows",
        )
    k = min(settings.recall_at, items)
    lists = InvertedLists.train(vectors, count_lists(items))
    exact = ItemIndex(vectors)
    best = [np.sort(exact.search(request, k)[0]) for request in requests]
    lists.nprobe = tune_nprobe(lists, vectors, requests[::2], best[::2], settings.recall_target)
    if settings.kind == AUTO and lists.nprobe > _WORTH * lists.count:
        seconds = round(time.perf_counter() - began, 3)
        return None, IndexFacts("exact", items, width, queries=len(requests), seconds=seconds)
    half = _draw_half(items)
    best_half = [np.sort(exact.search(request, k, half)[0]) for request in requests[::2]]
    lists.nprobe_half = tune_nprobe(lists, vectors, requests[::2], best_half, settings.recall_target, half)
    return lists, IndexFacts(
        "ivf",
        items,
        width,
        lists.count,
        lists.nprobe,
        lists.nprobe_half,
        settings.recall_target,
        k,
        round(measure_recall(lists, vectors, requests[1::2], best[1::2], lists.nprobe), 4),
        len(requests),
        round(time.perf_counter() - began, 3),
    )


def tune_again(index: ItemIndex, requests: NDArray[np.float32], facts: IndexFacts) -> IndexFacts:
    """Return the description of inverted lists whose rows have changed, with as many lists to read as the target needs.

    The numbers of lists do not fall. Those of the index itself remain as they are.

    Args:
        index: index without a side segment outside of its lists.
        requests: float32 ``[R, K, D]``, of which one half tunes and the other half measures.
        facts: description of the index as exported.
    """
    began, lists, items = time.perf_counter(), index.lists, len(index)
    assert lists is not None
    k, tuned, half = min(facts.recall_at, items), list[int](), _draw_half(items)
    for before, allowed in ((facts.nprobe, None), (facts.nprobe_half, half)):
        best = [np.sort(index.search(request, k, allowed, exact=True)[0]) for request in requests[::2]]
        arguments = lists, index.base, requests[::2], best
        reached = measure_recall(*arguments, before, allowed) >= facts.recall_target
        tuned.append(before if reached else max(before, tune_nprobe(*arguments, facts.recall_target, allowed)))
    best = [np.sort(index.search(request, k, exact=True)[0]) for request in requests[1::2]]
    recall = round(measure_recall(lists, index.base, requests[1::2], best, tuned[0]), 4)
    seconds = round(time.perf_counter() - began, 3)
    return replace(facts, items=items, nprobe=tuned[0], nprobe_half=tuned[1], recall=recall, seconds=seconds)


def _draw_half(items: int) -> NDArray[np.bool_]:
    """Return the mask of a random half of the items, always the same, bool ``[I]``."""
    return np.asarray(np.random.default_rng(_SEED).random(items) < 0.5, np.bool_)


def count_lists(items: int) -> int:
    """Return the number of inverted lists for a number of items: a power of two near twice its square root.

    >>> [count_lists(items) for items in (2, 1_000, 200_000, 1_000_000)]
    [1, 64, 1024, 2048]
    """
    return min(2 ** round(math.log2(2 * math.sqrt(items))), max(items // 2, 1))


def tune_nprobe(
    lists: InvertedLists,
    vectors: NDArray[np.float32],
    requests: NDArray[np.float32],
    best: list[NDArray[np.int64]],
    target: float,
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    """Return the smallest number of lists whose recall reaches a target, by bisection: more lists lose no item.

    Args:
        requests: float32 ``[R, K, D]``.
        best: the best rows of each request by exact search, ascending.
        allowed: mask ``[I]`` of the rows that may be returned. None: all.
    """
    low, high = 1, 1
    while high < lists.count and measure_recall(lists, vectors, requests, best, high, allowed) < target:
        low, high = high + 1, min(2 * high, lists.count)
    while low < high:
        middle = (low + high) // 2
        if measure_recall(lists, vectors, requests, best, middle, allowed) < target:
            low = middle + 1
        else:
            high = middle
    return high


def measure_recall(
    lists: InvertedLists,
    vectors: NDArray[np.float32],
    requests: NDArray[np.float32],
    best: list[NDArray[np.int64]],
    nprobe: int,
    allowed: NDArray[np.bool_] | None = None,
) -> float:
    """Return the mean share of the best rows that a search of some lists returns."""
    index = ItemIndex(vectors, lists.with_nprobe(nprobe))
    shares = [
        np.isin(rows, index.search_lists(request, len(rows), allowed)[0]).mean() if len(rows) else 1.0
        for request, rows in zip(requests, best)
    ]
    return float(np.mean(shares))
