"""Causal self-attention: each event of a row attends to itself and to the earlier events of its row.

    o_i = sum_{j <= i} softmax_{j <= i}(q_i . k_j / sqrt(d)) v_j                    in each head

Queries, keys and values are flat over the positions of a batch, and so is the result. In between, rows of similar
length are put into rectangles. A row begins at the first slot, so that padding comes after all of its events: causality
hides it from them, and no mask is needed. The results of padded slots are dropped, so their gradients are zero.

Shapes: B rows, N positions, S slots of all rectangles, R rows of a rectangle, T events of its longest row, H heads,
X width of all heads, Q = 3 X width of their queries, keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn import kernels
from longrec.nn.host_plans import put_all
from longrec.nn.length_buckets import split_into_spans
from longrec.nn.padding import Pad
from longrec.nn.segments import Segments

_MAX_SLOTS = 16_384
"""Maximum number of slots of a rectangle, unless a single row has more."""
_WASTE = 0.25
"""Maximum share of padded slots in a rectangle. Only the attention itself is computed on them."""


def attend_to_earlier(qkv_NQ: Float[Tensor, "N Q"], segments: Segments, heads: int) -> Float[Tensor, "N X"]:
    """Return the attention of each position to its own and the earlier positions of its row.

    Args:
        qkv_NQ: queries, keys and values, concatenated.
        segments: rows that share no positions, or one shared history, which is one row.
    """
    if segments.shared:
        if kernels.is_traced():
            return _attend_traced(qkv_NQ, heads)
        return _attend(qkv_NQ, 1, len(qkv_NQ), heads) if len(qkv_NQ) else qkv_NQ[:, : qkv_NQ.shape[1] // 3]
    plan = _Rectangles.of(segments)
    if not plan.shapes:
        return qkv_NQ[:, : qkv_NQ.shape[1] // 3]
    if plan.from_flat is not None:
        qkv_NQ = Pad.apply(qkv_NQ, plan.from_flat, plan.to_flat)  # type: ignore[no-untyped-call]
    chunks = torch.split(qkv_NQ, [rows * longest for rows, longest in plan.shapes])
    outputs = [_attend(chunk, *shape, heads) for chunk, shape in zip(chunks, plan.shapes)]
    o_SX = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if plan.to_flat is None:
        return o_SX
    out: Tensor = _Drop.apply(o_SX, plan.to_flat)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class _Rectangles:
    """Rectangles of the rows of a ragged batch. Rows without positions are in none.

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
    def of(cls, segments: Segments) -> _Rectangles:
        """Return the rectangles of ragged segments, which are made once."""
        if "rectangles" not in segments.memo:
            segments.memo["rectangles"] = cls._plan(segments)
        rectangles: _Rectangles = segments.memo["rectangles"]
        return rectangles

    @classmethod
    def _plan(cls, segments: Segments) -> _Rectangles:
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


def _attend(qkv_SQ: Tensor, rows: int, longest: int, heads: int) -> Tensor:
    """``[R T, X]`` of one rectangle."""
    width = qkv_SQ.shape[1] // 3
    q, k, v = qkv_SQ.view(rows, longest, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind()
    o_RHTd = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return o_RHTd.transpose(1, 2).reshape(rows * longest, width)


def _attend_traced(qkv_TQ: Tensor, heads: int) -> Tensor:
    """``[T, X]`` of one row, in operators that every runtime supports, for any T."""
    length, width = qkv_TQ.shape[0], qkv_TQ.shape[1] // 3
    q, k, v = qkv_TQ.view(length, 3, heads, width // heads).permute(1, 2, 0, 3).unbind()
    rank_T = torch.arange(length, device=qkv_TQ.device)
    later_TT = rank_T.unsqueeze(0) > rank_T.unsqueeze(1)
    s_HTT = torch.matmul(q, k.transpose(1, 2)) * (width // heads) ** -0.5
    w_HTT = s_HTT.masked_fill(later_TT, -torch.inf).softmax(2)
    return torch.matmul(w_HTT.to(v.dtype), v).transpose(0, 1).reshape(length, width)


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
