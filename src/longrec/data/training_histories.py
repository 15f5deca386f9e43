"""Histories inside the training window, for models that compute statistics before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from longrec.data.gather import gather, gather_history
from longrec.data.log import Log
from longrec.data.splits import SPLITS
from longrec.features.batch import HistoryBatch
from longrec.features.history_columns import NEVER, compute_filter_delay

_MOST = 1_000_000
"""Events of a chunk, unless one user has more."""
_ROWS = 8_192
"""Rows of a chunk of a prejoined log."""


def iterate_training_histories(log: Log, max_events: int = _MOST) -> Iterator[dict[str, HistoryBatch]]:
    """Yield every event of the training split once, as histories of its user, oldest first.

    There is one row per user, chunk by chunk.

    The events are those a history lets in, without its limit of length, as available when the window ended (for
    the user, where the split draws no line through all users).
    Histories of tokens are left out. A prejoined log gives one row per training row, and an
    event appears as often as it is listed.
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
            own = own & (log.events.times[start:stop] < now - delay)
            if log.available is not None:
                own = own & (log.available[start:stop] < now)
            at = start + np.flatnonzero(own)
            bounds = np.searchsorted(at, offsets[low : high + 1]).astype(np.int64)
            # If nothing is measured later, the window ends after its last timestamp.
            now_or_last = np.where(now == NEVER, last + 1, now)
            chunk[name] = gather_history(
                log, name, at, bounds, now_or_last if len(now_or_last) == 1 else now_or_last[own]
            )
        yield chunk


def _last_timestamp(log: Log) -> int:
    """Return the last timestamp of the training split, -1 if it is empty."""
    return int(log.timestamps.take(np.flatnonzero(np.asarray(log.splits) == SPLITS["train"])).max(initial=-1))
