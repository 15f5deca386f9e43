"""Softmax of a score among those of shared negatives, without its intermediate results.

For a state s_t, the score p_t of its target and n negatives v_j with a bias b_j:

    l_t = -p_t + log(exp(p_t) + sum_j exp(<s_t, v_j> + b_j))            over the j that are not left out for t
        = log(1 + exp(L_t - p_t)),      L_t = log sum_j exp(<s_t, v_j> + b_j)

On the CPU it runs on ``nn/gemm.py`` and on the softmax of torch, which is faster than the exponential alone, with a
hand-written gradient. Elsewhere it is the first formula as written.

Left out are the negatives that are the target itself, and further pairs.

Shapes: T targets, n negatives, D width, M targets that are among the negatives, P pairs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn import gemm
from longrec.nn.linear import use_plain_formula

LOWEST = -1e30
"""Score of a negative that is left out. It is finite, so that a target without other negatives has a softmax."""


def sampled_softmax(
    state_TD: Float[Tensor, "T D"],
    negative_nD: Float[Tensor, "n D"],
    positive_T: Float[Tensor, " T"],
    target_T: Int[Tensor, " T"],
    drawn_n: Int[Tensor, " n"],
    bias_n: Float[Tensor, " n"] | None = None,
    hits_2P: Int[Tensor, "2 P"] | None = None,
) -> Float[Tensor, " T"]:
    """Return l of every target.

    Args:
        target_T: item of each target.
        drawn_n: item of each negative. It is left out for targets that are the same item.
        bias_n: b. None: 0.
        hits_2P: pairs of a target and a negative that is left out for it.
    """
    if not use_plain_formula(state_TD):
        loss: Tensor = _SampledSoftmax.apply(state_TD, negative_nD, positive_T, target_T, drawn_n, bias_n, hits_2P)  # type: ignore[no-untyped-call]
        return loss
    score_Tn = state_TD @ negative_nD.t()
    if bias_n is not None:
        score_Tn = score_Tn + bias_n
    same_Tn = find_left_out(target_T, drawn_n, hits_2P)
    every = torch.cat([positive_T.unsqueeze(1), score_Tn.masked_fill(same_Tn, -torch.inf)], 1)
    return torch.logsumexp(every, 1) - positive_T


def find_left_out(
    target_T: Int[Tensor, " T"], drawn_n: Int[Tensor, " n"], hits_2P: Int[Tensor, "2 P"] | None = None
) -> Bool[Tensor, "T n"]:
    """Return the negatives that are left out for each target. Arguments as of ``sampled_softmax``."""
    same_Tn = drawn_n == target_T.unsqueeze(1)
    if hits_2P is None:
        return same_Tn
    return same_Tn.index_put((hits_2P[0], hits_2P[1]), torch.ones_like(hits_2P[0], dtype=torch.bool))


class _SampledSoftmax(torch.autograd.Function):
    """The loss with a hand-written gradient: the softmax of the negatives times ``sigmoid(L - p)``."""

    @staticmethod
    def forward(
        ctx: Any,
        state_TD: Tensor,
        negative_nD: Tensor,
        positive_T: Tensor,
        target_T: Tensor,
        drawn_n: Tensor,
        bias_n: Tensor | None,
        hits_2P: Tensor | None,
    ) -> Tensor:
        score_Tn = gemm.affine(state_TD, negative_nD, bias_n)
        own_M = torch.isin(target_T, drawn_n).nonzero().squeeze(1)
        if 2 * len(own_M) > len(target_T):
            score_Tn.masked_fill_(drawn_n == target_T.unsqueeze(1), LOWEST)
        else:  # only the rows of the few targets that are among the negatives are compared and masked
            same_Mn = drawn_n == target_T.index_select(0, own_M).unsqueeze(1)
            score_Tn.index_copy_(0, own_M, score_Tn.index_select(0, own_M).masked_fill_(same_Mn, LOWEST))
        if hits_2P is not None:
            score_Tn.index_put_((hits_2P[0], hits_2P[1]), score_Tn.new_tensor(LOWEST))
        w_Tn = score_Tn.softmax(1)
        # The largest weight is 1 / sum_j exp(z_j - max z).
        margin_T = score_Tn.amax(1) - w_Tn.amax(1).log() - positive_T
        ctx.save_for_backward(state_TD, negative_nD, w_Tn, margin_T.sigmoid())
        return F.softplus(margin_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_T: Tensor) -> tuple[Tensor | None, ...]:
        state_TD, negative_nD, w_Tn, share_T = ctx.saved_tensors
        g_T = g_T * share_T
        g_Tn = gemm.allocate_rows(w_Tn, *w_Tn.shape)
        torch.mul(w_Tn, g_T.unsqueeze(1), out=g_Tn)
        return (
            gemm.input_gradient(g_Tn, negative_nD),
            gemm.weight_gradient(g_Tn, state_TD),
            -g_T,
            *(None,) * 4,
        )
