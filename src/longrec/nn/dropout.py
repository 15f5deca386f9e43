"""Dropout with 16 random bits per number, which are drawn 10 times as fast on the CPU as those of torch.

The rate is rounded to a multiple of 2^-16, and the scale is that of the rounded rate, so that the mean is exact. On
other devices and in a traced program it is the dropout of torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn import kernels

_LEVELS = 2**16
_MIN_NUMBERS = 4_096
"""Number of entries from which it is faster."""


class Dropout(nn.Dropout):
    """``nn.Dropout``, computed by ``dropout``."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout in training."""
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, rate: float) -> Tensor:
    """Return ``x`` with a share of its entries set to zero, and the others scaled so that the mean is the same."""
    dropped = round(rate * _LEVELS)
    if not dropped:
        return x
    if kernels.choose(x, casts=False) != "cpu" or x.numel() < _MIN_NUMBERS or dropped == _LEVELS:
        return F.dropout(x, rate)
    out: Tensor = _Dropout.apply(x, dropped)  # type: ignore[no-untyped-call]
    return out


class _Dropout(torch.autograd.Function):
    """``x * mask``, where an entry of the mask is 0 or the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()] >= dropped - _LEVELS // 2
        mask = kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped)).view(x.shape)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return g * mask, None
