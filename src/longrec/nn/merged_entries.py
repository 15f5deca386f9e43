"""Merged entries of histories: each group of adjacent events becomes one, and a plan says where each is computed.

Groups are counted from the newest event of a row backwards, so that they depend on no other row of the batch, and the
oldest group is padded at its old end. Each row ends with entries of its own beside its events (``extra``). Entries are
flat over the rows, those with most entries first, and only attention puts them into rectangles of rows of similar
length, right-aligned on the newest entry.

While a program is traced, a size cannot depend on the length of the history. Then the number of groups is that of the
longest history, and a mask tells real entries from missing ones.

Shapes: R requests, C candidates, U stored positions (see nn/segments.py), G groups, K events of a group, N entries of
all requests, M those that later layers read, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.nn import kernels
from longrec.nn.host_plans import put
from longrec.nn.length_buckets import split_into_spans
from longrec.nn.segments import GroupedSegments, Segments

_MAX_SLOTS = 4_096
"""Maximum number of slots of a rectangle."""


@dataclass(frozen=True)
class Rectangle:
    """Rows of at most ``longest`` entries, right-aligned.

    Attributes:
        real: bool ``[rows, longest]``: slots with an entry. None: all.
        slots: int64: indices of the slots of the flat entries. None: all, in order.
    """

    rows: int
    longest: int
    real: Tensor | None = None
    slots: Tensor | None = None

    def fill(self, x_NW: Tensor) -> Tensor:
        """Return ``[rows, longest, W]`` of the flat entries. Zero where there is none."""
        if self.slots is not None:
            x_NW = x_NW.new_zeros(self.rows * self.longest, x_NW.shape[1]).index_copy(0, self.slots, x_NW)
        return x_NW.view(self.rows, self.longest, x_NW.shape[1])

    def flatten(self, x: Tensor) -> Tensor:
        """Return the flat entries ``[N, W]`` of ``[rows, longest, W]``."""
        x_NW = x.flatten(0, 1)
        return x_NW if self.slots is None else x_NW.index_select(0, self.slots)


@dataclass(frozen=True)
class Frame:
    """The rectangles of flat entries, and the number of entries of each."""

    rectangles: Sequence[Rectangle]
    sizes: Sequence[int]

    def fill(self, x_NW: Tensor) -> list[Tensor]:
        """Return the rectangles of flat entries."""
        chunks = [x_NW] if len(self.sizes) == 1 else torch.split(x_NW, list(self.sizes))
        return [rectangle.fill(chunk) for rectangle, chunk in zip(self.rectangles, chunks)]

    def flatten(self, every: Sequence[Tensor]) -> Tensor:
        """Return the flat entries of rectangles."""
        return torch.cat([rectangle.flatten(x) for rectangle, x in zip(self.rectangles, every)])


@dataclass(frozen=True)
class MergePlan:
    """Where the entries of a batch come from and where they are computed.

    Attributes:
        events_GK: int64: stored position of each event of each group, U where the oldest group is padded.
        padded_GK: bool mask of the padded events. None: no group is padded.
        age_G: int64: number of newer groups of its row.
        order_N: int64: order of the entries among ``[groups, extra entries of all requests]``. None: as they are.
        entries, recent: rectangles of all entries, and of those that later layers read.
        recent_M: int64: the latter among the former. None: all.
        candidates: rectangles of the candidates of each request.
        order_C, back_C: int64: order of candidates in them, and its inverse. None: as they are.
    """

    events_GK: Tensor
    padded_GK: Tensor | None
    age_G: Tensor
    order_N: Tensor | None
    entries: Frame
    recent: Frame
    recent_M: Tensor | None
    candidates: Frame
    order_C: Tensor | None = None
    back_C: Tensor | None = None

    def gather(self, e_UK: Tensor) -> Tensor:
        """Return the values of events in their groups, ``[G, K, W]``. 0 where padded."""
        if self.padded_GK is not None:
            e_UK = torch.cat([e_UK, e_UK.new_zeros(1, e_UK.shape[1])])
        return e_UK.index_select(0, self.events_GK.flatten()).view(*self.events_GK.shape, e_UK.shape[1])

    def spread(self, w_NC: Tensor, positions: int) -> Tensor:
        """Return ``[U, C]``, the weights of events: each has an equal share of its group's. 0 for those not read.

        Args:
            w_NC: weights of entries.
            positions: U.
        """
        if self.order_N is not None:
            w_NC = torch.empty_like(w_NC).index_copy(0, self.order_N, w_NC)
        groups, merge = self.events_GK.shape
        count_G = torch.full_like(self.age_G, merge) if self.padded_GK is None else merge - self.padded_GK.sum(1)
        w_GC = w_NC[:groups] / count_G.clamp(min=1).unsqueeze(1)
        # Padded events are written to one more position.
        w_UC = w_NC.new_zeros(positions + 1, w_NC.shape[1])
        return w_UC.index_copy(0, self.events_GK.flatten(), w_GC.repeat_interleave(merge, 0))[:positions]


def plan_merge(segments: Segments, merge: int, most: int, recent: int | None, extra: int) -> MergePlan:
    """Return the plan of a history, which is made once per batch.

    Args:
        merge: K.
        most: number of newest events that are read.
        recent: number of newest merged entries that later layers read beside the extra ones. None: all.
        extra: number of further entries of each row.
    """
    if segments.shared:
        return _plan_shared(segments, merge, most, recent, extra)
    key = "merged", merge, most, recent, extra
    if key not in segments.memo:
        segments.memo[key] = _plan_ragged(segments, merge, most, recent, extra)
    plan: MergePlan = segments.memo[key]
    return plan


def _plan_shared(segments: Segments, merge: int, most: int, recent: int | None, extra: int) -> MergePlan:
    traced, device, length = kernels.is_traced(), segments.offsets.device, segments.positions
    read = most if traced else min(length, most)
    groups = -(-read // merge)
    back = torch.arange(groups * merge, device=device)
    at = back + (length - groups * merge)
    padded_GK = None
    if traced or groups * merge > read:
        padded = (back < groups * merge - read) | (at < 0)
        at, padded_GK = torch.where(padded, length, at), padded.view(groups, merge)
    real = None
    if traced and padded_GK is not None:
        own = torch.ones(extra, dtype=torch.bool, device=device)
        real = torch.cat([~padded_GK[:, merge - 1], own]).unsqueeze(0)
    later = groups + extra if recent is None else min(groups, recent) + extra
    first = groups + extra - later
    return MergePlan(
        at.view(groups, merge),
        padded_GK,
        groups - 1 - torch.arange(groups, device=device),
        None,
        Frame([Rectangle(1, groups + extra, real)], [groups + extra]),
        Frame([Rectangle(1, later, real if real is None else real[:, first:])], [later]),
        torch.arange(first, groups + extra, device=device) if first else None,
        Frame([Rectangle(1, segments.rows)], [segments.rows]),
    )


def _plan_ragged(segments: Segments, merge: int, most: int, recent: int | None, extra: int) -> MergePlan:
    stored, device = segments.requests, segments.offsets.device
    offsets = stored.host_offsets
    lengths = np.minimum(np.diff(offsets), most)
    groups = -(-lengths // merge)
    order = (-groups).argsort(kind="stable")
    groups, lengths, stops = groups[order], lengths[order], offsets[1:][order]
    age_G = _count_down(groups)
    back_GK = age_G[:, None] * merge + np.arange(merge, 0, -1)
    padded_GK = back_GK > np.repeat(lengths, groups)[:, None]
    events_GK = np.where(padded_GK, stored.positions, np.repeat(stops, groups)[:, None] - back_GK)
    # The entries of a row are its groups, then its extra ones, which follow the groups of all rows.
    total, entries = int(groups.sum()), groups + extra
    down_N = _count_down(entries)
    group_N = np.arange(len(down_N)) - extra * np.repeat(np.arange(len(order)), entries)
    order_N = np.where(down_N >= extra, group_N, total + np.repeat(order, entries) * extra + extra - 1 - down_N)
    spans = split_into_spans(entries.tolist(), _MAX_SLOTS)
    later = entries if recent is None else np.minimum(groups, recent) + extra
    recent_M = None if later.sum() == entries.sum() else put((down_N < np.repeat(later, entries)).nonzero()[0], device)
    return MergePlan(
        put(events_GK, device),
        put(padded_GK, device) if padded_GK.any() else None,
        put(age_G, device),
        put(order_N, device),
        _frame(entries, spans, device),
        _frame(later, spans, device),
        recent_M,
        *_arrange_candidates(segments, order, spans, device),
    )


def _arrange_candidates(
    segments: Segments, order: NDArray[np.int64], spans: Sequence[slice], device: torch.device
) -> tuple[Frame, Tensor, Tensor]:
    """Return the rectangles of the candidates, their order in them, and its inverse."""
    owner = np.arange(segments.rows)
    if isinstance(segments, GroupedSegments):
        assert segments.layout.host_owner is not None
        owner = segments.layout.host_owner
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    order_C = rank[owner].argsort(kind="stable")
    back_C = np.empty_like(order_C)
    back_C[order_C] = np.arange(len(order_C))
    frame = _frame(np.bincount(owner, minlength=len(order))[order], spans, device)
    return frame, put(order_C, device), put(back_C, device)


def _count_down(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``count - 1, ..., 0`` of each row, one after the other."""
    return np.repeat(counts.cumsum(), counts) - 1 - np.arange(counts.sum())


def _frame(lengths: NDArray[np.int64], spans: Sequence[slice], device: torch.device) -> Frame:
    rectangles = [_rectangle(lengths[span], device) for span in spans]
    return Frame(rectangles, [int(lengths[span].sum()) for span in spans])


def _rectangle(lengths: NDArray[np.int64], device: torch.device) -> Rectangle:
    rows, longest = len(lengths), int(lengths.max())
    if lengths.min() == longest:
        return Rectangle(rows, longest)
    real = np.arange(longest) >= longest - lengths[:, None]
    return Rectangle(rows, longest, put(real, device), put(real.ravel().nonzero()[0], device))
