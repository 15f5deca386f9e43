"""Padding of flat rows into slots, with an exact gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Pad(torch.autograd.Function):
    """``x[from_flat]``. The gradient is gathered from real slots only, because that of padded slots is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, from_flat: Tensor, to_flat: Tensor) -> Tensor:
        """Return the value of each slot."""
        ctx.save_for_backward(to_flat)
        return x.index_select(0, from_flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of each row, from its own slot."""
        (to_flat,) = ctx.saved_tensors
        return g.index_select(0, to_flat), None, None
