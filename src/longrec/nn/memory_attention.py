"""Attention of a candidate on the vectors of a memory: a few per user, in a fixed order.

    w_j = softmax_j(MLP([v, m_j, v - m_j, v * m_j]))

Shapes: B rows, M vectors of a memory, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn.mlp import MLP


class MemoryAttention(nn.Module):
    """Weights of the vectors of a memory for a query of the same width.

    Args:
        width: H.
        hidden: units of the hidden layers of the network.
    """

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        # A softmax ignores a constant added to all scores, so a last bias would get no gradient.
        self.score = MLP(4 * width, hidden, "relu", outputs=1, last_bias=False)

    def forward(self, v_BH: Float[Tensor, "B H"], m_BMH: Float[Tensor, "B M H"]) -> Float[Tensor, "B M"]:
        """Return the weight of every vector. Those of a row sum to one."""
        v_BMH = v_BH.unsqueeze(1).expand_as(m_BMH)
        x_BMX = torch.cat([v_BMH, m_BMH, v_BMH - m_BMH, v_BMH * m_BMH], 2)
        s_X1: Tensor = self.score(x_BMX.reshape(-1, x_BMX.shape[2]))
        return s_X1.reshape(-1, m_BMH.shape[1]).softmax(1)
