"""Attention over tokens of earlier impressions with side information, with one query per row.

A position has a content (an instance token, or embedded columns of an earlier event) and ids of side information (its
label, the elapsed time). ``TokenInput`` makes one vector of both, and ``TokenAttention`` attends to the vectors of a
row:

    a_j   = act(W_a x_j + b_a)                                                     (adaptation)
    tok_j = [a_j; e_1(side_j1); e_2(side_j2); ...]
    s_jh  = (W_q q + b_q)_h . (W_k tok_j)_h / sqrt(d / H)                           for each head h
    o_h   = sum_j softmax_j(s_jh) (W_v tok_j)_h
    out   = W_o [o_1; ...; o_H] + b_o                                               (b_o for a row without positions)

In training only the adaptation is a matrix product at every position. Keys and values are absorbed, ``s_jh = (W_k^T
q)_h . tok_j`` and ``o_h = W_v (sum_j w_j tok_j)``, and side information is looked up in tables that are scored once per
row (``nn/token_kernel.py``). While a program is traced, for few positions and on a GPU the formulas run as written.

Shapes: B rows, N positions, U entries of the history, I width of the content, A width of the adapted content, S width
of all side information, K = A + S, Q width of the query, D width of the result, H heads, G side columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.nn import kernels
from longrec.nn.activation import ActivationName, make_activation
from longrec.nn.attention import TargetAttention
from longrec.nn.linear import Linear
from longrec.nn.segments import Segments
from longrec.nn.token_kernel import attend

_MIN_POSITIONS = 512
"""Below this number of positions the formulas run as written."""
_MAX_GROUP_IDS = 512
"""Maximum number of ids of a group of side columns."""


class TokenInput(nn.Module):
    """The vector of every position: adapted content beside embedded side information.

    Args:
        inputs: I.
        adapt: A.
        sides: number of ids of each side column.
        side_dim: width of each embedded side column.

    Attributes:
        width: K.
    """

    def __init__(
        self, inputs: int, adapt: int, sides: Sequence[int], side_dim: int, activation: ActivationName = "relu"
    ) -> None:
        super().__init__()
        self.adapt = Linear(inputs, adapt)
        self.fused = activation == "relu"
        self.activation = None if self.fused else make_activation(activation, adapt)
        self.sides = nn.ParameterList(nn.Parameter(torch.randn(rows, side_dim) * 0.1) for rows in sides)
        self.width = adapt + side_dim * len(sides)
        self.groups = _group_columns(sides)

    def adapt_content(self, x_UI: Float[Tensor, "U I"]) -> Float[Tensor, "U A"]:
        """Return the adapted content."""
        a_UA: Tensor = self.adapt(x_UI, relu=self.fused)
        return a_UA if self.activation is None else self.activation(a_UA)

    def forward(self, x_UI: Float[Tensor, "U I"], ids_GU: Int[Tensor, "G U"]) -> Float[Tensor, "U K"]:
        """Return ``tok`` of every position."""
        columns = [self.adapt_content(x_UI)]
        columns += [F.embedding(ids_U, table) for ids_U, table in zip(ids_GU.unbind(), self.sides)]
        return torch.cat(columns, 1)

    def build_tables(self) -> list[tuple[slice, Float[Tensor, "R S"]]]:
        """Return, per group of side columns, its slice of ``tok`` and the values of that slice for each id."""
        group_tables, first = [], self.adapt.out_features
        for group in self.groups:
            tables = [self.sides[side] for side in group]
            heights = [len(table) for table in tables]
            wide = [
                table.view(*(len(table) if at == own else 1 for at in range(len(group))), -1).expand(*heights, -1)
                for own, table in enumerate(tables)
            ]
            table_RS = torch.cat(wide, -1).flatten(0, -2)
            group_tables.append((slice(first, first + table_RS.shape[1]), table_RS))
            first += table_RS.shape[1]
        return group_tables

    def compute_table_rows(self, ids_GU: Int[Tensor, "G U"]) -> Int[Tensor, "J U"]:
        """Return, per group of side columns, the row of every position in the concatenated tables of all groups."""
        rows, first = [], 0
        for group in self.groups:
            row_U, height = torch.zeros_like(ids_GU[0]), 1
            for side in group:
                row_U, height = row_U * len(self.sides[side]) + ids_GU[side], height * len(self.sides[side])
            rows.append(row_U + first)
            first += height
        return torch.stack(rows) if rows else ids_GU


class TokenAttention(nn.Module):
    """Multi-head attention of one query per row.

    Args:
        query: Q.
        tokens: module that computes the vectors.
        width: D.
        heads: H, which divides D.
    """

    def __init__(self, query: int, tokens: TokenInput, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(query, width)
        # A bias of the keys adds the same to all scores of a row, which the softmax ignores. A bias of the values
        # adds the same to all rows, as the bias of the output does.
        self.key = Linear(tokens.width, width, bias=False)
        self.value = Linear(tokens.width, width, bias=False)
        self.out = Linear(width, width)

    def weights(
        self, q_BQ: Float[Tensor, "B Q"], tok_UK: Float[Tensor, "U K"], segments: Segments
    ) -> Float[Tensor, "N H"]:
        """Return the weight of every position in every head."""
        heads = self.heads
        q_BD, k_UD = self.query(q_BQ), self.key(tok_UK)
        size = q_BD.shape[1] // heads
        if segments.shared:
            q = _split_heads(q_BD, heads).transpose(0, 1)
            k = _split_heads(k_UD, heads).permute(1, 2, 0)
            s_HBT = torch.matmul(q, k) * size**-0.5
            return s_HBT.softmax(2).permute(1, 2, 0).flatten(0, 1)
        s_NH = _split_heads(segments.mul(q_BD, k_UD), heads).sum(2) * size**-0.5
        return torch.stack([segments.softmax(s_N) for s_N in s_NH.unbind(1)], 1)

    def forward(
        self,
        q_BQ: Float[Tensor, "B Q"],
        tokens: TokenInput,
        x_UI: Float[Tensor, "U I"],
        ids_GU: Int[Tensor, "G U"],
        segments: Segments,
    ) -> Float[Tensor, "B D"]:
        """Return the attention output of each row."""
        if not segments.shared and _runs_absorbed(x_UI):
            # In float32 in any precision mode: absorbing saves more than narrow numbers would.
            with torch.autocast(x_UI.device.type, enabled=False):
                o_BD = self._attend_absorbed(q_BQ.to(self.query.weight.dtype), tokens, x_UI, ids_GU, segments)
            return self.out(o_BD)
        tok_UK = tokens(x_UI, ids_GU)
        w_NH, v_UD = self.weights(q_BQ, tok_UK, segments), self.value(tok_UK)
        o = [segments.weighted_sum(w_N, v) for w_N, v in zip(w_NH.unbind(1), v_UD.chunk(self.heads, 1))]
        return self.out(torch.cat(o, 1))

    def _attend_absorbed(
        self, q_BQ: Tensor, tokens: TokenInput, x_NI: Tensor, ids_GN: Tensor, segments: Segments
    ) -> Tensor:
        """Return ``[o_1; ...; o_H]`` of every row, with keys and values absorbed."""
        q_BD, width = self.query(q_BQ), tokens.adapt.out_features
        size = q_BD.shape[1] // self.heads
        q_HBd = _split_heads(q_BD, self.heads).transpose(0, 1)
        u_HBK = torch.bmm(q_HBd, self.key.weight.view(self.heads, size, -1)) * size**-0.5
        scores = [torch.matmul(u_HBK[:, :, own], table_RS.t()) for own, table_RS in tokens.build_tables()]
        p_HBR = torch.cat(scores, 2) if scores else u_HBK[:, :, :0]
        o_BHA, c_BHR = attend(
            x_NI if tokens.fused else tokens.adapt_content(x_NI),
            (tokens.adapt.weight, tokens.adapt.bias) if tokens.fused else None,
            tokens.compute_table_rows(ids_GN),
            u_HBK[:, :, :width].transpose(0, 1).contiguous(),
            p_HBR.transpose(0, 1).contiguous(),
            segments,
        )
        sums, first = [o_BHA], 0
        for _, table_RS in tokens.build_tables():
            sums.append(torch.matmul(c_BHR[:, :, first : first + len(table_RS)], table_RS))
            first += len(table_RS)
        m_HBK = torch.cat(sums, 2).transpose(0, 1)
        o_HBd = torch.bmm(m_HBK, self.value.weight.view(self.heads, size, -1).transpose(1, 2))
        return o_HBd.transpose(0, 1).flatten(1)


def _runs_absorbed(x_UI: Tensor) -> bool:
    """Return True if keys and values are absorbed. Otherwise the formulas run as written above."""
    return kernels.choose(x_UI, _MIN_POSITIONS, casts=False) == "cpu"


def _split_heads(x_ND: Tensor, heads: int) -> Tensor:
    """``[N, H, d]``."""
    return x_ND.reshape(x_ND.shape[0], heads, x_ND.shape[1] // heads)


class TokenInterest(nn.Module):
    """Activation unit of DIN over tokens: ``sum_j a(q, k_j) k_j`` with q and k_j projected to one width.

    Args:
        query: Q.
        tokens: module that computes the vectors.
        width: D.
        units: hidden units of the activation unit.
    """

    def __init__(self, query: int, tokens: TokenInput, width: int, units: Sequence[int]) -> None:
        super().__init__()
        self.query, self.key = Linear(query, width), Linear(tokens.width, width)
        self.unit = TargetAttention(width, width, units)

    def weights(
        self, q_BQ: Float[Tensor, "B Q"], tok_UK: Float[Tensor, "U K"], segments: Segments
    ) -> Float[Tensor, "N 1"]:
        """Return the weight of every position."""
        return self.unit.weights(self.query(q_BQ), self.key(tok_UK), segments).unsqueeze(1)

    def forward(
        self,
        q_BQ: Float[Tensor, "B Q"],
        tokens: TokenInput,
        x_UI: Float[Tensor, "U I"],
        ids_GU: Int[Tensor, "G U"],
        segments: Segments,
    ) -> Float[Tensor, "B D"]:
        """Return the pooled tokens of each row."""
        return self.unit(self.query(q_BQ), self.key(tokens(x_UI, ids_GU)), segments)


def _group_columns(sides: Sequence[int]) -> list[list[int]]:
    """Group adjacent side columns whose combined number of ids is small, so that each group is looked up as one id."""
    groups: list[list[int]] = []
    height = 1
    for side, rows in enumerate(sides):
        height *= rows
        if groups and height <= _MAX_GROUP_IDS:
            groups[-1].append(side)
        else:
            groups.append([side])
            height = rows
    return groups
