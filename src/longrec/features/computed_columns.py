"""Computed history columns: ids of the time gaps and sessions of a history.

Shapes: N positions, B rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.features.feature_encoders import FIRST, MISSING
from longrec.features.fields import SESSION_RECENCY, SESSION_RECENCY_ROWS, TIME_GAP, TIME_GAP_ROWS, TIME_SINCE_PREVIOUS


def compute_column(
    column: str,
    now: NDArray[np.int64],
    times: NDArray[np.int64],
    offsets: NDArray[np.int64],
    per_second: int,
    session_gap: int,
) -> NDArray[np.int32]:
    """Compute one column of a history.

    Args:
        column: its name, one of ``fields.COMPUTED``.
        now: ``[N]`` (or ``[1]``) timestamps of the impressions.
        times: ``[N]`` timestamps of the events, ascending within a row.
        offsets: ``[B + 1]``.
        per_second: units of time per second (1 for logs in steps).
        session_gap: longest time between two events of one session.
    """
    if column == TIME_GAP:
        return compute_time_gaps(now, times, per_second)
    if column == TIME_SINCE_PREVIOUS:
        return compute_time_since_previous(times, offsets, per_second)
    assert column == SESSION_RECENCY
    return compute_session_recency(times, offsets, session_gap)


def compute_time_gaps(now: NDArray[np.int64], then: NDArray[np.int64], per_second: int = 1_000) -> NDArray[np.int32]:
    """Compute ids of the time between events and impressions: 2 + floor(log2(1 + seconds)), at most 40 buckets.

    Args:
        per_second: units of time per second (1 for logs in steps).
    """
    return _bucketize(np.maximum(now - then, 0) // per_second)


def compute_time_since_previous(
    times: NDArray[np.int64], offsets: NDArray[np.int64], per_second: int = 1_000
) -> NDArray[np.int32]:
    """Compute ids of the time since the previous event of the history, in the buckets of ``compute_time_gaps``. The
    first event of a history has id 0 (missing).

    >>> compute_time_since_previous(np.array([0, 0, 7_000, 9_000]), np.array([0, 3, 4])).tolist()
    [0, 2, 5, 0]
    """
    gaps = np.zeros(len(times), np.int64)
    gaps[1:] = np.maximum(np.diff(times), 0)  # negative where another row begins
    ids = _bucketize(gaps // per_second)
    ids[_find_row_starts(offsets)] = MISSING
    return ids


def compute_session_recency(times: NDArray[np.int64], offsets: NDArray[np.int64], gap: int) -> NDArray[np.int32]:
    """Compute ids of the number of sessions between an event and the newest of its history: 2 to 65.

    Events of the newest session have id 2. A session ends if the next event is more than ``gap`` later.

    >>> compute_session_recency(np.array([0, 1800, 3601, 5]), np.array([0, 3, 4]), 1800).tolist()
    [3, 3, 2, 2]
    """
    new = np.zeros(len(times), np.int64)
    new[1:] = np.diff(times) > gap
    new[_find_row_starts(offsets)] = 1
    number = np.cumsum(new)  # of the session of each event, over all rows
    lengths = np.diff(offsets)
    newest = np.repeat(number[offsets[1:][lengths > 0] - 1], lengths[lengths > 0])
    return np.minimum(newest - number + FIRST, SESSION_RECENCY_ROWS - 1).astype(np.int32)


def _bucketize(seconds: NDArray[np.int64]) -> NDArray[np.int32]:
    buckets = np.floor(np.log2(1.0 + seconds)).astype(np.int32)
    return np.minimum(buckets, TIME_GAP_ROWS - FIRST - 1) + np.int32(FIRST)


def _find_row_starts(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first position of each row that is not empty."""
    return offsets[:-1][np.diff(offsets) > 0]
