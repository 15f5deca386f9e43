"""Causal visibility among the rows of a batch: each row sees the earlier rows of its own group.

A group is a user, and a row an impression at a timestamp. Row i sees row j of its group if and only if ``t_j < t_i``
(and j was available by then) or ``j = i``. Rows of one timestamp (the candidates of one request) never see each other.
The order of the rows in a batch does not matter. Groups of similar length share a bucket, so that no cost grows with
the longest group of a batch.

Shapes: N rows, P entries per row, U groups of a bucket, T entries of its longest group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from longrec.nn.host_plans import fetch, invert, put_all

GAPS = 64
"""Buckets of the elapsed time: 0 for the row itself, 1 + floor(log2) for others."""
RANKS = 22
"""Buckets of the number of rows back: 0 for the row itself, then two per octave: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ..."""
UNSEEN = RANKS * GAPS
"""Value that replaces both buckets if a row does not see the other."""
NOT_YET = 3
"""Label id of a row whose label is not yet available, after 0 none, 1 negative, 2 positive."""
_WASTE = 0.15
"""Maximum share of padded row pairs in a bucket."""
_FREE = 4_096
"""Number of pairs that cost less than a bucket of their own."""
_LATE = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Bucket:
    """U groups of at most T entries, consecutive from ``start`` to ``stop`` in the order of the timeline.

    Attributes:
        distance: int64 ``[U, T, T]``: distance from i back to j: ``GAPS`` times the rank bucket, plus the bucket of the
            elapsed time. ``UNSEEN`` if i does not see j.
        label: int64 ``[U, T, T]``: the label of j as available to i. None without labels.
        from_flat: int64 ``[U T]``: the entry of each slot (any one where padded). None without padding.
        to_flat: int64 ``[stop - start]``: the slot of each entry.
    """

    start: int
    stop: int
    groups: int
    longest: int
    distance: Tensor
    label: Tensor | None
    from_flat: Tensor | None
    to_flat: Tensor | None


class Timeline:
    """Visibility among N rows, in buckets of groups.

    Args:
        groups: int64 ``[N]``: the group (user) of each row, on the host or on the device, from which it is copied.
        timestamps: int64 ``[N]``.
        labels: int64 ``[N]``: 0 none, 1 negative, 2 positive, 3 never available. None without labels.
        label_time: int64 ``[N]``: row i sees the label of j if ``label_time_j < t_i``.
        entries_per_row: P, consecutive entries of a row, which see each other.
        available: int64 ``[N]``: row i sees row j only if ``available_j < t_i`` too. None if rows are available at
            once.

    Attributes:
        order: int64 ``[N P]``: entries group by group, groups by length.
        back: int64 ``[N P]``: the inverse of ``order``.
        buckets: the buckets to compute.
    """

    def __init__(
        self,
        groups: Int64[Tensor, " N"] | NDArray[np.int64],
        timestamps: Int64[Tensor, " N"],
        labels: Int64[Tensor, " N"] | None = None,
        label_time: Int64[Tensor, " N"] | None = None,
        entries_per_row: int = 1,
        available: Int64[Tensor, " N"] | None = None,
    ) -> None:
        device = timestamps.device
        columns = [timestamps, torch.arange(len(groups), device=device)]
        if labels is not None:
            assert label_time is not None
            columns += [labels, label_time]
        if available is not None:
            columns.append(available)
        if entries_per_row > 1:
            columns = [x.repeat_interleave(entries_per_row, output_size=len(x) * entries_per_row) for x in columns]
        keys = np.repeat(fetch(groups) if isinstance(groups, Tensor) else groups, entries_per_row)
        _, group, count = np.unique(keys, return_inverse=True, return_counts=True)
        # Longest groups first, each group's rows together.
        longest_first = (-count).argsort(kind="stable")
        order = invert(longest_first)[group].argsort(kind="stable")
        self.order, self.back = put_all([order, invert(order)], device)
        ordered = [column.index_select(0, self.order) for column in columns]
        lengths = count[longest_first]
        self.buckets = [
            _bucket(lengths, *span, ordered, entries_per_row, available is not None)
            for span in _spans(lengths.tolist())
        ]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def pairs(self) -> int:
        """Number of computed pairs of entries, padded ones included."""
        return sum(bucket.groups * bucket.longest**2 for bucket in self.buckets)


def _spans(lengths: list[int]) -> list[tuple[int, int]]:
    """Return the first and one-past-last group of each bucket. ``lengths`` are in descending order."""
    spans, first, real = [], 0, 0
    for at, length in enumerate(lengths):
        padded = (at - first + 1) * lengths[first] ** 2
        if at > first and padded - real - length**2 > _WASTE * (real + length**2) + _FREE:
            spans.append((first, at))
            first, real = at, 0
        real += length**2
    return [*spans, (first, len(lengths))] if lengths else []


def _bucket(
    lengths: NDArray[np.int64], first: int, last: int, ordered: list[Tensor], entries_per_row: int, late: bool
) -> Bucket:
    """Return the bucket of groups ``first`` to ``last``, whose entries follow those of longer groups.

    Args:
        late: the last column is the time from which each row is available.
    """
    start, own = int(lengths[:first].sum()), lengths[first:last]
    stop, groups, longest = start + int(own.sum()), last - first, int(own[0])
    from_flat = to_flat = None
    columns = [column[start:stop] for column in ordered]
    if int(own[-1]) < longest:
        slots = (np.arange(longest) < own[:, None]).ravel().nonzero()[0]
        sources = np.zeros(groups * longest, np.int64)
        sources[slots] = np.arange(stop - start)
        to_flat, from_flat = put_all([slots, sources], ordered[0].device)
        fills = [_LATE, -1, 0, 0, 0]  # a padded row is later than all others and sees them, and no row sees it
        columns = [
            column.new_full((groups * longest,), fill).index_copy(0, to_flat, column)
            for column, fill in zip(columns, fills)
        ]
    timestamp, row, *others = [column.view(groups, longest) for column in columns]
    now, then = timestamp.unsqueeze(2), timestamp.unsqueeze(1)
    earlier = before = then < now
    if late:
        earlier = earlier & (others.pop().unsqueeze(1) < now)
    # Number of rows before each, so that rows of one timestamp have one rank. Integers, as a row's entries share it.
    rank = earlier.sum(2, dtype=torch.float32) / entries_per_row
    # Of the rows that i sees, those before j. If no row is late, they are all that j sees.
    passed = torch.bmm(earlier.float(), before.mT.float()) / entries_per_row if late else rank.unsqueeze(1)
    rank_bucket = 1 + _log2((rank.unsqueeze(2) - passed), halves=True)
    gap = 1 + _log2((now - then).float())
    distance = rank_bucket.clamp_(1, RANKS - 1).mul_(GAPS).add_(gap.clamp_(1, GAPS - 1))
    distance = torch.where(earlier, distance, torch.where(row.unsqueeze(2) == row.unsqueeze(1), 0, UNSEEN)).long()
    label = None
    if others:
        labels, label_time = others
        label = torch.where(earlier & (label_time.unsqueeze(1) < now), labels.unsqueeze(1), NOT_YET)
    return Bucket(start, stop, groups, longest, distance, label, from_flat, to_flat)


def _log2(x: Tensor, halves: bool = False) -> Tensor:
    """Return the log2 of positive float32 as int32, rounded down. ``halves`` doubles it and counts from 1.5 times a
    power on.

    Computed from the bits: the exponent, and with ``halves`` the first bit of the mantissa.
    """
    bits = x.view(torch.int32)
    return bits.bitwise_right_shift(22) - 2 * 127 if halves else bits.bitwise_right_shift(23) - 127
