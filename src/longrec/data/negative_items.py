"""Draws of negative items for the loss of a retriever."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.data.catalog import count_items
from longrec.data.log import Log
from longrec.data.splits import TRAIN
from longrec.errors import DataError

_TRIES = 20
"""Number of draws after which an item of the user's own history stays a negative."""


class ItemSampler:
    """Sampler of the negatives of training targets.

    Args:
        targets: training rows, whose items' counts are their popularity.
        catalog: rows of the item table to draw from (``list_negatives``), int64, ascending.
        draw: ``uniform`` or ``popularity``.
        unseen: ``draw_own`` draws no item of the user's own training rows.

    Raises:
        DataError: no item, or one only.
    """

    def __init__(
        self, log: Log, targets: NDArray[np.int64], catalog: NDArray[np.int64], draw: str, unseen: bool = False
    ) -> None:
        if len(catalog) < 3:
            raise DataError(str(log.folder), f"{len(catalog) - 1} item in the training split", "two items or more")
        self.catalog = catalog
        self._shares: NDArray[np.float64] | None = None
        if draw == "popularity":
            # Half a count more, so that an item that is in histories only is drawn too.
            counts = count_items(log, targets)[catalog] + 0.5
            self._shares = counts / counts.sum()
            self._ends = np.cumsum(self._shares)
        self._own: NDArray[np.int64] | None = None
        if unseen:
            self._height = len(log.items)
            rows = np.flatnonzero(np.asarray(log.splits) == TRAIN)
            self._own = np.unique(log.user(rows) * self._height + log.events.columns["item"].take(rows))

    def draw_shared(self, count: int, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return items, and the logarithm of the expected number of draws of each, ``[count]``."""
        index = self._draw(count, random)
        share = np.full(count, 1 / len(self.catalog)) if self._shares is None else self._shares[index]
        return self.catalog[index], np.log(count * share).astype(np.float32)

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
