"""Multi-layer perceptron.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn.activation import ActivationName, BatchNorm, make_activation
from longrec.nn.linear import Linear


class MLP(nn.Module):
    """Layers of linear, batch normalization, activation and dropout, with an optional final linear layer.

    Args:
        inputs: width of the input.
        widths: units of the hidden layers.
        dropout: dropout rate of every hidden layer, or one rate per layer.
        batch_norm: normalize before the activation (the layer then has no bias of its own).
        outputs: units of a final linear layer, or None to end with the last hidden layer.
        last_bias: add a bias to that final layer (a model that sums several terms needs only one bias).
        last_gain: factor of the initial weights of that final layer. Below 1 the first outputs are close to its bias.

    Attributes:
        width: units of the last hidden layer (the inputs without hidden layers).
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        activation: ActivationName = "relu",
        dropout: float | Sequence[float] = 0.0,
        batch_norm: bool = False,
        outputs: int | None = None,
        last_bias: bool = True,
        last_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        shares = [dropout] * len(widths) if isinstance(dropout, int | float) else dropout
        for width, share in zip(widths, shares, strict=True):
            self.layers.append(Layer(inputs, width, activation, share, batch_norm))
            inputs = width
        self.width = inputs
        self.last = None if outputs is None else Linear(inputs, outputs, bias=last_bias)
        if self.last is not None and last_gain != 1.0:
            with torch.no_grad():
                self.last.weight.mul_(last_gain)
        self.outputs = inputs if outputs is None else outputs

    @property
    def output_bias(self) -> Tensor:
        """The bias of the final linear layer."""
        assert self.last is not None, "no final layer"
        return self.last.bias

    def forward(self, x_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """Apply all layers."""
        h_NH = self.hidden(x_NI)
        return h_NH if self.last is None else self.last(h_NH)

    def hidden(self, x_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N H"]:
        """Return the output of the last hidden layer, before the final linear layer."""
        for layer in self.layers:
            x_NI = layer(x_NI)
        return x_NI


class Layer(nn.Module):
    """One hidden layer."""

    def __init__(self, inputs: int, width: int, activation: ActivationName, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.linear = Linear(inputs, width, bias=not batch_norm)
        self.norm = BatchNorm(width) if batch_norm else None
        # A ReLU that directly follows the product is fused with it.
        self.fused = activation == "relu" and not batch_norm
        self.activation = None if self.fused else make_activation(activation, width)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """Apply the layer."""
        x_NO: Tensor = self.linear(x_NI, relu=self.fused)
        for step in (self.norm, self.activation, self.dropout):
            if step is not None:
                x_NO = step(x_NO)
        return x_NO

    def split_relu(self) -> None:
        """Let a ReLU run after the product, not fused with it, so that something can be added between both."""
        if self.fused:
            self.fused, self.activation = False, nn.ReLU()
