"""Batches for models that learn the next item: targets, the histories before them, and sampled negatives.

A target is a training row with a positive label. In a batch of sequences each user's events are there once, and every
target names the position of the last event that its own history holds: one pass over the events serves all targets. In
a batch of requests each target has a history of its own, as a ranker's row has.

Sequences need a history whose values do not depend on when it is read: no feedback, no time since an event, no late
events, no versions of items. Batches of other logs have requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.data.availability import expand_ranges
from longrec.data.catalog import build_catalog, list_negatives
from longrec.data.gather import gather, gather_history, gather_requests
from longrec.data.log import Log
from longrec.data.negative_items import ItemSampler, number_distinct, pair_own_targets
from longrec.data.target_order import TargetChoice, TargetOrder
from longrec.features.batch import Batch, Layout, Targets
from longrec.features.computed_columns import compute_time_gaps
from longrec.features.fields import COMPUTED, TIME_GAP, TIME_SINCE_PREVIOUS
from longrec.features.history_columns import NEVER
from longrec.features.sampling import Sampling


def find_sequence_fault(log: Log, history: str, sampling: Sampling | None = None) -> str:
    """Return the reason why sequences of a history cannot be read in one pass. Empty if they can.

    Args:
        sampling: what the model reads. With ``time`` columns of time are no reason, but a filter is: the event after a
            state may then be later than the target, whose own row is not among the events.
    """
    timed = sampling is not None and sampling.time
    if log.schema.prejoined or history in log.tokens:
        return "its events are not those of the log"
    if log.available is not None:
        return "some events became available late"
    if log.items.versions is not None:
        return "its items have versions"
    if timed and log.schema.histories[history].where:
        return "it leaves out events, and times of targets are read"
    allowed = (TIME_GAP, TIME_SINCE_PREVIOUS) if timed else ()
    columns = log.schema.histories[history].features
    changing = [column for column in columns if column in COMPUTED and column not in allowed]
    changing += [field.name for field in log.fields().histories[history] if field.feedback]
    return f"the values of {', '.join(changing)} depend on when they are read" if changing else ""


class NextItemLoader:
    """Loader of batches of targets, in an order that depends only on (seed, epoch).

    Args:
        rows: targets, int64 rows of the log. Those without an earlier event are left out of batches of sequences.
        batch_size: targets per batch. A batch of sequences has about as many.
        history: name of the history.
        sampling: the negatives, which targets an epoch has, and what is gathered with them.
        sequences: batches of sequences, if the log allows.
        ties: ``strict``: a target reads strictly earlier events; ``order``: all earlier rows of its user in sequences,
            also those at its own timestamp.
        windows: ``last``: the last events of each user, as many as the history holds; ``all``: all of them, in windows.
    """

    def __init__(
        self,
        log: Log,
        rows: NDArray[np.int64],
        batch_size: int,
        history: str,
        sampling: Sampling,
        *,
        seed: int = 0,
        sequences: bool = True,
        windows: Literal["last", "all"] = "last",
        ties: Literal["strict", "order"] = "strict",
    ) -> None:
        self.log, self.history, self.seed, self.sampling = log, history, seed, sampling
        self.by_request = not sequences or bool(find_sequence_fault(log, history, sampling))
        self.catalog, self._kept = list_negatives(log), log.select_filtered(history)
        self._now = int(min(log.training_window.train.max(), int(log.events.times.max(initial=0)) + 1))
        self._all = build_catalog(log, self.catalog, self._now) if sampling.scope == "all" else None
        if self.by_request:
            self.rows, self._targets = rows, np.arange(len(rows) + 1)
            self._first = self._stop = np.zeros(0, np.int64)
        else:
            self._cut_windows(rows, log.schema.histories[history].max_length, windows, ties)
        self._choice = TargetChoice(log.user(self.rows), self._targets, sampling.per_user)
        # Items are as popular in a batch as among the targets that batches have.
        popular = self.rows if sampling.in_batch else rows
        self._sampler = ItemSampler(log, popular, self.catalog, sampling, self._choice.rates)
        self._batches = max(-(-self._choice.total // batch_size), 1) if self._choice.total else 0
        times = log.timestamps.take(self.rows if sampling.age else self.rows[:0])
        self._oldest, self._newest = int(times.min(initial=NEVER)), int(times.max(initial=-NEVER))

    def _cut_windows(self, rows: NDArray[np.int64], longest: int, windows: str, ties: str) -> None:
        """Cut the events of each user into windows, from the newest target back, and give each target its window."""
        first, stop = self.log.history_range(self.history, rows)
        if ties == "order":
            stop = rows if self._kept is None else np.searchsorted(self._kept, rows)
        rows, first, stop = (values[stop > first] for values in (rows, first, stop))
        users = self.log.user(rows)
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        newest = np.maximum.reduceat(stop, starts) if len(rows) else stop
        back = (np.repeat(newest, np.diff(np.append(starts, len(rows)))) - stop) // longest
        if windows == "last":
            kept = back == 0
            rows, first, stop, users, back = (values[kept] for values in (rows, first, stop, users, back))
        begins = np.flatnonzero((np.diff(users, prepend=-1) != 0) | (np.diff(back, prepend=-1) != 0))
        self.rows, self._state = rows, stop - 1
        self._targets = np.append(begins, len(rows))
        # A user's targets are in the order of the log, so the last one of a window has its newest event.
        self._stop = stop[self._targets[1:] - 1]
        self._first = np.maximum(first[begins], self._stop - longest)

    @property
    def loss_rows(self) -> NDArray[np.int64]:
        """The targets."""
        return self.rows

    def __len__(self) -> int:
        return self._batches

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the targets in the order of an epoch, int64 rows of the log."""
        order = self._draw_order(epoch)
        return self.rows[order.of(order.windows)]

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch ``start`` on."""
        if not self._batches:
            return
        order = self._draw_order(number)
        cost = order.counts(order.windows)
        done = np.cumsum(cost)
        cuts = np.searchsorted((2 * done - cost) * self._batches // (2 * int(done[-1])), np.arange(self._batches + 1))
        for index in range(start, self._batches):
            random = np.random.default_rng([self.seed, number, index])
            own = order.windows[cuts[index] : cuts[index + 1]]
            if self.by_request:
                yield self._gather_requests(order.of(own), random)
            else:
                yield self._gather_sequences(own, order, random)

    def _draw_order(self, epoch: int) -> TargetOrder:
        return self._choice.draw(np.random.default_rng([self.seed, epoch]))

    def _gather_requests(self, own: NDArray[np.int64], random: np.random.Generator) -> Batch:
        rows = np.sort(self.rows[own])
        return self._add_candidates(gather(self.log, rows), rows, np.arange(len(rows)), random, per_position=False)

    def _gather_sequences(self, own: NDArray[np.int64], order: TargetOrder, random: np.random.Generator) -> Batch:
        first, lengths = self._first[own], self._stop[own] - self._first[own]
        at, offsets = expand_ranges(first, lengths)
        target = order.of(own)
        # The position of a state in the batch: its event's distance from the start of its window.
        state = self._state[target] + np.repeat(offsets[:-1] - first, order.counts(own))
        events = at if self._kept is None else self._kept.take(at)
        batch = Batch(
            Layout.catalog(len(own), 0),
            gather_requests(self.log, self.rows[self._targets[own + 1] - 1]),
            {},
            {self.history: gather_history(self.log, self.history, events, offsets, np.array([self._now]))},
        )
        gap = None
        if self.sampling.time:
            last = self._state[target] if self._kept is None else self._kept.take(self._state[target])
            times = self.log.timestamps
            gap = compute_time_gaps(times.take(self.rows[target]), times.take(last), self.log.schema.per_second)
        return self._add_candidates(batch, self.rows[target], state, random, per_position=True, gap=gap)

    def _add_candidates(
        self,
        batch: Batch,
        rows: NDArray[np.int64],
        state: NDArray[np.int64],
        random: np.random.Generator,
        per_position: bool,
        gap: NDArray[np.int32] | None = None,
        shown: NDArray[np.int64] | None = None,
    ) -> Batch:
        """Return a batch with the targets and negatives as its candidates.

        Args:
            rows: rows of the log whose user, context and time the targets have.
            shown: rows whose items they are. None: the same rows.
        """
        log, sampling = self.log, self.sampling
        items = log.events.columns["item"].take(rows if shown is None else shown).astype(np.int64)
        own = shared = hits = None
        if sampling.scope == "all":
            assert self._all is not None
            candidates, index, columns, negatives = self.catalog, np.searchsorted(self.catalog, items), self._all, 0
        else:
            distinct, index, times = np.unique(items, return_inverse=True, return_counts=True)
            if sampling.scope == "none":
                drawn, negatives = distinct[:0], 0
            elif sampling.scope == "own":
                of_target = self._sampler.draw_own(log.user(rows), sampling.negatives, random)
                drawn, own = number_distinct(of_target, len(log.items))
                own += len(distinct)
                negatives = len(drawn)
            else:
                shared = self._sampler.draw_shared(distinct, times, random)
                drawn, negatives = shared.drawn, len(shared.log_q)
                if sampling.in_batch and sampling.mask_own:
                    hits = pair_own_targets(log.user(rows), index)
            candidates = np.concatenate([distinct, drawn])
            columns = build_catalog(log, candidates, self._now)
        targets = Targets(
            state=torch.from_numpy(state),
            item=torch.from_numpy(index),
            rows=torch.from_numpy(candidates),
            negatives=negatives,
            catalog=len(self.catalog),
            log_q=_to_tensor(None if shared is None else shared.log_q),
            own=_to_tensor(own),
            weight=_to_tensor(None if log.sample_weight is None else log.sample_weight.take(rows)),
            per_position=per_position,
            draws=_to_tensor(None if shared is None else shared.draws),
            hits=_to_tensor(hits),
            requests=gather_requests(log, rows) if sampling.requests and per_position else None,
            age=_to_tensor(self._compute_age(rows) if sampling.age else None),
            gap=_to_tensor(gap),
        )
        layout = Layout.catalog(batch.layout.requests, len(candidates))
        return replace(batch, layout=layout, candidates=columns, targets=targets, label=None, rows=None, users=None)

    def _compute_age(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the time from each row to the last target, as a share of that from the first one to the last one."""
        span = max(self._newest - self._oldest, 1)
        return ((self._newest - self.log.timestamps.take(rows)) / span).astype(np.float32)


def _to_tensor(values: NDArray[Any] | None) -> torch.Tensor | None:
    return None if values is None else torch.from_numpy(values)
