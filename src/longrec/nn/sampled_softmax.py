"""Softmax of a score among those of shared negatives, without its intermediate results.

For a state s_t, the score p_t of its target and n negatives v_j with a bias b_j:

    l_t = -p_t + log(exp(p_t) + sum_j exp(<s_t, v_j> + b_j))            over the j that are not masked for t

On the CPU it runs on ``nn/gemm.py`` with a hand-written gradient. Elsewhere it is the formula as written.

Shapes: T targets, n negatives, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn import gemm
from longrec.nn.linear import use_plain_formula


def sampled_softmax(
    state_TD: Float[Tensor, "T D"],
    negative_nD: Float[Tensor, "n D"],
    positive_T: Float[Tensor, " T"],
    masked_Tn: Bool[Tensor, "T n"],
    bias_n: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, " T"]:
    """Return l of every target.

    Args:
        masked_Tn: negatives that are left out, because they are the target.
        bias_n: b. None: 0.
    """
    if not use_plain_formula(state_TD):
        loss: Tensor = _SampledSoftmax.apply(state_TD, negative_nD, positive_T, masked_Tn, bias_n)  # type: ignore[no-untyped-call]
        return loss
    score_Tn = state_TD @ negative_nD.t()
    if bias_n is not None:
        score_Tn = score_Tn + bias_n
    every = torch.cat([positive_T.unsqueeze(1), score_Tn.masked_fill(masked_Tn, -torch.inf)], 1)
    return torch.logsumexp(every, 1) - positive_T


class _SampledSoftmax(torch.autograd.Function):
    """The loss with a hand-written gradient, which is that of a softmax: its weights, minus one for the target."""

    @staticmethod
    def forward(
        ctx: Any,
        state_TD: Tensor,
        negative_nD: Tensor,
        positive_T: Tensor,
        masked_Tn: Tensor,
        bias_n: Tensor | None,
    ) -> Tensor:
        w_Tn = gemm.affine(state_TD, negative_nD, bias_n).masked_fill_(masked_Tn, -torch.inf)
        top_T = torch.maximum(w_Tn.amax(1), positive_T)
        w_Tn = w_Tn.sub_(top_T.unsqueeze(1)).exp_()
        own_T = (positive_T - top_T).exp()
        sum_T = w_Tn.sum(1) + own_T
        ctx.save_for_backward(state_TD, negative_nD, w_Tn, own_T / sum_T, sum_T)
        return sum_T.log() + top_T - positive_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_T: Tensor) -> tuple[Tensor | None, ...]:
        state_TD, negative_nD, w_Tn, own_T, sum_T = ctx.saved_tensors
        g_Tn = gemm.allocate_rows(w_Tn, *w_Tn.shape)
        torch.mul(w_Tn, (g_T / sum_T).unsqueeze(1), out=g_Tn)
        return (
            gemm.input_gradient(g_Tn, negative_nD),
            gemm.weight_gradient(g_Tn, state_TD),
            g_T * (own_T - 1),
            None,
            None,
        )
