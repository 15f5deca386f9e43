"""RMS normalization (Zhang, Sennrich, NeurIPS 2019): ``x / sqrt(mean(x^2) + eps) * w``.

On the CPU its gradient is written by hand, which takes a third of the time of the formula.

Shapes: ... any, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn import kernels

_EPS = 1e-6


class RMSNorm(nn.Module):
    """RMS normalization of the last dimension. A zero stays zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized vectors, of the shape of ``x``."""
        if kernels.choose(x, casts=False) == "cpu" and x.dtype == torch.float32:
            out: Tensor = _RMSNorm.apply(x, self.weight)  # type: ignore[no-untyped-call]
            return out
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + _EPS).rsqrt() * self.weight).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """The formula with a hand-written gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_D: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scale = (torch.linalg.vector_norm(flat, dim=1, keepdim=True).square_() / flat.shape[1] + _EPS).rsqrt_()
        ctx.save_for_backward(flat, w_D, scale)
        return (flat * scale).mul_(w_D).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w_D, scale = ctx.saved_tensors
        flat = g.reshape(x.shape)
        y = x * scale
        g_w = (flat * y).sum(0)
        g_y = flat * w_D
        mean = (g_y * y).mean(1, keepdim=True)
        return g_y.addcmul_(y, mean, value=-1).mul_(scale).view(g.shape), g_w
