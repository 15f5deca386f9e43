"""Buckets of rows of similar length, for attention on rectangles without padding every row to the longest.

Shapes: B rows of a batch, N positions, R rows of a bucket, T positions of its longest row, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.nn import kernels
from longrec.nn.host_plans import invert, put, put_all
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
        filled: number of rows in buckets.
        sorted: True if these are all rows of the batch in their order.
    """

    def __init__(self, segments: Segments, most: int) -> None:
        offsets = segments.host_offsets
        lengths = np.diff(offsets)
        self._order = (-lengths).argsort(kind="stable")
        sorted_lengths = lengths[self._order].tolist()
        self.filled = int(np.count_nonzero(lengths))
        self._device = segments.offsets.device
        self.batch, self.count = segments.rows, segments.positions
        self.sorted = self.filled == len(lengths) and bool((self._order == np.arange(len(lengths))).all())
        self._plans = [
            _plan_bucket(offsets, self._order[span], sorted_lengths[span])
            for span in split_into_spans(sorted_lengths[: self.filled], most)
        ]
        plans = iter(
            put_all([array for plan in self._plans for array in plan.arrays if array is not None], self._device)
        )
        self.all = []
        for span, plan in zip(split_into_spans(sorted_lengths[: self.filled], most), self._plans):
            at, real, slots = (None if array is None else next(plans) for array in plan.arrays)
            self.all.append(Bucket(span, plan.longest, plan.start, at, real, slots))

    @classmethod
    def of(cls, segments: Segments, most: int) -> Buckets:
        """Return the buckets of a ragged batch, which are made once."""
        if ("buckets", most) not in segments.memo:
            segments.memo["buckets", most] = cls(segments, most)
        buckets: Buckets = segments.memo["buckets", most]
        return buckets

    @cached_property
    def rows(self) -> Tensor:
        """int64 ``[filled]``: the rows of all buckets, in order."""
        return self.every_row[: self.filled]

    @cached_property
    def every_row(self) -> Tensor:
        """int64 ``[B]``: the rows of all buckets, in order, then those without positions."""
        return put(self._order, self._device)

    @cached_property
    def every_row_back(self) -> Tensor:
        """int64 ``[B]``: the inverse of ``every_row``."""
        return put(invert(self._order), self._device)

    def gather(self, x_BW: Tensor) -> Tensor:
        """Return the entries of ``rows``."""
        return x_BW if self.sorted else x_BW.index_select(0, self.rows)

    def restore(self, y_W: Tensor) -> Tensor:
        """Return ``[B, ...]`` from the entries of ``rows``. Zero for rows without positions."""
        return y_W if self.sorted else y_W.new_zeros(self.batch, *y_W.shape[1:]).index_copy(0, self.rows, y_W)

    @cached_property
    def positions(self) -> Tensor:
        """int64 ``[N]``: all positions, bucket by bucket."""
        return put(self._positions, self._device)

    @cached_property
    def positions_back(self) -> Tensor:
        """int64 ``[N]``: the inverse of ``positions``."""
        return put(invert(self._positions), self._device)

    @cached_property
    def _positions(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, np.int64), *(plan.own for plan in self._plans)])

    @cached_property
    def sizes(self) -> list[int]:
        """Number of positions of each bucket, without padding."""
        return [len(plan.own) for plan in self._plans]


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
    offsets, host = segments.offsets, segments.host_offsets
    inside = np.searchsorted(host, np.arange(0, segments.positions, most)[1:])
    cuts = sorted({0, *inside.tolist(), segments.rows})
    rows = [stop - first for first, stop in pairwise(cuts)]
    positions = [stop - first for first, stop in pairwise(host[cuts].tolist())]
    chunks = [
        Segments(
            offsets[first : stop + 1] - offsets[first],
            stop - first,
            count,
            host=host[first : stop + 1] - host[first],
        )
        for (first, stop), count in zip(pairwise(cuts), positions)
    ]
    return rows, positions, chunks


def split_into_spans(lengths: list[int], most: int, waste: float = _WASTE) -> list[slice]:
    """Return the rows of each bucket. ``lengths`` are in descending order.

    Args:
        most: maximum number of slots of a bucket, unless a single row has more.
        waste: maximum share of padded slots in a bucket, beside those that cost less than a bucket.
    """
    spans, first, real = [], 0, 0
    for at, length in enumerate(lengths):
        whole = (at - first + 1) * lengths[first]
        if at > first and (whole > most or whole - real - length > waste * whole + _FREE):
            spans.append(slice(first, at))
            first, real = at, 0
        real += length
    return [*spans, slice(first, len(lengths))] if lengths else []


@dataclass(frozen=True)
class _Plan:
    """Arrays of a bucket, as its attributes of these names, and its positions without padding."""

    longest: int
    own: NDArray[np.int64]
    start: int = 0
    arrays: tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None] = (None, None, None)


def _plan_bucket(offsets: NDArray[np.int64], rows: NDArray[np.int64], lengths: list[int]) -> _Plan:
    longest, starts = lengths[0], offsets[rows]
    at = (offsets[rows + 1] - longest)[:, None] + np.arange(longest)
    if lengths[-1] == longest:
        own = at.ravel()
        if (np.diff(rows) == 1).all():
            return _Plan(longest, own, int(starts[0]))
        return _Plan(longest, own, arrays=(own, None, None))
    real = at >= starts[:, None]
    slots = real.ravel().nonzero()[0]
    at = np.maximum(at, starts[:, None]).ravel()
    return _Plan(longest, at[slots], arrays=(at, real, slots))
