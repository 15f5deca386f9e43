"""Sums over the positions of ragged rows, with gradients written by hand.

Each function takes the segments of a batch (``nn/segments.py``) and reads their ``row``, ``rows`` and ``add_up``.

Shapes: B rows, N positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = Any
"""``Segments``, which import this file."""


def expand(x_BD: Tensor, segments: Rows) -> Tensor:
    """Return ``x[row]``: ``[N, D]`` from ``[B, D]``."""
    out: Tensor = _Expand.apply(x_BD, segments)  # type: ignore[no-untyped-call]
    return out


def add_up(v_ND: Tensor, segments: Rows) -> Tensor:
    """Return the sum of each row's positions, ``[B, D]``."""
    out: Tensor = _Sum.apply(v_ND, segments)  # type: ignore[no-untyped-call]
    return out


def weighted_sum(w_N: Tensor, k_ND: Tensor, segments: Rows) -> Tensor:
    """Return the weighted sum of each row's positions, ``[B, D]``."""
    out: Tensor = _WeightedSum.apply(w_N, k_ND, segments)  # type: ignore[no-untyped-call]
    return out


def softmax(s_N: Tensor, segments: Rows) -> Tensor:
    """Return the softmax of the scores of each row, ``[N]``."""
    out: Tensor = _Softmax.apply(s_N, segments)  # type: ignore[no-untyped-call]
    return out


def softmax_with_null(s_N: Tensor, null_B: Tensor, segments: Rows) -> tuple[Tensor, Tensor]:
    """Return the softmax of the scores of each row and one null score per row, ``[N]`` and ``[B]``."""
    out: tuple[Tensor, Tensor] = _SoftmaxWithNull.apply(s_N, null_B, segments)  # type: ignore[no-untyped-call]
    return out


class _Expand(torch.autograd.Function):
    """``x[row]``. Its gradient is the sum over the positions of each row."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, segments: Rows) -> Tensor:
        ctx.segments = segments
        return x_BD.index_select(0, segments.row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_ND: Tensor) -> tuple[Tensor, None]:
        return ctx.segments.add_up(g_ND.contiguous()), None


class _Sum(torch.autograd.Function):
    """``zeros(B, D).index_add(0, row, v)``."""

    @staticmethod
    def forward(ctx: Any, v_ND: Tensor, segments: Rows) -> Tensor:
        ctx.segments = segments
        return segments.add_up(v_ND.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BD: Tensor) -> tuple[Tensor, None]:
        return g_BD.index_select(0, ctx.segments.row), None


class _WeightedSum(torch.autograd.Function):
    """``zeros(B, D).index_add(0, row, w[:, None] * k)``."""

    @staticmethod
    def forward(ctx: Any, w_N: Tensor, k_ND: Tensor, segments: Rows) -> Tensor:
        ctx.segments = segments
        ctx.save_for_backward(w_N, k_ND)
        return segments.add_up(k_ND.contiguous(), w_N.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BD: Tensor) -> tuple[Tensor, Tensor, None]:
        w_N, k_ND = ctx.saved_tensors
        g_ND = g_BD.index_select(0, ctx.segments.row)
        g_w = (g_ND * k_ND).sum(1)
        return g_w, g_ND.mul_(w_N.unsqueeze(1)), None


def compute_softmax(s_N: Tensor, segments: Rows) -> Tensor:
    """Return ``exp(s - max) / sum`` in each row, without a gradient."""
    top_B = s_N.new_zeros(segments.rows).scatter_reduce(0, segments.row, s_N, "amax", include_self=False)
    w_N = (s_N - top_B.index_select(0, segments.row)).exp_()
    total_B = segments.add_up(w_N.unsqueeze(1)).squeeze(1)
    return w_N.div_(total_B.index_select(0, segments.row))


def differentiate_softmax(w_N: Tensor, g_N: Tensor, segments: Rows) -> Tensor:
    """Return the gradient of the scores from that of the weights: ``w * (g - sum of w g in the row)``."""
    product_N = w_N * g_N
    total_B = segments.add_up(product_N.unsqueeze(1)).squeeze(1)
    return product_N - w_N * total_B.index_select(0, segments.row)


class _Softmax(torch.autograd.Function):
    """``compute_softmax`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, s_N: Tensor, segments: Rows) -> Tensor:
        w_N = compute_softmax(s_N, segments)
        ctx.segments = segments
        ctx.save_for_backward(w_N)
        return w_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor, None]:
        return differentiate_softmax(ctx.saved_tensors[0], g_N, ctx.segments), None


class _SoftmaxWithNull(torch.autograd.Function):
    """``exp(s - max) / sum`` in each row, where the null score of the row is included in both."""

    @staticmethod
    def forward(ctx: Any, s_N: Tensor, null_B: Tensor, segments: Rows) -> tuple[Tensor, Tensor]:
        top_B = null_B.scatter_reduce(0, segments.row, s_N, "amax", include_self=True)
        w_N, own_B = (s_N - top_B.index_select(0, segments.row)).exp_(), (null_B - top_B).exp_()
        total_B = segments.add_up(w_N.unsqueeze(1)).squeeze(1) + own_B
        w_N.div_(total_B.index_select(0, segments.row))
        own_B.div_(total_B)
        ctx.segments = segments
        ctx.save_for_backward(w_N, own_B)
        return w_N, own_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor, g_B: Tensor) -> tuple[Tensor, Tensor, None]:
        w_N, own_B = ctx.saved_tensors
        product_N, product_B = w_N * g_N, own_B * g_B
        total_B = ctx.segments.add_up(product_N.unsqueeze(1)).squeeze(1) + product_B
        return product_N - w_N * total_B.index_select(0, ctx.segments.row), product_B - own_B * total_B, None
