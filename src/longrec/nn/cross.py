"""Cross network of DCN (version 1).

Shapes: B rows, D width, L layers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """``x_{l+1} = x_0 (x_l . w_l) + b_l + x_l`` (Wang et al. 2017, eq. 3), with 2 D parameters per layer."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        # Initialized as a linear layer of `width` inputs and one output.
        self.weight = nn.Parameter(torch.empty(layers, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Apply all layers. The outer product of eq. 3 is never built."""
        x0_BD = x_BD
        for w_D, b_D in zip(self.weight, self.bias):
            x_BD = x0_BD * (x_BD @ w_D).unsqueeze(1) + b_D + x_BD
        return x_BD
