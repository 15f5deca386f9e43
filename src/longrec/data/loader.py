"""Batches of a log in a random order that depends only on (seed, epoch), so that a run can resume exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.features.batch import Batch

SCORED_EVENTS = 250_000
"""Events in the histories of a batch that is not shuffled, at most, unless one row alone has more."""


class Loader:
    """Loader of batches of given rows of a log.

    The state of an epoch is its number and the number of completed batches. Rows are shuffled over the whole split.
    ``bucket_by_length`` instead groups rows of similar history length inside pools of 64 batches. That
    is faster for models that pad but costs quality (measured: 12 % of test HR), so it is off by default.

    Args:
        rows: row indices in the log, int64.
        batch_size: rows per batch. The last batch of an epoch may be smaller.
        shuffle: False keeps the given order (for prediction). Then a batch has fewer rows if their histories have more
            than ``SCORED_EVENTS`` events together, so that memory does not grow with the length of the histories.
        targets, available_before, group: as in ``gather``.
    """

    def __init__(
        self,
        log: Log,
        rows: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        bucket_by_length: bool = False,
        targets: Sequence[str] = (),
        available_before: int | None = None,
        group: bool = False,
    ) -> None:
        self.log, self.rows, self.batch_size = log, rows, batch_size
        self.seed, self.shuffle, self.bucket_by_length = seed, shuffle, bucket_by_length
        self.targets, self.available_before, self.group = tuple(targets), available_before, group

    @property
    def loss_rows(self) -> NDArray[np.int64]:
        """The rows whose loss counts: all of them."""
        return self.rows

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the row indices in the order of an epoch, int64."""
        if not self.shuffle:
            return self.rows
        random = np.random.default_rng([self.seed, epoch])
        rows = random.permutation(self.rows)
        return self._bucket_by_length(rows, random) if self.bucket_by_length else rows

    def _bucket_by_length(self, rows: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        length = self._count_events(rows)
        pool = 64 * self.batch_size
        sorted_pools = [
            rows[at : at + pool][np.argsort(length[at : at + pool], kind="stable")] for at in range(0, len(rows), pool)
        ]
        sorted_rows = np.concatenate(sorted_pools) if sorted_pools else rows
        whole = len(rows) // self.batch_size
        batches = random.permutation(whole)
        head = sorted_rows[: whole * self.batch_size].reshape(whole, self.batch_size)[batches].ravel()
        return np.concatenate([head, sorted_rows[whole * self.batch_size :]])

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch ``start`` on."""
        order = self.order(number)
        for at in range(start * self.batch_size, len(order), self.batch_size):
            rows = order[at : at + self.batch_size]
            for some in [rows] if self.shuffle else self._split_by_events(rows):
                yield gather(self.log, some, self.targets, self.available_before, self.group)

    def _split_by_events(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return consecutive runs of rows that have at most ``SCORED_EVENTS`` events, or one row."""
        events = self._count_events(rows)
        if int(events.sum()) <= SCORED_EVENTS:
            return [rows]
        starts, total = [0], 0
        for at, count in enumerate(events.tolist()):
            total += count
            if total > SCORED_EVENTS and at > starts[-1]:
                starts.append(at)
                total = count
        return np.split(rows, starts[1:])

    def _count_events(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of events in all histories of each row."""
        events = np.zeros(len(rows), np.int64)
        for name in self.log.schema.histories:
            events += self.log.compute_history_lengths(name, rows)
        return events
