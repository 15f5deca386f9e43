"""A matrix for each position of a history.

    y_i = W_{min(i, P - 1)} x_i                    i counts from the oldest event

On ragged rows the events of one position are next to each other (``nn/steps.py``), so that each matrix is one product
and no padding is computed.

Shapes: N positions of rows, P matrices, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn.prefix_attention import count_older
from longrec.nn.segments import Segments
from longrec.nn.steps import Steps


class PositionMatrices(nn.Module):
    """Matrices by position.

    Args:
        positions: P.
        std: standard deviation of the initial matrices.
        identity: add the identity to each block of as many outputs as inputs.
    """

    def __init__(self, positions: int, inputs: int, outputs: int, std: float, identity: bool = False) -> None:
        super().__init__()
        weight = torch.randn(positions, inputs, outputs) * std
        if identity:
            weight += torch.eye(inputs).repeat(1, outputs // inputs)
        self.weight = nn.Parameter(weight)

    def forward(self, x_NI: Float[Tensor, "N I"], segments: Segments) -> Float[Tensor, "N O"]:
        """Return the product of each event with the matrix of its position.

        Args:
            segments: rows that share no positions, or one shared history, which is one row.
        """
        last = len(self.weight) - 1
        if segments.shared:
            at_N = count_older(segments).clamp(max=last)
            return torch.bmm(x_NI.unsqueeze(1), self.weight.index_select(0, at_N)).squeeze(1)
        if not segments.positions:
            return x_NI.new_zeros(0, self.weight.shape[2])
        steps, weights = Steps.of(segments), self.weight.unbind()
        # All events from position P - 1 on are one product.
        counts = steps.counts[:last] + ([sum(steps.counts[last:])] if len(steps.counts) > last else [])
        chunks = torch.split(x_NI.index_select(0, steps.positions), counts)
        y_NO = torch.cat([chunk @ weight for chunk, weight in zip(chunks, weights)])
        return torch.empty_like(y_NO).index_copy(0, steps.positions, y_NO)
