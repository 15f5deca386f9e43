"""Batches of consecutive rows of users or requests, in an order that depends only on (seed, epoch).

The log is sorted by user and time, so a run of consecutive rows of one user, or of one user and timestamp, is
contiguous. Users with more than ``rows_per_user`` rows are divided into several runs, and a batch consists of whole
runs. A run may be preceded by earlier rows of the user (``context``), which the model can attend to but which have no
loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.features.batch import Batch


class UserLoader:
    """Loader of batches of given rows of a log, user by user.

    The state of an epoch is its number and the number of completed batches. All epochs have the same number of batches.
    A batch has about ``batch_size`` rows (the difference is at most one run) plus their context rows. Without
    shuffling, the context rows count toward ``batch_size``.

    Args:
        rows: row indices in the log in any order, int64. Each occurs once per epoch.
        batch_size: rows per batch, at least the longest run.
        shuffle: shuffle the runs. False keeps the order of the log (for prediction).
        rows_per_user: maximum length of a run.
        loss_rows: subset of ``rows`` that have a loss. The others are context. Default: all.
        context: maximum number of earlier rows of the user, of any split, before each run.
        mirrored: every second epoch visits the runs in the reverse order of the epoch before.
        by_request: a run has one user and timestamp, and its rows share features and histories of the request.
        targets, available_before: additional labels to compute, as in ``gather``.
    """

    def __init__(
        self,
        log: Log,
        rows: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rows_per_user: int = 256,
        context: int = 0,
        mirrored: bool = False,
        targets: Sequence[str] = (),
        available_before: int | None = None,
        loss_rows: NDArray[np.int64] | None = None,
        by_request: bool = False,
    ) -> None:
        self.log, self.rows = log, np.unique(rows)
        self.loss_rows = self.rows if loss_rows is None else np.unique(loss_rows)
        self.seed, self.shuffle, self.mirrored = seed, shuffle, mirrored
        self.targets, self.available_before = tuple(targets), available_before
        self.by_request = by_request
        keys = number_requests(log, self.rows) if by_request else log.user(self.rows)
        self._first, self._last = _runs(keys, rows_per_user)
        first_rows = self.rows[self._first]
        begins = log.events.offsets[log.user(first_rows)]
        self._from = np.maximum(first_rows - context, begins)
        self._context = first_rows - self._from
        # Context rows have no loss, so they do not fill a batch of training. In prediction,
        # where a short run may follow a long context, all rows count, since all of them take memory.
        self._cost = self._last - self._first + (0 if shuffle else self._context)
        total, longest = int(self._cost.sum()), int(self._cost.max(initial=1))
        # At least the longest run fits a batch, so that none is ever empty.
        self._batches = max(min(-(-total // batch_size), total // longest), 1) if len(self.rows) else 0

    def __len__(self) -> int:
        return self._batches

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the indices of the runs in the order of an epoch."""
        if not self.shuffle:
            return np.arange(len(self._first))
        drawn = epoch // 2 if self.mirrored else epoch
        order = np.random.default_rng([self.seed, drawn]).permutation(len(self._first))
        return order[::-1] if self.mirrored and epoch % 2 else order

    def _cuts(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the boundaries of batches in the order of runs. A run is in the batch that contains its middle."""
        cost = self._cost[order]
        stop = np.cumsum(cost)
        batch = (2 * stop - cost) * self._batches // (2 * int(stop[-1]))
        return np.searchsorted(batch, np.arange(self._batches + 1))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the row indices of an epoch without context, int64. Inside a batch they have the order of the log."""
        runs = self._order(epoch)
        cuts = self._cuts(runs) if len(runs) else runs
        batches = [self._counted(runs[low:high]) for low, high in pairwise(cuts)]
        return np.concatenate([np.zeros(0, np.int64), *batches])

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch ``start`` on."""
        if not len(self.rows):
            return
        runs = self._order(number)
        cuts = self._cuts(runs)
        for low, high in zip(cuts[start:], cuts[start + 1 :]):
            yield self._batch(runs[low:high])

    def _counted(self, runs: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.sort(self.rows[_spans(self._first[runs], self._last[runs])])

    def _batch(self, runs: NDArray[np.int64]) -> Batch:
        rows = self._counted(runs)
        before = self._from[runs]
        every = np.union1d(rows, _spans(before, before + self._context[runs]))
        if len(every) == len(rows) and len(self.loss_rows) == len(self.rows):
            return gather(self.log, rows, self.targets, self.available_before, self.by_request)
        if len(self.loss_rows) < len(self.rows):
            rows = np.intersect1d(rows, self.loss_rows, assume_unique=True)
        counts = np.isin(every, rows, assume_unique=True)
        batch = gather(self.log, every, self.targets, self.available_before, self.by_request)
        return replace(batch, loss_mask=torch.from_numpy(counts))


def number_requests(log: Log, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number per row, from 0, that is the same for adjacent rows of one user and timestamp."""
    differs = (np.diff(log.user(rows)) != 0) | (np.diff(log.timestamps.take(rows)) != 0)
    if log.order is not None:
        differs |= log.order.differs(rows)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(differs)])[: len(rows)]


def _runs(users: NDArray[np.int64], longest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the start and end of each run. Users have as few runs as possible, of similar length up to ``longest``.

    >>> _runs(np.array([3, 3, 3, 3, 3, 8]), 3)
    (array([0, 2, 5]), array([2, 5, 6]))
    """
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    lengths = np.diff(starts, append=len(users))
    run_counts = -(-lengths // longest)
    user = np.repeat(np.arange(len(starts)), run_counts)
    run_index = np.arange(len(user)) - np.repeat(np.cumsum(run_counts) - run_counts, run_counts)
    first = starts[user] + run_index * lengths[user] // run_counts[user]
    return first, np.append(first[1:], len(users))


def _spans(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the concatenated ranges from each ``first`` to each ``last``, exclusive.

    >>> _spans(np.array([3, 7]), np.array([5, 8]))
    array([3, 4, 7])
    """
    lengths = last - first
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(first - offsets, lengths) + np.arange(int(lengths.sum()))
