"""BPR-max: a target against shared negatives, each weighted by how hard it is.

For the score p_t of a target and the scores z_j of n negatives that occur c_j times:

    w_tj = softmax_j(z_j + log c_j)          l_t = -log sum_j w_tj sigmoid(p_t - z_j) + penalty sum_j w_tj z_j^2

The second term keeps scores near zero. Hidasi and Karatzoglou, CIKM 2018. https://arxiv.org/abs/1706.03847

Shapes: T targets, n negatives, D width, P pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from longrec.nn.linear import linear
from longrec.nn.sampled_softmax import LOWEST, find_left_out


def bpr_max(
    state_TD: Float[Tensor, "T D"],
    negative_nD: Float[Tensor, "n D"],
    positive_T: Float[Tensor, " T"],
    target_T: Int[Tensor, " T"],
    drawn_n: Int[Tensor, " n"],
    count_n: Float[Tensor, " n"] | None = None,
    hits_2P: Int[Tensor, "2 P"] | None = None,
    penalty: float = 1.0,
) -> Float[Tensor, " T"]:
    """Return l of every target. 0 for a target without a negative.

    Args:
        target_T: item of each target.
        drawn_n: item of each negative. It is left out for targets that are the same item.
        count_n: c. None: each occurs once.
        hits_2P: pairs of a target and a negative that is left out for it.
    """
    z_Tn = linear(state_TD, negative_nD)
    out_Tn = find_left_out(target_T, drawn_n, hits_2P)
    weighed_Tn = z_Tn if count_n is None else z_Tn + count_n.log()
    log_w_Tn = weighed_Tn.masked_fill(out_Tn, LOWEST).log_softmax(1)
    preference_T = torch.logsumexp(log_w_Tn + F.logsigmoid(positive_T.unsqueeze(1) - z_Tn), 1)
    loss_T = penalty * (log_w_Tn.exp() * z_Tn.square()).sum(1) - preference_T
    return loss_T.masked_fill(out_Tn.all(1), 0)
