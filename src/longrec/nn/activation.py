"""Activations by name, each written so that it exports well.

Letters: N rows or positions, H width.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Name = Literal["relu", "prelu", "dice", "sigmoid", "tanh", "gelu", "leaky_relu", "elu", "selu", "swish", "linear"]

_LEAK = 0.2
"""Slope of ``leaky_relu`` below zero, as in TensorFlow."""


def make(name: Name, width: int) -> nn.Module:
    """The activation of a layer of ``width`` units."""
    if name == "prelu":
        return PReLU(width)
    if name == "dice":
        return Dice(width)
    if name == "leaky_relu":
        return nn.LeakyReLU(_LEAK)
    plain: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        "elu": nn.ELU,
        "selu": nn.SELU,
        "swish": nn.SiLU,
        "linear": nn.Identity,
    }
    return plain[name]()


class BatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that takes a batch of one row, or none, in training too: by its running statistics."""

    def forward(self, x_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """Normalise every unit over the batch (training) or by the running statistics (evaluation)."""
        if self.training and x_NH.shape[0] < 2:
            mean, var = self.running_mean, self.running_var
            return nn.functional.batch_norm(x_NH, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x_NH)


class Dice(nn.Module):
    """``p x + (1 - p) alpha x`` with ``p = sigmoid((x - mean) / sqrt(var + eps))`` (Zhou et al. 2018, section 5.2).

    Mean and variance are those of the batch while training, running averages in evaluation, so that a score never
    depends on the rows scored with it. alpha starts at 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = BatchNorm(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """Gate every unit of every row."""
        p_NH = torch.sigmoid(self.norm(x_NH))
        return x_NH * (self.alpha + (1 - self.alpha) * p_NH)


class PReLU(nn.Module):
    """``relu(x) - w relu(-x)``: ``nn.PReLU`` without its operator, which onnxruntime runs several times slower.

    Written ``w x + (1 - w) relu(x)``: the same function in fewer passes over memory.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 0.25))

    def forward(self, x_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """Scale the negative part of every unit."""
        return self.weight * x_NH + (1 - self.weight) * torch.relu(x_NH)
