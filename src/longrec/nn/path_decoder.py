"""Decoder of a path: gated cross-attention over a history, optional self-attention, experts.

    x <- x + W^O softmax(q k^T / sqrt(d)) v,           of the tokens before it and itself (self-attention)
    x <- x + gamma W^O softmax(q k^T / sqrt(d)) v,     of the history (nn/cross_attention.py)
    x <- x + experts(RMSNorm(x))                       (nn/step_experts.py)

Shapes: R requests, W prefixes, U columns: adjacent steps, D width, H heads, d width of a head, t cached
steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn.cross_attention import HistoryKeys
from longrec.nn.dropout import Dropout
from longrec.nn.linear import Linear
from longrec.nn.rms_norm import RMSNorm
from longrec.nn.step_experts import StepExperts

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values ``[R, W, t, D]`` of the steps before, per layer of self-attention."""


class Shape(NamedTuple):
    """Sizes of a decoder."""

    width: int
    heads: int
    hidden: int
    experts: int
    steps: int
    gate: float
    dropout: float


class PathDecoder(nn.Module):
    """Layers over the columns of prefixes.

    Args:
        self_attention: columns of a prefix attend to earlier ones. Otherwise a column sees the history alone.
    """

    def __init__(self, shape: Shape, layers: int, self_attention: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(shape, self_attention) for _ in range(layers))
        self.norm = RMSNorm(shape.width)

    def forward(self, x_RWUD: Tensor, keys: HistoryKeys, step: int | None, cache: Cache | None = None) -> Tensor:
        """Return the states ``[R, W, U, D]``, normalized.

        Args:
            step: step of the only column. None: column u is step u.
            cache: keys and values of the columns before. Those of these columns are appended to it.
        """
        for number, layer in enumerate(self.layers):
            x_RWUD = layer(x_RWUD, keys, number, step, cache)
        out: Tensor = self.norm(x_RWUD)
        return out


class _Layer(nn.Module):
    def __init__(self, shape: Shape, self_attention: bool) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.own = _SelfAttention(width, shape.heads) if self_attention else None
        self.norm, self.query, self.outer = RMSNorm(width), Linear(width, width), Linear(width, width)
        self.gamma = nn.Parameter(torch.tensor(shape.gate))
        self.expert_norm = RMSNorm(width)
        self.network = StepExperts(width, shape.hidden, shape.experts, shape.steps, shape.dropout)
        self.dropout = Dropout(shape.dropout)

    def forward(self, x: Tensor, keys: HistoryKeys, number: int, step: int | None, cache: Cache | None) -> Tensor:
        rows, prefixes, columns, width = x.shape
        if self.own is not None:
            x = x + self.dropout(self.own(x, number, cache))
        q = self.query(self.norm(x).reshape(-1, width)).view(rows, prefixes * columns, width)
        o = self.outer(keys.attend(q, number).reshape(-1, width)).view(x.shape)
        x = x + self.gamma * self.dropout(o)
        z = self.expert_norm(x).view(rows * prefixes, columns, width)
        return x + self.dropout(self.network(z, step)).view(x.shape)


class _SelfAttention(nn.Module):
    """Causal attention over the columns of each prefix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.inner, self.outer = RMSNorm(width), Linear(width, 3 * width, bias=False), Linear(width, width)

    def forward(self, x: Tensor, number: int, cache: Cache | None) -> Tensor:
        rows, prefixes, columns, width = x.shape
        q, k, v = self.inner(self.norm(x).reshape(-1, width)).view(rows, prefixes, columns, 3 * width).chunk(3, 3)
        if cache is not None:
            if number < len(cache):
                k, v = torch.cat([cache[number][0], k], 2), torch.cat([cache[number][1], v], 2)
                cache[number] = k, v
            else:
                cache.append((k, v))
        q, k, v = (self._split(y) for y in (q, k, v))
        # One column is the newest: it sees all. Several begin at the first step.
        o = F.scaled_dot_product_attention(q, k, v, is_causal=columns > 1)
        return self.outer(o.transpose(1, 2).reshape(-1, width)).view(x.shape)

    def _split(self, y: Tensor) -> Tensor:
        """``[R W, H, U, d]``."""
        rows, prefixes, columns, width = y.shape
        return y.reshape(rows * prefixes, columns, self.heads, width // self.heads).transpose(1, 2)
