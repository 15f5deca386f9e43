"""A transformer over tokens, read out by a query.

The query is the last entry of the sequence ``[x_1, ..., x_T, y]`` under causal attention. Entries never see it, so in
serving they are computed once for all candidates. Every layer is pre-norm, and so is the output projection:

    x_l' = x_l + Attention(LN(x_l); LN(x_1), ..., LN(x_l))
    y'   = y + Attention(LN(y); LN(x_1), ..., LN(x_T), LN(y))
    x", y" = x' + FFN(LN(x')), y' + FFN(LN(y'))                                      FFN(z) = W_2 gelu(W_1 z)
    out  = W_o LN(y_last)

where y starts as ``W_q q`` and x_l as ``W_x tok_l + p_(T - l)``, with p a learned vector of the distance from the
newest entry. LONGER (https://arxiv.org/abs/2505.04421) first merges adjacent tokens into one, and only its newest
entries and the query go through the layers: in the first layer they see all entries, afterwards each other.

Sequences are computed in buckets of rows of similar length, right-aligned on the newest entry.

Shapes: B rows, U entries of the history, Q width of the query, K width of a token, D width, H heads, G side columns, R
rows of a bucket, T entries of its longest row, M entries of the next layer.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longrec.nn import kernels
from longrec.nn.length_buckets import Buckets
from longrec.nn.linear import Linear
from longrec.nn.segments import Segments
from longrec.nn.token_attention import TokenInput

_MAX_DISTANCE = 256
"""Number of distinct distances from the newest entry."""
_MAX_POSITIONS = 4_096
"""Maximum number of positions of a bucket."""


class TokenTransformer(nn.Module):
    """Layers over the tokens of each row and its query.

    Args:
        query: Q.
        tokens: module that computes the vectors of the tokens.
        width: D.
        heads: H, which divides D.
        layers: number of layers.
        merge: number of tokens that are merged into one entry.
        recent: number of newest entries that the layers read. None: all.
    """

    renamed_parameters: ClassVar[dict[str, str]] = {"places": "position_embedding"}

    def __init__(
        self,
        query: int,
        tokens: TokenInput,
        width: int,
        heads: int,
        layers: int,
        merge: int = 1,
        recent: int | None = None,
    ) -> None:
        super().__init__()
        self.merge, self.recent = merge, recent
        self.query = Linear(query, width)
        self.entry = Linear(merge * tokens.width, width)
        self.position_embedding = nn.Parameter(torch.randn(_MAX_DISTANCE, width) * 0.02)
        # Only the query is read after the last layer, so that layer does not update the entries.
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(width), Linear(width, width)

    def forward(
        self,
        q_BQ: Float[Tensor, "B Q"],
        tokens: TokenInput,
        x_UI: Float[Tensor, "U I"],
        ids_GU: Int[Tensor, "G U"],
        segments: Segments,
    ) -> Float[Tensor, "B D"]:
        """Return the output of each row's query. The output of a row without positions is meaningless."""
        y_BD, tok_UK = self.query(q_BQ), tokens(x_UI, ids_GU)
        if segments.shared:
            real = torch.ones(1, segments.positions, dtype=torch.bool, device=x_UI.device)
            return self._read(tok_UK.unsqueeze(0), real, y_BD.unsqueeze(0)).squeeze(0)
        buckets = Buckets.of(segments, _MAX_POSITIONS)
        chunks = torch.split(tok_UK.index_select(0, buckets.positions), buckets.sizes) if buckets.all else ()
        ys = torch.split(buckets.gather(y_BD), [bucket.rows.stop - bucket.rows.start for bucket in buckets.all])
        read = [self._read(b.pad(chunk), b.real, y.unsqueeze(1)) for b, chunk, y in zip(buckets.all, chunks, ys)]
        return buckets.restore(torch.cat(read).squeeze(1)) if read else torch.zeros_like(y_BD)

    def _read(self, tok_RTK: Tensor, real_RT: Tensor | None, y_RCD: Tensor) -> Tensor:
        """Return ``[R, C, D]``: the output of each of C queries per row over the row's tokens."""
        tok_RTK, real_RT = self._merge(tok_RTK, real_RT)
        entries = tok_RTK.shape[1]
        distance = (entries - 1 - torch.arange(entries, device=tok_RTK.device)).clamp(max=_MAX_DISTANCE - 1)
        x_ND: Tensor = self.entry(tok_RTK.flatten(0, 1))
        x_RTD = x_ND.view(len(tok_RTK), entries, x_ND.shape[1]) + self.position_embedding.index_select(0, distance)
        for number, each in enumerate(self.layers):
            layer = cast(Layer, each)
            go_on = self.recent if number == 0 else None
            if number == len(self.layers) - 1:
                y_RCD = layer.update_query(x_RTD, real_RT, y_RCD)
            else:
                y_RCD, x_RTD = layer.update_query(x_RTD, real_RT, y_RCD), layer.update_entries(x_RTD, real_RT, go_on)
                real_RT = None if real_RT is None else _keep_newest(real_RT, go_on)
        out: Tensor = self.out(self.norm(y_RCD).flatten(0, 1)).view_as(y_RCD)
        return out

    def _merge(self, tok_RTK: Tensor, real_RT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Concatenate adjacent tokens to ``[R, T / merge, merge K]``, with zeros before the oldest."""
        if self.merge == 1:
            return tok_RTK, real_RT
        rows, entries, width = tok_RTK.shape
        groups = (entries + self.merge - 1) // self.merge
        # By index, because an exported program cannot depend on the remainder of a traced length.
        at = torch.arange(groups * self.merge, device=tok_RTK.device) - groups * self.merge + entries + 1
        wide = torch.cat([tok_RTK.new_zeros(rows, 1, width), tok_RTK], 1).index_select(1, at.clamp(min=0))
        if real_RT is not None:
            # The newest token of a group is real if any of its tokens is.
            real_RT = real_RT.index_select(1, at.reshape(groups, self.merge)[:, -1] - 1)
        return wide.reshape(rows, groups, self.merge * width), real_RT


class Layer(nn.Module):
    """One transformer layer, for the entries of a row and for its queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.inner, self.outer = Linear(width, 3 * width), Linear(width, width)
        self.network = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

    def update_entries(
        self, x_RTD: Float[Tensor, "R T D"], real_RT: Bool[Tensor, "R T"] | None, newest: int | None
    ) -> Float[Tensor, "R M D"]:
        """Return the newest entries after the layer. Each sees itself and older ones."""
        q, k, v = self._project(x_RTD, newest)
        x_RMD = _keep_newest(x_RTD, newest)
        entries, going = x_RTD.shape[1], x_RMD.shape[1]
        at = torch.arange(entries, device=x_RTD.device)
        seen = at <= (torch.arange(going, device=x_RTD.device) + (entries - going)).unsqueeze(1)
        if real_RT is not None:
            seen = seen & real_RT[:, None, None, :]
        s_RHMT = torch.matmul(q, k.transpose(2, 3))
        # Not -inf, because a padded entry sees nothing. Its output is never read.
        w_RHMT = s_RHMT.masked_fill(~seen, -1e30).softmax(3).to(v.dtype)
        return self._finish(x_RMD, torch.matmul(w_RHMT, v))

    def update_query(
        self, x_RTD: Float[Tensor, "R T D"], real_RT: Bool[Tensor, "R T"] | None, y_RCD: Float[Tensor, "R C D"]
    ) -> Float[Tensor, "R C D"]:
        """Return the queries after the layer. Each sees itself and all entries."""
        _, k, v = self._project(x_RTD, None)
        q, own_k, own_v = self._project(y_RCD, None)
        s_RHCT = torch.matmul(q, k.transpose(2, 3))
        if real_RT is not None:
            s_RHCT = s_RHCT.masked_fill(~real_RT[:, None, None, :], -torch.inf)
        own = (q * own_k).sum(3, keepdim=True)
        w = torch.cat([s_RHCT, own.to(s_RHCT.dtype)], 3).softmax(3).to(v.dtype)
        return self._finish(y_RCD, torch.matmul(w[..., :-1], v) + w[..., -1:] * own_v)

    def _project(self, x_RTD: Tensor, newest: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries of the newest ``[R, H, M, d]``, and keys and values of all ``[R, H, T, d]``."""
        rows, entries, width = x_RTD.shape
        inner: Tensor = self.inner(self.norms[0](x_RTD).flatten(0, 1))
        q, k, v = inner.view(rows, entries, 3, self.heads, width // self.heads).unbind(2)
        return (
            _keep_newest(q, newest).transpose(1, 2) * (width // self.heads) ** -0.5,
            k.transpose(1, 2),
            v.transpose(1, 2),
        )

    def _finish(self, x_RMD: Tensor, o_RHMd: Tensor) -> Tensor:
        shape = x_RMD.shape
        x_ND = x_RMD.reshape(-1, shape[2])
        x_ND = x_ND + self.outer(o_RHMd.transpose(1, 2).reshape(x_ND.shape))
        x_ND = x_ND + self.network(self.norms[1](x_ND))
        return x_ND.view(shape)


def _keep_newest(x: Tensor, most: int | None) -> Tensor:
    """Return the newest entries of ``[R, T, ...]``. In a traced program always ``most``, with zeros before them."""
    if most is None:
        return x
    if not kernels.is_traced():
        return x[:, max(x.shape[1] - most, 0) :]
    blank = x.new_zeros(x.shape[0], most, *x.shape[2:])
    return torch.cat([blank, x], 1)[:, x.shape[1] :]
