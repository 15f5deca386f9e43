"""A linear layer over many rows, with its ReLU.

The formula is ``relu(x w^T + b)``. In float32 training and evaluation it runs on ``nn/gemm.py`` with a hand-written
gradient. While a program is traced, under autocast, for few rows and on a GPU it is the plain formula.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn import gemm, kernels

_MIN_ROWS = 512


def use_plain_formula(x: Tensor) -> bool:
    """Return True if a formula over the rows of ``x`` should run as written, so that torch differentiates, traces and
    casts it.
    """
    return kernels.choose(x, _MIN_ROWS) != "cpu"


def linear(
    x_NI: Float[Tensor, "N I"], w_OI: Float[Tensor, "O I"], b_O: Float[Tensor, " O"] | None = None, relu: bool = False
) -> Float[Tensor, "N O"]:
    """Return ``x w^T + b``, or its ReLU."""
    if use_plain_formula(x_NI):
        y_NO = F.linear(x_NI, w_OI, b_O)
        return y_NO.relu() if relu else y_NO
    out: Tensor = _LinearFunction.apply(x_NI, w_OI, b_O, relu)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Linear):
    """``nn.Linear`` for ``[N, I]`` inputs, computed by ``linear``."""

    def forward(self, x_NI: Float[Tensor, "N I"], relu: bool = False) -> Float[Tensor, "N O"]:
        """Apply the layer, followed by a ReLU with ``relu``."""
        return linear(x_NI, self.weight, self.bias, relu)


class _LinearFunction(torch.autograd.Function):
    """``relu(x w^T + b)`` with a hand-written gradient."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, w_OI: Tensor, b_O: Tensor | None, relu: bool) -> Tensor:
        y_NO = gemm.affine(x_NI, w_OI, b_O, relu=relu)
        ctx.relu, ctx.has_bias = relu, b_O is not None
        ctx.save_for_backward(x_NI, w_OI, y_NO if relu else None)
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, w_OI, y_NO = ctx.saved_tensors
        by_x, by_w, _, _ = ctx.needs_input_grad
        if ctx.relu:
            g_NO = relu_gradient(g_NO, y_NO)
        g_NO = g_NO.contiguous()
        return (
            gemm.input_gradient(g_NO, w_OI) if by_x else None,
            gemm.weight_gradient(g_NO, x_NI) if by_w else None,
            g_NO.sum(0) if ctx.has_bias else None,
            None,
        )


def relu_gradient(g_NO: Tensor, y_NO: Tensor) -> Tensor:
    """Return the gradient where the output of a ReLU is positive, in memory with room for ``nn/gemm.py``."""
    into = gemm.allocate_rows(g_NO, *g_NO.shape)
    torch.ops.aten.threshold_backward.grad_input(g_NO, y_NO, 0, grad_input=into)
    return into
