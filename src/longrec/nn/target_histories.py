"""Histories of the targets of a batch: each target reads stored events of its request, up to its own last one.

A batch holds each event once, however many targets read it. Layers whose results depend on the target, such as
positions counted from its newest event, run on copies: one per target and event. Targets are ordered by the length of
their histories, so that those of similar length are adjacent.

Shapes: T targets, N stored positions, M positions of all targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from longrec.features.batch import Batch
from longrec.nn.host_plans import invert, put
from longrec.nn.segments import Segments


@dataclass(frozen=True)
class TargetHistories:
    """The histories of all targets.

    Attributes:
        order: int64 ``[T]``, the target of each row, longest histories first.
        back: int64 ``[T]``, the row of each target.
        stored: int64 ``[M]``, the stored position that each position copies.
        segments: T rows over M positions.
    """

    order: Tensor
    back: Tensor
    stored: Tensor
    segments: Segments

    @classmethod
    def of(cls, batch: Batch, history: str) -> TargetHistories:
        """Return the histories of the targets of a batch. They are made from the offsets on the host."""
        targets, events = batch.targets, batch.histories[history]
        assert targets is not None
        offsets, state = events.host_offsets, targets.host_state
        if targets.per_position:
            first, stop = offsets[np.searchsorted(offsets, state, side="right") - 1], state + 1
        else:
            first, stop = offsets[state], offsets[state + 1]
        order = (first - stop).argsort(kind="stable")
        first, lengths = first[order], (stop - first)[order]
        bounds = np.append(0, np.cumsum(lengths))
        stored = np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], lengths)
        device = events.offsets.device
        segments = Segments.of_offsets(bounds, device)
        return cls(put(order, device), put(invert(order), device), put(stored, device), segments)
