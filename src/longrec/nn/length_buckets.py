"""Rows of like length together: where attention wants rectangles, without padding every row to the longest.

Letters: B rows of a batch, N positions, R rows of a bucket, T positions of its longest row, W anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from longrec.nn.segments import Segments

_WASTE = 0.125
"""Share of its positions that a bucket may pad."""
_FREE = 256
"""Padded positions that cost less than a bucket of their own does."""


@dataclass(frozen=True)
class Bucket:
    """Rows of at most T positions; a row's newest position is the last.

    Attributes:
        rows: its place among the rows of ``Buckets``.
        start: first position of the bucket where its positions lie end to end, row by row, and none is padded.
        at: int64 ``[R T]``: the position at each place, any of the row's where padded; None where ``start`` tells all.
        real: bool ``[R, T]``: which places are not padded; None where all are.
        places: int64: the places that are not padded, in order; None where all are.
    """

    rows: slice
    longest: int
    start: int = 0
    at: Tensor | None = None
    real: Tensor | None = None
    slots: Tensor | None = None

    def __len__(self) -> int:
        """How many places it has."""
        return (self.rows.stop - self.rows.start) * self.longest

    @property
    def own(self) -> Tensor | slice:
        """The positions it holds, in order, as an index."""
        if self.at is None:
            return slice(self.start, self.start + len(self))
        return self.at if self.slots is None else self.at[self.slots]

    def pad(self, own_W: Tensor) -> Tensor:
        """``[R, T, W]`` of the bucket's own positions, in order; zero where padded."""
        if self.slots is not None:
            own_W = own_W.new_zeros(len(self), own_W.shape[1]).index_copy(0, self.slots, own_W)
        return own_W.view(-1, self.longest, own_W.shape[1])


class Buckets:
    """The buckets of a ragged batch; rows without positions are in none.

    Args:
        most: positions of a bucket, the padded ones included, unless a single row has more.

    Attributes:
        all: the buckets, longest rows first.
        rows: int64: the rows of all buckets, in order.
        sorted: whether these are all rows of the batch as they stand.
    """

    def __init__(self, segments: Segments, most: int) -> None:
        offsets = segments.offsets
        lengths = offsets[1:] - offsets[:-1]
        order = lengths.argsort(descending=True, stable=True)
        sorted_lengths = lengths[order].tolist()
        filled = len(sorted_lengths) - sorted_lengths.count(0)
        self.rows = order[:filled]
        self.batch, self.count = segments.rows, segments.positions
        self.sorted = sorted_lengths == lengths.tolist() and filled == len(sorted_lengths)
        self.all = [
            _bucket(offsets, self.rows[span], span, sorted_lengths[span])
            for span in _spans(sorted_lengths[:filled], most)
        ]

    def gather(self, x_BW: Tensor) -> Tensor:
        """What belongs to ``rows``."""
        return x_BW if self.sorted else x_BW.index_select(0, self.rows)

    def restore(self, y_W: Tensor) -> Tensor:
        """``[B, ...]`` of what belongs to ``rows``; zero for rows without positions."""
        return y_W if self.sorted else y_W.new_zeros(self.batch, *y_W.shape[1:]).index_copy(0, self.rows, y_W)

    def positions(self) -> Tensor:
        """int64 ``[N]``: all positions, bucket by bucket."""
        every = torch.arange(self.count, device=self.rows.device)
        return torch.cat([every[bucket.own] for bucket in self.all])

    @property
    def sizes(self) -> list[int]:
        """How many positions each bucket has, the padded ones left out."""
        return [len(bucket) if bucket.slots is None else len(bucket.slots) for bucket in self.all]


def find_empty_rows(segments: Segments) -> Tensor:
    """bool ``[B, 1]``: which rows have no positions (``[1, 1]`` when shared)."""
    if segments.shared:
        # Counted, not compared: a traced length stays free.
        return (torch.ones(segments.positions, device=segments.offsets.device).sum() == 0).reshape(1, 1)
    return (segments.offsets[1:] == segments.offsets[:-1]).unsqueeze(1)


def split_rows(segments: Segments, most: int) -> tuple[list[int], list[int], list[Segments]]:
    """A ragged batch as several, each of whole rows and of about ``most`` positions: rows and positions of each.

    Layers that make several wide tensors of all positions run faster piece by piece: memory of a moderate size is
    used again, that of a large one is asked from the system every time.
    """
    offsets = segments.offsets
    marks = torch.arange(0, segments.positions, most, device=offsets.device)[1:]
    cuts = torch.searchsorted(offsets, marks).tolist()
    cuts = sorted({0, *cuts, segments.rows})
    rows = [stop - first for first, stop in pairwise(cuts)]
    ends = offsets[cuts].tolist()
    positions = [stop - first for first, stop in pairwise(ends)]
    chunks = [
        Segments(offsets[first : stop + 1] - offsets[first], stop - first, count)
        for (first, stop), count in zip(pairwise(cuts), positions)
    ]
    return rows, positions, chunks


def _spans(lengths: list[int], most: int) -> list[slice]:
    """The rows of each bucket; ``lengths`` fall."""
    spans, first, real = [], 0, 0
    for at, length in enumerate(lengths):
        whole = (at - first + 1) * lengths[first]
        if at > first and (whole > most or whole - real - length > _WASTE * whole + _FREE):
            spans.append(slice(first, at))
            first, real = at, 0
        real += length
    return [*spans, slice(first, len(lengths))] if lengths else []


def _bucket(offsets: Tensor, rows: Tensor, span: slice, lengths: list[int]) -> Bucket:
    longest, starts = lengths[0], offsets[rows]
    if lengths[-1] == longest:
        row_list = rows.tolist()
        if row_list == list(range(row_list[0], row_list[0] + len(row_list))):
            return Bucket(span, longest, int(starts[0]))
    at = (offsets[rows + 1] - longest).unsqueeze(1) + torch.arange(longest, device=rows.device)
    if lengths[-1] == longest:
        return Bucket(span, longest, at=at.flatten())
    real = at >= starts.unsqueeze(1)
    at = torch.maximum(at, starts.unsqueeze(1))
    return Bucket(span, longest, at=at.flatten(), real=real, slots=real.flatten().nonzero().squeeze(1))
