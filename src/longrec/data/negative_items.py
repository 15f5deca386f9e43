"""Draws of negative items for the loss of a retriever."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.data.availability import expand_ranges
from longrec.data.catalog import count_items
from longrec.data.log import Log
from longrec.data.splits import TRAIN
from longrec.errors import DataError
from longrec.features.sampling import Sampling

_TRIES = 20
"""Number of draws after which an item of the user's own history stays a negative."""


@dataclass(frozen=True)
class SharedNegatives:
    """Negatives that all targets of a batch share.

    Attributes:
        drawn: int64, rows of the item table that are candidates beside the distinct targets.
        log_q: float32 ``[n]``, logarithm of the expected number of draws of each negative. The negatives are the last n
            of the targets and the drawn items.
        draws: float32 ``[n]``, how often each negative was drawn. None: once.
    """

    drawn: NDArray[np.int64]
    log_q: NDArray[np.float32]
    draws: NDArray[np.float32] | None = None


class ItemSampler:
    """Sampler of the negatives of training targets.

    Args:
        targets: training rows, whose items' counts are their popularity.
        catalog: rows of the item table to draw from (``list_negatives``), int64, ascending.
        sampling: number and distribution of the negatives.
        rates: probability of each target to be in an epoch. None: 1.

    Raises:
        DataError: no item, or one only.
    """

    def __init__(
        self,
        log: Log,
        targets: NDArray[np.int64],
        catalog: NDArray[np.int64],
        sampling: Sampling,
        rates: NDArray[np.float64] | None = None,
    ) -> None:
        if len(catalog) < 3:
            raise DataError(str(log.folder), f"{len(catalog) - 1} item in the training split", "two items or more")
        self.catalog, self.sampling = catalog, sampling
        self._shares: NDArray[np.float64] | None = None
        if sampling.draw == "popularity":
            # Half a count more, so that an item that is in histories only is drawn too.
            counts = count_items(log, targets)[catalog] + 0.5
            self._shares = counts / counts.sum()
            self._ends = np.cumsum(self._shares)
        if sampling.in_batch:
            expected = count_items(log, targets, rates)
            self._of_targets = expected / max(expected.sum(), 1e-9)
        self._own: NDArray[np.int64] | None = None
        if sampling.unseen:
            self._height = len(log.items)
            rows = np.flatnonzero(np.asarray(log.splits) == TRAIN)
            self._own = np.unique(log.user(rows) * self._height + log.events.columns["item"].take(rows))

    def draw_shared(
        self, distinct: NDArray[np.int64], times: NDArray[np.int64], random: np.random.Generator
    ) -> SharedNegatives:
        """Return the negatives of a batch.

        Args:
            distinct: the distinct items of its targets.
            times: number of targets that each of them is.
        """
        count, draw = self.sampling.negatives, self.sampling.draw
        if draw == "in_batch":
            # No target is the one that stands for items that training does not have. It is there once, with certainty.
            drawn, q = self.catalog[:1], np.append(self._expect(distinct, times), 1)
        else:
            index = self._draw(count, random)
            drawn, share = self.catalog[index], np.full(count, 1 / len(self.catalog))
            q = count * (share if self._shares is None else self._shares[index])
        if draw == "mixed":
            q = self._expect(np.concatenate([distinct, drawn]), times) + count / len(self.catalog)
        draws = np.append(times, np.ones(len(drawn))).astype(np.float32) if self.sampling.in_batch else None
        return SharedNegatives(drawn, np.log(q).astype(np.float32), draws)

    def _expect(self, items: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the expected number of targets that each item is, in a batch with as many targets."""
        return times.sum() * self._of_targets[items]

    def draw_own(self, users: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Return ``count`` items per user, int64 ``[T, count]``."""
        users = np.repeat(users, count)
        items = self.catalog[self._draw(len(users), random)]
        pending = np.arange(len(users) if self._own is not None else 0)
        for _ in range(_TRIES):
            if not len(pending):
                break
            pending = pending[self._is_own(users[pending], items[pending])]
            items[pending] = self.catalog[self._draw(len(pending), random)]
        return items.reshape(-1, count)

    def _is_own(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
        assert self._own is not None
        keys = users * self._height + items
        at = np.minimum(np.searchsorted(self._own, keys), len(self._own) - 1)
        return np.asarray(self._own[at] == keys)

    def _draw(self, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        if self._shares is None:
            return random.integers(0, len(self.catalog), count)
        return np.minimum(np.searchsorted(self._ends, random.random(count)), len(self.catalog) - 1)


def pair_own_targets(users: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each target of a batch with each target of the same user, int64 ``[2, P]``: targets, candidates.

    Args:
        users: user of each target, int64 ``[T]``.
        index: the candidate that each target is, int64 ``[T]``.
    """
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.diff(users[order], prepend=-1))
    counts = np.diff(np.append(starts, len(users)))
    first, repeats = np.repeat(starts, counts), np.repeat(counts, counts)
    at, _ = expand_ranges(first, repeats)
    return np.stack([np.repeat(order, repeats), index[order[at]]])


def number_distinct(items: NDArray[np.int64], height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct items, ascending, and the index of each item in them, without a sort.

    Args:
        items: rows of the item table, of any shape.
        height: number of rows of the table.
    """
    present = np.zeros(height, np.bool_)
    present[items] = True
    distinct = np.flatnonzero(present)
    index = np.zeros(height, np.int64)
    index[distinct] = np.arange(len(distinct))
    return distinct, index[items]
