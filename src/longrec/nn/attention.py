"""Target attention: weights of history events given the candidate.

The activation unit of DIN is a small network over ``[q, k, q - k', q * k']``, where k' is the slice of the key that
describes the same columns as the query. Its first layer is split, so that no tensor of that width is built:

    h = W_q q + W_k k + W_m (q * k') + b

The difference is linear in q and k, so its weights are folded into ``W_q`` and ``W_k``. The term of the query is
computed once per row. For one user with many candidates (serving), the term of the key is computed once per position.

Shapes: B rows, N positions, U entries of the history (see ``Segments``), Q query width, K key width, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn import activation_unit, gemm
from longrec.nn.activation import ActivationName, BatchNorm, make_activation
from longrec.nn.linear import linear, relu_gradient, use_plain_formula
from longrec.nn.mlp import MLP, Layer
from longrec.nn.segments import Segments


class FirstLayer(nn.Module):
    """``W_q q + W_k k + W_m (q * k') + b``, with an optional ReLU. k' is the first Q columns of k."""

    def __init__(self, query: int, key: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.query, self.key = query, key
        # Initialized as a linear layer over [q, k, q - k', q * k'], with the difference folded in.
        bound = (3 * query + key) ** -0.5
        whole = torch.empty(width, 3 * query + key).uniform_(-bound, bound)
        w_q, w_k, w_d, w_m = torch.split(whole, [query, key, query, query], dim=1)
        self.weight_q = nn.Parameter(w_q + w_d)
        self.weight_k = nn.Parameter(w_k - F.pad(w_d, (0, key - query)))
        self.weight_m = nn.Parameter(w_m.clone())
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound)) if bias else None

    def forward(
        self, q_BQ: Float[Tensor, "B Q"], k_UK: Float[Tensor, "U K"], segments: Segments, relu: bool = False
    ) -> Float[Tensor, "N H"]:
        """Return the output of the first layer at every position."""
        hq_BH = linear(q_BQ, self.weight_q, self.bias)
        if segments.shared or use_plain_formula(k_UK):
            hk_UH = F.linear(k_UK, self.weight_k)
            h_NH = segments.add(hq_BH, hk_UH) + F.linear(segments.mul(q_BQ, k_UK[:, : self.query]), self.weight_m)
            return h_NH.relu() if relu else h_NH
        w_HX = torch.cat([self.weight_k, self.weight_m], 1)
        k_UK, segments = segments.flatten(k_UK)
        out: Tensor = _FirstLayerFunction.apply(  # type: ignore[no-untyped-call]
            hq_BH, q_BQ, k_UK, w_HX, segments, relu
        )
        return out


class _FirstLayerFunction(torch.autograd.Function):
    """``relu(hq[row] + [k, q[row] * k'] w^T)`` with a hand-written gradient. X = K + Q."""

    @staticmethod
    def forward(
        ctx: Any, hq_BH: Tensor, q_BQ: Tensor, k_NK: Tensor, w_HX: Tensor, segments: Segments, relu: bool
    ) -> Tensor:
        (positions, key), query = k_NK.shape, q_BQ.shape[1]
        x_NX = gemm.allocate_rows(k_NK, positions, key + query)
        x_NX[:, :key] = k_NK
        torch.mul(k_NK[:, :query], q_BQ.index_select(0, segments.row), out=x_NX[:, key:])
        h_NH = gemm.affine(x_NX, w_HX).add_(hq_BH.index_select(0, segments.row))
        if relu:
            h_NH.relu_()
        ctx.segments, ctx.relu, ctx.key = segments, relu, key
        ctx.save_for_backward(q_BQ, x_NX, w_HX, h_NH if relu else None)
        return h_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NH: Tensor) -> tuple[Tensor | None, ...]:
        q_BQ, x_NX, w_HX, h_NH = ctx.saved_tensors
        segments, key, query = ctx.segments, ctx.key, q_BQ.shape[1]
        g_NH = relu_gradient(g_NH, h_NH) if ctx.relu else g_NH.contiguous()
        g_hq = segments.add_up(g_NH)
        g_w = gemm.weight_gradient(g_NH, x_NX)
        g_NX = gemm.input_gradient(g_NH, w_HX)
        g_NK, g_NQ = g_NX[:, :key], g_NX[:, key:]
        g_q = segments.add_up(g_NQ * x_NX[:, :query])
        g_NK[:, :query].addcmul_(g_NQ, q_BQ.index_select(0, segments.row))
        return g_hq, g_q, g_NK, g_w, None, None


class TargetAttention(nn.Module):
    """Local activation unit of DIN and the pooling by its weights (Zhou et al. 2018, eq. 3).

    Args:
        query: width of the query.
        key: width of the keys. Their first ``query`` columns describe the same columns as the query.
        widths: hidden units of the activation unit.
        softmax: normalize the weights of a history to a sum of one. Without it, the raw scores keep the intensity of
            the interest.
        batch_norm: normalize the hidden units of the activation unit over the positions of the batch.
        dropout: dropout rate of every hidden layer of the activation unit, or one rate per layer.
    """

    def __init__(
        self,
        query: int,
        key: int,
        widths: Sequence[int],
        activation: ActivationName = "relu",
        softmax: bool = False,
        batch_norm: bool = False,
        dropout: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        first, *rest = widths
        share, *shares = [dropout] * len(widths) if isinstance(dropout, int | float) else dropout
        self.first = FirstLayer(query, key, first, bias=not batch_norm)
        self.norm = BatchNorm(first) if batch_norm else None
        self.fused = activation == "relu" and not batch_norm
        self.activation = None if self.fused else make_activation(activation, first)
        self.dropout = nn.Dropout(share) if share else None
        # A softmax ignores a constant added to all scores, so a last bias would get no gradient.
        self.rest = MLP(first, rest, activation, shares, batch_norm, outputs=1, last_bias=not softmax)
        self.softmax = softmax
        plain = not batch_norm and not share and not any(shares)
        self.chunked = activation if plain and activation in activation_unit.ACTIVATIONS else None

    def scores(self, q_BQ: Float[Tensor, "B Q"], k_UK: Float[Tensor, "U K"], segments: Segments) -> Float[Tensor, " N"]:
        """Return the score of every position for the candidate of its row, before a softmax."""
        h_NH = self.first(q_BQ, k_UK, segments, relu=self.fused)
        for step in (self.norm, self.activation, self.dropout):
            if step is not None:
                h_NH = step(h_NH)
        s_N: Tensor = self.rest(h_NH).squeeze(1)
        return s_N

    def weights(
        self, q_BQ: Float[Tensor, "B Q"], k_UK: Float[Tensor, "U K"], segments: Segments
    ) -> Float[Tensor, " N"]:
        """Return the weight of every position for the candidate of its row."""
        s_N = self.scores(q_BQ, k_UK, segments)
        return segments.softmax(s_N) if self.softmax else s_N

    def forward(
        self, q_BQ: Float[Tensor, "B Q"], k_UK: Float[Tensor, "U K"], segments: Segments
    ) -> Float[Tensor, "B K"]:
        """Return ``u = sum_t w_t k_t`` of each row, or 0 for an empty history."""
        if self.chunked is not None and not segments.shared and not use_plain_formula(k_UK):
            first, layers = self.first, [*(cast(Layer, layer).linear for layer in self.rest.layers), self.rest.last]
            hq_BH = linear(q_BQ, first.weight_q, first.bias)
            weights = first.weight_k, first.weight_m
            pairs: list[Tensor | None] = [x for layer in layers if layer for x in (layer.weight, layer.bias)]
            k_NK, flat = segments.flatten(k_UK)
            return activation_unit.pool(hq_BH, q_BQ, k_NK, weights, pairs, flat, self.chunked, self.softmax)
        return segments.weighted_sum(self.weights(q_BQ, k_UK, segments), k_UK)
