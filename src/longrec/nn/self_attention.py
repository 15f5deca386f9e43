"""Causal self-attention: each event of a row attends to itself and to the earlier events of its row.

    o_i = sum_{j <= i} softmax_{j <= i}(q_i . k_j / sqrt(d)) v_j                    in each head

Queries, keys and values are flat over the positions of a batch, and so is the result. In between, rows of similar
length are put into rectangles (``nn/rectangles.py``), in which causality hides the padding and no mask is needed.

Shapes: N positions, R rows of a rectangle, T events of its longest row, H heads, X width of all heads, Q = 3 X width of
their queries, keys and values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from longrec.nn import kernels
from longrec.nn.rectangles import Rectangles
from longrec.nn.segments import Segments


def attend_to_earlier(qkv_NQ: Float[Tensor, "N Q"], segments: Segments, heads: int) -> Float[Tensor, "N X"]:
    """Return the attention of each position to its own and the earlier positions of its row.

    Args:
        qkv_NQ: queries, keys and values, concatenated.
        segments: rows that share no positions, or one shared history, which is one row.
    """
    if segments.shared and kernels.is_traced():
        return _attend_traced(qkv_NQ, heads)
    plan = Rectangles.of(segments)
    if not plan.shapes:
        return qkv_NQ[:, : qkv_NQ.shape[1] // 3]
    return plan.restore([_attend(qkv_RTQ, heads) for qkv_RTQ in plan.fill(qkv_NQ)])


def _attend(qkv_RTQ: Tensor, heads: int) -> Tensor:
    """``[R, T, X]`` of one rectangle."""
    rows, longest, width = qkv_RTQ.shape[0], qkv_RTQ.shape[1], qkv_RTQ.shape[2] // 3
    q, k, v = qkv_RTQ.view(rows, longest, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind()
    o_RHTd = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return o_RHTd.transpose(1, 2).reshape(rows, longest, width)


def _attend_traced(qkv_TQ: Tensor, heads: int) -> Tensor:
    """``[T, X]`` of one row, in operators that every runtime supports, for any T."""
    length, width = qkv_TQ.shape[0], qkv_TQ.shape[1] // 3
    q, k, v = qkv_TQ.view(length, 3, heads, width // heads).permute(1, 2, 0, 3).unbind()
    rank_T = torch.arange(length, device=qkv_TQ.device)
    later_TT = rank_T.unsqueeze(0) > rank_T.unsqueeze(1)
    s_HTT = torch.matmul(q, k.transpose(1, 2)) * (width // heads) ** -0.5
    w_HTT = s_HTT.masked_fill(later_TT, -torch.inf).softmax(2)
    return torch.matmul(w_HTT.to(v.dtype), v).transpose(0, 1).reshape(length, width)
