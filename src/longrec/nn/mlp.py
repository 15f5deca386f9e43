"""Multi-layer perceptron.

Letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn.activation import BatchNorm, Name, make
from longrec.nn.linear import Linear


class MLP(nn.Module):
    """Layers of linear, batch normalisation, activation, dropout; and a last linear layer when ``outputs`` is given.

    Args:
        inputs: width of the input.
        widths: units of the hidden layers.
        batch_norm: normalise before the activation (the layer then has no bias of its own).
        outputs: units of a final linear layer, or None to end with the last hidden layer.
        last_bias: whether that final layer has a bias (a model of several summed parts wants one bias in all).
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        activation: Name = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        outputs: int | None = None,
        last_bias: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for width in widths:
            self.layers.append(_Layer(inputs, width, activation, dropout, batch_norm))
            inputs = width
        self.last = None if outputs is None else Linear(inputs, outputs, bias=last_bias)
        self.outputs = inputs if outputs is None else outputs

    def forward(self, x_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """Apply all layers."""
        for layer in self.layers:
            x_NI = layer(x_NI)
        return x_NI if self.last is None else self.last(x_NI)


class _Layer(nn.Module):
    def __init__(self, inputs: int, width: int, activation: Name, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.linear = Linear(inputs, width, bias=not batch_norm)
        self.norm = BatchNorm(width) if batch_norm else None
        # A ReLU right after the product is computed with it.
        self.fused = activation == "relu" and not batch_norm
        self.activation = None if self.fused else make(activation, width)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        x_NO: Tensor = self.linear(x_NI, relu=self.fused)
        for step in (self.norm, self.activation, self.dropout):
            if step is not None:
                x_NO = step(x_NO)
        return x_NO
