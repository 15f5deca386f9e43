"""Buckets of rows of similar length, for attention on rectangles without padding every row to the longest.

Shapes: B rows of a batch, N positions, R rows of a bucket, T positions of its longest row, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from longrec.nn import kernels
from longrec.nn.segments import Segments

_WASTE = 0.125
"""Maximum share of padded positions in a bucket."""
_FREE = 256
"""Number of padded positions that cost less than a bucket of their own."""


@dataclass(frozen=True)
class Bucket:
    """Rows of at most T positions, right-aligned: a row's newest position is in the last slot.

    Attributes:
        rows: slice of the rows of ``Buckets``.
        start: first position of the bucket if its positions are consecutive, row by row, without padding.
        at: int64 ``[R T]``: the position in each slot, any of the row's in a padded slot. None if ``start`` is enough.
        real: bool ``[R, T]``: slots without padding. None if no slot is padded.
        slots: int64: indices of the slots without padding, in order. None if no slot is padded.
    """

    rows: slice
    longest: int
    start: int = 0
    at: Tensor | None = None
    real: Tensor | None = None
    slots: Tensor | None = None

    def __len__(self) -> int:
        """Number of slots."""
        return (self.rows.stop - self.rows.start) * self.longest

    @property
    def own(self) -> Tensor | slice:
        """Index of the positions of the bucket, in order."""
        if self.at is None:
            return slice(self.start, self.start + len(self))
        return self.at if self.slots is None else self.at[self.slots]

    def pad(self, own_W: Tensor) -> Tensor:
        """Return ``[R, T, W]`` of the bucket's own positions, in order. Zero where padded."""
        if self.slots is not None:
            own_W = own_W.new_zeros(len(self), own_W.shape[1]).index_copy(0, self.slots, own_W)
        return own_W.view(-1, self.longest, own_W.shape[1])


class Buckets:
    """Buckets of a ragged batch. Rows without positions are in none.

    Args:
        most: maximum number of slots of a bucket, unless a single row has more.

    Attributes:
        all: the buckets, longest rows first.
        rows: int64: the rows of all buckets, in order.
        sorted: True if these are all rows of the batch in their order.
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
        """Return the entries of ``rows``."""
        return x_BW if self.sorted else x_BW.index_select(0, self.rows)

    def restore(self, y_W: Tensor) -> Tensor:
        """Return ``[B, ...]`` from the entries of ``rows``. Zero for rows without positions."""
        return y_W if self.sorted else y_W.new_zeros(self.batch, *y_W.shape[1:]).index_copy(0, self.rows, y_W)

    def positions(self) -> Tensor:
        """Return int64 ``[N]``: all positions, bucket by bucket."""
        every = torch.arange(self.count, device=self.rows.device)
        return torch.cat([every[bucket.own] for bucket in self.all])

    @property
    def sizes(self) -> list[int]:
        """Number of positions of each bucket, without padding."""
        return [len(bucket) if bucket.slots is None else len(bucket.slots) for bucket in self.all]


def find_empty_rows(segments: Segments) -> Tensor:
    """Return bool ``[B, 1]``: True for rows without positions (``[1, 1]`` when shared)."""
    if segments.shared:
        # A sum instead of a comparison, so that a traced length stays dynamic.
        return (torch.ones(segments.positions, device=segments.offsets.device).sum() == 0).reshape(1, 1)
    return (segments.offsets[1:] == segments.offsets[:-1]).unsqueeze(1)


def can_split(segments: Segments, most: int) -> bool:
    """Return True if ``split_rows`` saves time: more than ``most`` positions of a ragged batch on the CPU."""
    return not segments.shared and kernels.choose(segments.offsets, casts=False) == "cpu" and segments.positions > most


def split_rows(segments: Segments, most: int) -> tuple[list[int], list[int], list[Segments]]:
    """Split a ragged batch into chunks of whole rows and of about ``most`` positions each.

    Layers that make several wide tensors of all positions run faster chunk by chunk, because memory blocks of moderate
    size are reused, while large ones are requested from the system every time. Returns the rows, the positions and the
    segments of each chunk.
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
    """Return the rows of each bucket. ``lengths`` are in descending order."""
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
