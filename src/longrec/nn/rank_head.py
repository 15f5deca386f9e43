"""Head over groups of fields: SENet re-weights the groups, a MaskBlock combines them, a linear layer ends it.

    s = 2 sigmoid(W_2 silu(W_1 z)),   z_g = mean of group g                          (Hu et al., CVPR 2018; FiBiNET)
    x' = [s_1 x_1; ...; s_G x_G]
    h = relu(LN(W_h (LN(x') * W_b relu(W_a x'))))                                    (Wang et al., MaskNet, 2021)
    logits = W h + b

SENet has a SiLU where the paper has a ReLU, whose few units would often be dead.

Shapes: N rows, G groups, X width of all groups, Z hidden units, V logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn.dropout import Dropout
from longrec.nn.linear import Linear

_RATIO = 4
"""Groups per unit of the bottleneck of SENet, which has 2 units at least."""


class RankHead(nn.Module):
    """The head.

    Args:
        groups: width of each group.
        mask: hidden units of the mask.
        hidden: Z.
        outputs: V.
    """

    def __init__(self, groups: Sequence[int], mask: int, hidden: int, outputs: int, rate: float = 0.0) -> None:
        super().__init__()
        self.groups, width = list(groups), sum(groups)
        units = max(2, -(-len(groups) // _RATIO))
        self.squeeze, self.excite = nn.Linear(len(groups), units), nn.Linear(units, len(groups))
        self.mask_in, self.mask_out = Linear(width, mask), Linear(mask, width)
        nn.init.ones_(self.mask_out.bias)  # the first masks are about 1
        self.norm, self.hidden = nn.LayerNorm(width), Linear(width, hidden)
        self.hidden_norm, self.dropout = nn.LayerNorm(hidden), Dropout(rate)
        self.last = Linear(hidden, outputs)

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """Return the logits ``[N, V]`` from the groups ``[N, .]``."""
        z_NG = torch.stack([x.mean(1) for x in groups], 1)
        s_NG = 2 * self.excite(F.silu(self.squeeze(z_NG))).sigmoid()
        x_NX = torch.cat([x * s for x, s in zip(groups, s_NG.split(1, 1))], 1)
        mask_NX = self.mask_out(self.mask_in(x_NX, relu=True))
        h_NZ = self.hidden_norm(self.hidden(self.norm(x_NX) * mask_NX)).relu()
        logits: Tensor = self.last(self.dropout(h_NZ))
        return logits
