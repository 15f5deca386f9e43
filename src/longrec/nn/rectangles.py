"""Rectangles: rows of similar length, for what each event computes from the earlier events of its row.

A row begins at the first slot of its rectangle, so that padding comes after all of its events: causality hides it from
them. The results of padded slots are dropped, so their gradients are zero.

Shapes: B rows, N positions, S slots of all rectangles, R rows of a rectangle, T events of its longest row, X width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn.host_plans import put_all
from longrec.nn.length_buckets import split_into_spans
from longrec.nn.padding import Pad
from longrec.nn.segments import Segments

_MAX_SLOTS = 16_384
"""Maximum number of slots of a rectangle, unless a single row has more."""
_WASTE = 0.25
"""Maximum share of padded slots in a rectangle. Only what is computed between events is computed on them."""


@dataclass(frozen=True)
class Rectangles:
    """Rectangles of the rows of a batch. Rows without positions are in none.

    Attributes:
        shapes: (R, T) of each rectangle, longest rows first.
        from_flat: int64 ``[S]``: the position in each slot, the last one of its row in a padded slot. None: the
            positions in their order.
        to_flat: int64 ``[N]``: the slot of each position.
    """

    shapes: list[tuple[int, int]]
    from_flat: Tensor | None = None
    to_flat: Tensor | None = None

    @classmethod
    def of(cls, segments: Segments) -> Rectangles:
        """Return the rectangles of rows that share no positions, which are made once, or of one shared history."""
        if "rectangles" not in segments.memo:
            segments.memo["rectangles"] = cls._plan(segments)
        rectangles: Rectangles = segments.memo["rectangles"]
        return rectangles

    @classmethod
    def _plan(cls, segments: Segments) -> Rectangles:
        if segments.shared:
            return cls([(1, segments.positions)] if segments.positions else [])
        offsets = segments.host_offsets
        lengths_B = np.diff(offsets)
        order = (-lengths_B).argsort(kind="stable")[: np.count_nonzero(lengths_B)]
        start_B, lengths_B = offsets[order], lengths_B[order]
        shapes: list[tuple[int, int]] = []
        positions: list[NDArray[np.int64]] = []
        slots = np.empty(segments.positions, np.int64)
        first = 0
        for span in split_into_spans(lengths_B.tolist(), _MAX_SLOTS, _WASTE):
            rows, longest = span.stop - span.start, int(lengths_B[span.start])
            rank_T = np.arange(longest)
            real_RT = rank_T < lengths_B[span, None]
            at_RT = start_B[span, None] + np.minimum(rank_T, lengths_B[span, None] - 1)
            slots[at_RT[real_RT]] = first + np.flatnonzero(real_RT)
            shapes.append((rows, longest))
            positions.append(at_RT.ravel())
            first += rows * longest
        if first == segments.positions and bool((slots == np.arange(first)).all()):
            return cls(shapes)
        return cls(shapes, *put_all([np.concatenate(positions), slots], segments.offsets.device))

    def fill(self, x_NX: Shaped[Tensor, "N X"]) -> list[Tensor]:
        """Return the values of the slots of each rectangle, ``[R, T, X]``."""
        if self.from_flat is not None:
            x_NX = Pad.apply(x_NX, self.from_flat, self.to_flat)  # type: ignore[no-untyped-call]
        chunks = torch.split(x_NX, [rows * longest for rows, longest in self.shapes])
        return [chunk.view(*shape, x_NX.shape[1]) for chunk, shape in zip(chunks, self.shapes)]

    def restore(self, every_RTX: Sequence[Tensor]) -> Float[Tensor, "N X"]:
        """Return the values of the positions from those of the slots of each rectangle, ``[R, T, X]`` each."""
        chunks = [x_RTX.reshape(-1, x_RTX.shape[2]) for x_RTX in every_RTX]
        x_SX = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        if self.to_flat is None:
            return x_SX
        out: Tensor = _Drop.apply(x_SX, self.to_flat)  # type: ignore[no-untyped-call]
        return out


class _Drop(torch.autograd.Function):
    """``x[to_flat]``: the entries of real slots, each once. The gradient is copied, and zero in padded slots."""

    @staticmethod
    def forward(ctx: Any, x_SX: Tensor, to_flat: Tensor) -> Tensor:
        ctx.save_for_backward(to_flat)
        ctx.slots = len(x_SX)
        return x_SX.index_select(0, to_flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NX: Tensor) -> tuple[Tensor, None]:
        (to_flat,) = ctx.saved_tensors
        return g_NX.new_zeros(ctx.slots, g_NX.shape[1]).index_copy_(0, to_flat, g_NX), None
