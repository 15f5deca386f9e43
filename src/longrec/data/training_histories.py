"""Iteration over the histories of the training split, for models that compute statistics before training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from longrec.data.gather import gather, gather_history
from longrec.data.log import Log
from longrec.data.splits import SPLITS
from longrec.features.batch import HistoryBatch
from longrec.features.history_columns import NEVER, compute_filter_delay

_MOST = 1_000_000
"""Maximum number of events per chunk, unless one user has more."""
_ROWS = 8_192
"""Number of rows per chunk of a prejoined log."""


def iterate_training_histories(log: Log, max_events: int = _MOST) -> Iterator[dict[str, HistoryBatch]]:
    """Yield batches of complete training histories, one row per user, oldest event first.

    Each event of the training split that passes the filter of a history occurs once, without the limit on the length of
    the history. Values are those available at the end of the training window, which may differ per user. Token
    histories are omitted. A prejoined log yields one row per training row, so an event can occur several times.

    Args:
        max_events: maximum number of events per chunk, unless one user has more.
    """
    if log.schema.prejoined:
        rows = log.rows_of("train")
        for first in range(0, len(rows), _ROWS):
            yield dict(gather(log, rows[first : first + _ROWS]).histories)
        return
    names = [name for name in log.schema.histories if name not in log.tokens]
    offsets = log.events.offsets
    cuts = np.unique(np.searchsorted(offsets, np.arange(0, offsets[-1], max_events)[1:]))
    cuts = np.unique(np.concatenate([[0], cuts, [len(offsets) - 1]]))
    ends, last = log.training_window.train, _last_timestamp(log)
    for low, high in pairwise(cuts):
        start, stop = offsets[low], offsets[high]
        training = np.asarray(log.splits[start:stop] == SPLITS["train"])
        chunk = {}
        for name in names:
            own = training
            if log.schema.histories[name].where:
                own = own & np.asarray(log.events.columns[f"where.{name}"][start:stop], bool)
            delay = compute_filter_delay(log.fitted, name)
            now = ends if len(ends) == 1 else np.repeat(ends[low:high], np.diff(offsets[low : high + 1]))
            inside = log.events.times[start:stop] < now - delay
            if log.order is not None and delay == 0:
                inside |= log.precedes_cutoff("train", np.arange(start, stop))
            own = own & inside
            if log.readable is not None:
                own = own & (log.readable[start:stop] < now)
            at = start + np.flatnonzero(own)
            bounds = np.searchsorted(at, offsets[low : high + 1]).astype(np.int64)
            # Without rows in valid and test, the window ends after its last timestamp.
            now_or_last = np.where(now == NEVER, last + 1, now)
            history = gather_history(log, name, at, bounds, now_or_last if len(now_or_last) == 1 else now_or_last[own])
            seconds = log.events.times.take(at) / log.schema.per_second
            chunk[name] = replace(history, seconds=seconds)
        yield chunk


def _last_timestamp(log: Log) -> int:
    """Return the last timestamp of the training split, -1 if it is empty."""
    return int(log.timestamps.take(np.flatnonzero(np.asarray(log.splits) == SPLITS["train"])).max(initial=-1))
