"""Activations by name, in forms that ONNX runs efficiently.

Shapes: N rows or positions, H width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn import kernels

ActivationName = Literal[
    "relu", "prelu", "dice", "sigmoid", "tanh", "gelu", "leaky_relu", "elu", "selu", "swish", "linear"
]

_LEAK = 0.2
"""Slope of ``leaky_relu`` below zero, as in TensorFlow."""


def make_activation(name: ActivationName, width: int) -> nn.Module:
    """Return the activation module of a layer of ``width`` units."""
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
    """``nn.BatchNorm1d`` whose running statistics begin with its first batch, and that accepts a batch of one row.

    PyTorch starts the running variance at 1 and moves it by a tenth of the difference per batch. New embeddings have a
    variance near 0, so the first validations would use statistics that no batch had. Here the running statistics are
    the mean over the first ten batches. After that they follow PyTorch's rule. A batch of fewer than two rows is
    normalized by the running statistics, in training too.
    """

    _batches: int = 0
    """What the buffer ``num_batches_tracked`` holds. On a GPU every read of the buffer would wait for the device."""

    def forward(self, x_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """Normalize every unit over the batch (training) or by the running statistics (evaluation)."""
        momentum, by_batch = self.momentum, self.training and x_NH.shape[0] >= 2
        assert momentum is not None
        if by_batch and self.num_batches_tracked is not None:
            momentum = max(momentum, 1 / (1 + self._batches))
            self._batches += 1
            self.num_batches_tracked.add_(1)
        mean, var = self.running_mean, self.running_var
        if kernels.is_vectorized() and mean is not None and var is not None:
            # As written, because vmap of the operator fixes the number of rows.
            scale = torch.rsqrt(var + self.eps) if self.weight is None else self.weight * torch.rsqrt(var + self.eps)
            return x_NH * scale + (-mean * scale if self.bias is None else self.bias - mean * scale)
        return nn.functional.batch_norm(x_NH, mean, var, self.weight, self.bias, by_batch, momentum, self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        count = state_dict.get(f"{prefix}num_batches_tracked")
        self._batches = self._batches if count is None else int(count)


class Dice(nn.Module):
    """``p x + (1 - p) alpha x`` with ``p = sigmoid((x - mean) / sqrt(var + eps))`` (Zhou et al. 2018, section 5.2).

    Mean and variance are those of the batch in training and running averages in evaluation, so a score never depends on
    the rows that are scored with it. alpha starts at 0.
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

    Computed as ``w x + (1 - w) relu(x)``: the same function in fewer passes over memory.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 0.25))

    def forward(self, x_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """Scale the negative values of every unit."""
        return self.weight * x_NH + (1 - self.weight) * torch.relu(x_NH)
