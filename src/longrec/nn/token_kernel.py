"""Attention of one query per row over adapted tokens, fused with the adaptation, with a hand-written gradient.

For every head h, with keys and values absorbed into u and into the layer that reads the result
(``nn/token_attention.py``):

    a_j  = relu(W x_j + b)                                                          (or a_j = x_j)
    s_jh = u_h . a_j + sum_g p_h[id_gj],    w_h = softmax over the row
    o_h  = sum_j w_jh a_j,                  c_h[r] = sum of w_jh over j, g with id_gj = r

It runs in buckets of rows of similar length that fit a cache. A position is read from memory once per direction, and no
tensor as large as the batch is allocated except the adapted tokens, which the gradient needs again. Only the adaptation
costs a matrix product per position.

Shapes: B rows, N positions, I width of x, A width of a, H heads, R ids of all side columns, G side columns, n = b T in
a bucket of b rows and T positions per row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn import gemm
from longrec.nn.length_buckets import Bucket, Buckets
from longrec.nn.segments import Segments

_MAX_POSITIONS = 4_096
"""Maximum number of positions of a bucket: at 64 numbers each, a second-level cache."""


def attend(
    x_NI: Float[Tensor, "N I"],
    adaptation: tuple[Tensor, Tensor] | None,
    ids_GN: Int[Tensor, "G N"],
    u_BHA: Float[Tensor, "B H A"],
    p_BHR: Float[Tensor, "B H R"],
    segments: Segments,
) -> tuple[Float[Tensor, "B H A"], Float[Tensor, "B H R"]]:
    """Return o and c of every row. 0 for a row without positions.

    Args:
        adaptation: W ``[A, I]`` and b ``[A]``. None if x is adapted already.
        ids_GN: indices into p.
        segments: of a ragged batch.
    """
    w_AI, b_A = adaptation or (None, None)
    outputs = _Attend.apply(x_NI, w_AI, b_A, ids_GN, u_BHA, p_BHR, segments)  # type: ignore[no-untyped-call]
    return cast("tuple[Tensor, Tensor]", outputs)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        w_AI: Tensor | None,
        b_A: Tensor | None,
        ids_GN: Tensor,
        u_BHA: Tensor,
        p_BHR: Tensor,
        segments: Segments,
    ) -> tuple[Tensor, Tensor]:
        buckets = Buckets.of(segments, _MAX_POSITIONS)
        u_BHA, p_BHR = buckets.gather(u_BHA), buckets.gather(p_BHR)
        o_BHA, c_BHR = torch.empty_like(u_BHA), torch.zeros_like(p_BHR)
        kept: list[Tensor] = []
        for bucket in buckets.all:
            rows, ids = bucket.rows, _gather_ids(ids_GN, bucket, u_BHA.shape[1])
            a_nA = _gather_content(x_NI, bucket)
            if w_AI is not None:
                a_nA = gemm.affine(a_nA, w_AI, b_A, relu=True)
            a_bTA = a_nA.view(-1, bucket.longest, a_nA.shape[1])
            s_bHT = _add_side_scores(p_BHR[rows], ids, u_BHA[rows], a_bTA)
            if bucket.real is not None:
                s_bHT.masked_fill_(~bucket.real.unsqueeze(1), -torch.inf)
            w_bHT = s_bHT.softmax(2)
            torch.bmm(w_bHT, a_bTA, out=o_BHA[rows])
            for at in ids:
                c_BHR[rows].scatter_add_(2, at, w_bHT)
            if any(ctx.needs_input_grad):
                kept += [a_nA, w_bHT]
        ctx.buckets = buckets
        ctx.save_for_backward(x_NI, w_AI, ids_GN, u_BHA, p_BHR, *kept)
        return buckets.restore(o_BHA), buckets.restore(c_BHR)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, go_BHA: Tensor, gc_BHR: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, w_AI, ids_GN, u_BHA, p_BHR, *kept = ctx.saved_tensors
        by_x, by_w = ctx.needs_input_grad[0], w_AI is not None
        gx_NI = torch.zeros_like(x_NI) if by_x else None
        gw_AI = torch.zeros_like(w_AI) if by_w else None
        gb_A = u_BHA.new_zeros(u_BHA.shape[2]) if by_w else None
        go_BHA, gc_BHR = ctx.buckets.gather(go_BHA.contiguous()), ctx.buckets.gather(gc_BHR.contiguous())
        gu_BHA, gp_BHR = torch.empty_like(u_BHA), torch.zeros_like(p_BHR)
        both_BXA = torch.cat([go_BHA, u_BHA], 1)
        for bucket, a_nA, w_bHT in zip(ctx.buckets.all, kept[::2], kept[1::2], strict=True):
            rows, ids = bucket.rows, _gather_ids(ids_GN, bucket, u_BHA.shape[1])
            a_bTA = a_nA.view(-1, bucket.longest, a_nA.shape[1])
            g_bHT = _add_side_scores(gc_BHR[rows], ids, go_BHA[rows], a_bTA)
            g_bHT = torch.ops.aten._softmax_backward_data(g_bHT, w_bHT, 2, w_bHT.dtype)
            torch.bmm(g_bHT, a_bTA, out=gu_BHA[rows])
            for at in ids:
                gp_BHR[rows].scatter_add_(2, at, g_bHT)
            # The gradients of value and key in one product.
            g_nA = gemm.allocate_rows(a_nA, *a_nA.shape)
            torch.bmm(torch.cat([w_bHT, g_bHT], 1).transpose(1, 2), both_BXA[rows], out=g_nA.view(a_bTA.shape))
            if gw_AI is not None and gb_A is not None:
                torch.ops.aten.threshold_backward.grad_input(g_nA, a_nA, 0, grad_input=g_nA)
                gw_AI.addmm_(g_nA.t(), _gather_content(x_NI, bucket))
                gb_A += g_nA.sum(0)
            if gx_NI is not None:
                g_nI = g_nA if w_AI is None else gemm.input_gradient(g_nA, w_AI)
                gx_NI[bucket.own] = g_nI if bucket.slots is None else g_nI[bucket.slots]
        return gx_NI, gw_AI, gb_A, None, ctx.buckets.restore(gu_BHA), ctx.buckets.restore(gp_BHR), None


def _gather_content(x_NI: Tensor, bucket: Bucket) -> Tensor:
    """Return ``[n, I]`` in memory with room for ``nn/gemm.py``."""
    if bucket.at is None:
        return x_NI[bucket.own]
    return torch.index_select(x_NI, 0, bucket.at, out=gemm.allocate_rows(x_NI, len(bucket), x_NI.shape[1]))


def _gather_ids(ids_GN: Tensor, bucket: Bucket, heads: int) -> list[Tensor]:
    """Return ``[b, H, T]`` per side column: the id of every position, repeated per head."""
    ids_Gn = ids_GN[:, bucket.own] if bucket.at is None else ids_GN.index_select(1, bucket.at)
    return [ids_n.view(-1, 1, bucket.longest).expand(-1, heads, -1) for ids_n in ids_Gn.unbind()]


def _add_side_scores(p_bHR: Tensor, ids: list[Tensor], u_bHA: Tensor, a_bTA: Tensor) -> Tensor:
    """Return ``[b, H, T]``: ``u_h . a_j + sum_g p_h[id_gj]``."""
    if not ids:
        return torch.bmm(u_bHA, a_bTA.transpose(1, 2))
    s_bHT = p_bHR.gather(2, ids[0])
    for at in ids[1:]:
        s_bHT += p_bHR.gather(2, at)
    return s_bHT.baddbmm_(u_bHA, a_bTA.transpose(1, 2))
