"""Feed-forward network of SwiGLU experts with one gate per step of a decoder.

    f_e(x) = W2_e (SiLU(W1_e x) * W3_e x)                                            (Shazeer, 2020)
    y = sum_e g_e(x) f_e(x),      g(x) = softmax(G_t x) at step t                    (Ma et al., KDD 2018)

The gates weigh hidden units, so that all experts are two products.

Shapes: R rows, U columns, S steps, E experts, D width, F hidden units of an expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn.dropout import Dropout
from longrec.nn.linear import Linear


class StepExperts(nn.Module):
    """The network.

    Args:
        width: D.
        hidden: F.
        experts: E. There is no gate if it is 1.
        steps: S.
        rate: dropout rate of the hidden units.
    """

    def __init__(self, width: int, hidden: int, experts: int, steps: int, rate: float = 0.0) -> None:
        super().__init__()
        self.experts, self.dropout = experts, Dropout(rate)
        self.inner = Linear(width, 2 * experts * hidden, bias=False)
        self.outer = Linear(experts * hidden, width, bias=False)
        self.gate = nn.Parameter(torch.randn(steps, width, experts) * width**-0.5) if experts > 1 else None

    def forward(self, x_RUD: Tensor, step: int | None) -> Tensor:
        """Return ``[R, U, D]``.

        Args:
            step: step of all columns. None: each column is the step of its index.
        """
        rows, columns, width = x_RUD.shape
        one, other = self.inner(x_RUD.reshape(-1, width)).chunk(2, 1)
        h = F.silu(one) * other
        if self.gate is not None:
            if step is None:
                s = torch.bmm(x_RUD.transpose(0, 1), self.gate[:columns]).transpose(0, 1)
            else:
                s = torch.matmul(x_RUD, self.gate[step])
            g = s.softmax(2).to(h.dtype).reshape(-1, self.experts, 1)
            h = (h.view(-1, self.experts, h.shape[1] // self.experts) * g).flatten(1)
        return self.outer(self.dropout(h)).view(rows, columns, width)
