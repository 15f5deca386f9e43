"""A transformer layer over ragged histories, post-norm.

    q_i, k_j, v_j = x_i W^Q, x_j W^K, x_j W^V                                       in each head
    o_i = sum_j softmax_j(s(q_i, k_j)) v_j
    x'  = LN(x + Dropout(o W^O))
    x"  = LN(x' + Dropout(f(x' W_1 + b_1) W_2 + b_2))

The score is, by name

    ``dot``        q . k / sqrt(d)
    ``relu``       the same of relu(x W + b), and so is v
    ``bilinear``   q' . x_j W^K with q' = relu(x_i W^Q + b), a bilinear form of q' and x_j, and v is relu(x W + b)
    ``cosine``     c cos(q, k) with a learned c that begins at 10

Without ``residual`` there is no residual connection. Without ``norm`` LN is the identity.

Shapes: B rows, N positions, U entries of a history (see nn/segments.py), D width, X width of all heads' queries, keys
and values, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn import folded_attention
from longrec.nn.activation import ActivationName, make_activation
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.linear import Linear, linear

Score = Literal["dot", "relu", "bilinear", "cosine"]

_INITIAL_SCALE = 10.0
"""Initial scale of the cosine."""


class EncoderLayer(nn.Module):
    """One encoder layer. See the module. A head is D / H wide, rounded up, so that any D works with any H.

    Args:
        width: D.
        heads: H.
        hidden: units of the network after the attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        score: Score = "dot",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        residual: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.score, self.residual = heads, score, residual
        size = -(-width // heads)
        self.inner = Linear(width, 3 * heads * size, bias=False)
        self.outer = Linear(heads * size, width, bias=False)
        self.first, self.second = Linear(width, hidden), Linear(hidden, width)
        self.activation = make_activation(activation, hidden)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)] if norm else [])
        self.dropout = nn.Dropout(dropout)
        # Only projections with a ReLU have a bias. A bias of plain keys would change no weight.
        cut = {"relu": 3, "bilinear": 2}.get(score, 0)
        self.bias = nn.Parameter(torch.zeros(cut, heads * size)) if cut else None
        self.scale = nn.Parameter(torch.full((heads,), _INITIAL_SCALE)) if score == "cosine" else None

    def project(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values ``[N, X]`` whose products are the scores."""
        q_NX, k_NX, v_NX = self.inner(x_ND).chunk(3, 1)
        return self._query(q_NX), self._key(k_NX), self._value(v_NX)

    def forward(self, x_UD: Tensor, attention: BucketedAttention) -> Tensor:
        """Return ``[U, D]``, the events of each row after attention over each other, in bucket order."""
        return self.rest(x_UD, attention.attend_within(*self.project(x_UD), self.heads))

    def attend_query(
        self, y_BD: Tensor, x: Tensor, attention: BucketedAttention, beside: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return ``[B, D]``, the query of each row after attention over the events, and its weights.

        All tensors are in bucket order, the events in that of ``attention.requests``, and the weights are those of
        ``BucketedAttention.attend_query``. Weights have no gradient.

        Args:
            x: events ``[U, D]``, or ``[B, T, D]`` of a shared history whose events differ per candidate.
            beside: a query also sees itself, as one more event.
        """
        size = self.outer.in_features
        w_XD = self.inner.weight
        q_BX = self._query(linear(y_BD, w_XD[:size]))
        if self.score == "dot" and attention.folds(x):
            own_BD, (w_k, w_v) = y_BD if beside else None, w_XD[size:].chunk(2)
            o_BX, w = folded_attention.attend(
                q_BX.view(len(q_BX), self.heads, -1), x, own_BD, w_k, w_v, attention.buckets
            )
            return self.rest(y_BD, o_BX), w
        k, v = self._project_events(x.flatten(0, -2))
        k, v = (attention.flatten(e.view(*x.shape[:-1], size)) for e in (k, v))
        own = self._project_events(y_BD) if beside else None
        o_BX, w = attention.attend_query(q_BX, k, v, self.heads, own)
        return self.rest(y_BD, o_BX), w

    def _project_events(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, ``[N, X]``."""
        k_NX, v_NX = linear(x_ND, self.inner.weight[self.outer.in_features :]).chunk(2, 1)
        return self._key(k_NX), self._value(v_NX)

    def rest(self, x_ND: Tensor, o_NX: Tensor) -> Tensor:
        """Apply the operations after the attention."""
        s_ND = self._add(x_ND, self.dropout(self.outer(o_NX)), 0)
        return self._add(s_ND, self.dropout(self.second(self.activation(self.first(s_ND)))), 1)

    def _add(self, x_ND: Tensor, update_ND: Tensor, index: int) -> Tensor:
        y_ND = x_ND + update_ND if self.residual else update_ND
        return self.norms[index](y_ND) if self.norms else y_ND

    def _query(self, q_NX: Tensor) -> Tensor:
        if self.scale is not None:
            return (self._normalize_heads(q_NX) * self.scale.unsqueeze(1)).flatten(1)
        if self.score == "bilinear":
            return self._cut(q_NX, 0)
        return self._cut(q_NX, 0) * (q_NX.shape[1] // self.heads) ** -0.5

    def _key(self, k_NX: Tensor) -> Tensor:
        if self.scale is not None:
            return self._normalize_heads(k_NX).flatten(1)
        return k_NX if self.score == "bilinear" else self._cut(k_NX, 2)

    def _value(self, v_NX: Tensor) -> Tensor:
        return self._cut(v_NX, 1)

    def _cut(self, x_NX: Tensor, index: int) -> Tensor:
        return x_NX if self.bias is None else (x_NX + self.bias[index]).relu()

    def _normalize_heads(self, x_NX: Tensor) -> Tensor:
        """Return ``[N, H, d]`` of length one in each head."""
        return F.normalize(x_NX.view(x_NX.shape[0], self.heads, x_NX.shape[1] // self.heads), dim=2)
