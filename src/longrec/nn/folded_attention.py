r"""Attention of one query per row over its events, without keys and values of the events.

With one query per row, the projections of keys and values move from the events to the query and to the result:

    q . (W^K x_j) = (W^K^T q) . x_j,      sum_j w_j (W^V x_j) = W^V (sum_j w_j x_j)         in each head

An event then takes 4 H D operations instead of 4 X D for X outputs of all heads. A query and a result per row take as
many as one event took before. The row's own entry y (a candidate among its events) is one more event.

Shapes: B rows in bucket order, N positions, R rows of a bucket, T events of its longest row, H heads, D width of an
event, d outputs of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn.length_buckets import Bucket


def attend(
    q_BHd: Tensor, x_ND: Tensor, y_BD: Tensor | None, w_k: Tensor, w_v: Tensor, buckets: list[Bucket]
) -> tuple[Tensor, Tensor]:
    """Return the results of each row, ``[B, H d]``, and the weights of the events, mean over heads, ``[N]``.

    Weights have no gradient. The result of a row without events is that of its own entry, else 0.

    Args:
        q_BHd: queries with their scale.
        x_ND: events in bucket order.
        y_BD: the row's own entry.
        w_k, w_v: ``[H d, D]``.
    """
    rows, heads, size = q_BHd.shape
    folded_HBD = torch.bmm(q_BHd.transpose(0, 1), w_k.view(heads, size, -1))
    pooled_BHD, w_N = _FoldedAttention.apply(  # type: ignore[no-untyped-call]
        folded_HBD.transpose(0, 1).contiguous(), x_ND, y_BD, buckets
    )
    o_HBd = torch.bmm(pooled_BHD.transpose(0, 1), w_v.view(heads, size, -1).transpose(1, 2))
    return o_HBd.transpose(0, 1).reshape(rows, heads * size), w_N


class _FoldedAttention(torch.autograd.Function):
    """``softmax(q x^T) x`` in every bucket, with a hand-written gradient."""

    @staticmethod
    def forward(
        ctx: Any, q_BHD: Tensor, x_ND: Tensor, y_BD: Tensor | None, buckets: list[Bucket]
    ) -> tuple[Tensor, Tensor]:
        filled = buckets[-1].rows.stop if buckets else 0
        pooled_BHD, weights, every = torch.empty_like(q_BHD), [x_ND[:0, 0]], []
        pooled_BHD[filled:] = 0.0 if y_BD is None else y_BD[filled:].unsqueeze(1)
        for bucket, x_nD in zip(buckets, _split(x_ND, buckets)):
            x_RTD, q_RHD = bucket.pad(x_nD), q_BHD[bucket.rows]
            s_RHT = torch.bmm(q_RHD, x_RTD.transpose(1, 2))
            if bucket.real is not None:
                s_RHT.masked_fill_(~bucket.real.unsqueeze(1), -torch.inf)
            p_RHD = pooled_BHD[bucket.rows]
            if y_BD is None:
                w_RHT = s_RHT.softmax(2)
                torch.bmm(w_RHT, x_RTD, out=p_RHD)
                every.append(w_RHT)
            else:
                y_R1D = y_BD[bucket.rows].unsqueeze(1)
                w_RHt = torch.cat([s_RHT, (q_RHD * y_R1D).sum(2, keepdim=True)], 2).softmax(2)
                w_RHT = w_RHt[:, :, :-1]
                torch.bmm(w_RHT, x_RTD, out=p_RHD)
                p_RHD.addcmul_(w_RHt[:, :, -1:], y_R1D)
                every.append(w_RHt)
            mean_n = w_RHT.mean(1).flatten()
            weights.append(mean_n if bucket.slots is None else mean_n.index_select(0, bucket.slots))
        w_N = torch.cat(weights)
        ctx.buckets, ctx.own = buckets, y_BD is not None
        ctx.save_for_backward(q_BHD, x_ND, y_BD, *every)
        ctx.mark_non_differentiable(w_N)
        return pooled_BHD, w_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BHD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q_BHD, x_ND, y_BD, *every = ctx.saved_tensors
        buckets, heads, g_BHD = ctx.buckets, q_BHD.shape[1], g_BHD.contiguous()
        g_q, g_x = torch.zeros_like(q_BHD), torch.empty_like(x_ND)
        # A row without events hands its own entry on.
        g_y: Any = g_BHD.sum(1) if ctx.own else None
        for bucket, w_RHt, x_nD, out_nD in zip(buckets, every, _split(x_ND, buckets), _split(g_x, buckets)):
            x_RTD, q_RHD, g_RHD = bucket.pad(x_nD), q_BHD[bucket.rows], g_BHD[bucket.rows]
            w_RHT = w_RHt[:, :, :-1] if ctx.own else w_RHt
            weighted_RHT = torch.bmm(g_RHD, x_RTD.transpose(1, 2)).mul_(w_RHT)
            total_RH1 = weighted_RHT.sum(2, keepdim=True)
            if ctx.own:
                y_R1D, w_RH1 = y_BD[bucket.rows].unsqueeze(1), w_RHt[:, :, -1:]
                own_RH1 = (g_RHD * y_R1D).sum(2, keepdim=True).mul_(w_RH1)
                total_RH1 += own_RH1
                own_RH1.addcmul_(w_RH1, total_RH1, value=-1)
                g_y[bucket.rows] = (own_RH1 * q_RHD).addcmul_(w_RH1, g_RHD).sum(1)
            both_RHT = torch.cat([weighted_RHT.addcmul_(w_RHT, total_RH1, value=-1), w_RHT], 1)
            gq_RHD = torch.bmm(both_RHT[:, :heads], x_RTD, out=g_q[bucket.rows])
            if ctx.own:
                gq_RHD.addcmul_(own_RH1, y_R1D)
            both_RHD = torch.cat([q_RHD, g_RHD], 1)
            if bucket.slots is None:
                torch.bmm(both_RHT.transpose(1, 2), both_RHD, out=out_nD.view(x_RTD.shape))
            else:
                gx_RTD = torch.bmm(both_RHT.transpose(1, 2), both_RHD)
                torch.index_select(gx_RTD.flatten(0, 1), 0, bucket.slots, out=out_nD)
        return g_q, g_x, g_y, None


def _split(x_ND: Tensor, buckets: list[Bucket]) -> list[Tensor]:
    """Return the events of each bucket, without padding."""
    sizes = [len(bucket) if bucket.slots is None else len(bucket.slots) for bucket in buckets]
    return list(torch.split(x_ND, sizes))
