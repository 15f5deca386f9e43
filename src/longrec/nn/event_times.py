"""Times of the events of a history, from the computed columns ``time_since_previous`` and ``time_gap``.

Both columns are log2 buckets of seconds. A bucket b holds 2^b - 1 to 2^(b+1) - 2 seconds and is read as its middle,
1.5 (2^b - 1) seconds, which is 0 for events at one timestamp. The time of an event is the sum of the times between
events up to it, so that any two events of a history have a distance. Times are integers in half seconds: they are
exact, and the same in every layout and program.

Shapes: U stored positions of a history, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longrec.nn.segments import Segments

_FIRST = 2
"""Id of the first bucket. Smaller ids stand for no time."""
_OCTAVE = 0.301
"""Natural logarithm of the ratio of two neighboring buckets of ``bucket_times``."""
TIME_BUCKETS = 128
"""Last bucket of ``bucket_times``."""


@dataclass(frozen=True)
class EventTimes:
    """Times of the events of a history, comparable within a row.

    Attributes:
        at: int64 ``[U]`` half seconds.
        following: int64 ``[U]``, the time of the next event of the row. For the newest event it is that of the request.
    """

    at: Tensor
    following: Tensor

    def set_following(self, position_T: Tensor, gap_T: Tensor) -> EventTimes:
        """Return times in which the next event of some positions is at another time.

        Args:
            position_T: int64 ``[T]`` stored positions. Equal ones have equal gaps.
            gap_T: ids of the time after the event, in the buckets of ``time_gap``.
        """
        following_T = self.at.index_select(0, position_T) + decode_gaps(gap_T)
        return EventTimes(self.at, self.following.index_copy(0, position_T, following_T))


def read_times(since_U: Tensor, gap_U: Tensor, segments: Segments) -> EventTimes:
    """Return the times of the events of requests.

    Args:
        since_U: ids of ``time_since_previous``. Those of the first event of a row are not used.
        gap_U: ids of ``time_gap``. Those of the newest event of a row alone are used.
        segments: the requests over stored positions.
    """
    newer_U = segments.count_newer()
    at_U = decode_gaps(since_U).cumsum(0)
    next_U = torch.arange(segments.positions, device=at_U.device) + (newer_U > 0).long()
    following_U = torch.where(newer_U > 0, at_U.index_select(0, next_U), at_U + decode_gaps(gap_U))
    return EventTimes(at_U, following_U)


def decode_gaps(id_U: Tensor) -> Tensor:
    """Return the middle of buckets of time, in int64 half seconds. 0 for an id without a time.

    >>> decode_gaps(torch.tensor([0, 1, 2, 3, 4])).tolist()
    [0, 0, 0, 3, 9]
    """
    bucket_U = (id_U.long() - _FIRST).clamp(min=0)
    powers = 2 ** torch.arange(41, device=bucket_U.device)
    return 3 * (powers.index_select(0, bucket_U) - 1)


def bucket_times(half_seconds: Tensor) -> Tensor:
    """Return int32 buckets of time differences: floor(log(max(seconds, 1)) / 0.301), from 0 to 128.

    >>> bucket_times(2 * torch.tensor([0, 1, 2, 60, 86_400, -60])).tolist()
    [0, 0, 2, 13, 37, 13]
    """
    # In float64, as all times of a log do not fit into the 24 bits of float32.
    seconds = half_seconds.abs().clamp(min=2).double() / 2
    return (seconds.log() / _OCTAVE).clamp(max=TIME_BUCKETS).to(torch.int32)
