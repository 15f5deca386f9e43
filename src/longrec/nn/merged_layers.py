"""Layers of a causal transformer over merged entries and over the candidates that read them, pre-norm.

    x_l' = x_l + W_o Attention(LN(x_l); LN(x_1), ..., LN(x_l))                       for the entries that go on
    y'   = y + W_o Attention(LN(y); LN(x_1), ..., LN(x_T), LN(y))                    for each candidate
    x", y" = x' + FFN(LN(x')), y' + FFN(LN(y'))                                      FFN(z) = W_2 gelu(W_1 z)

No entry sees a candidate, so the entries of a request are computed once for all of its candidates. Everything but the
attention runs on flat entries, without padding (nn/merged_entries.py).

Shapes: N entries, M entries that go on, C candidates, W width, H heads, d width of a head, R rows of a rectangle, T
entries of its longest row, G groups, K events of a group, E width of an event.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn import kernels
from longrec.nn.linear import Linear, linear
from longrec.nn.merged_entries import Frame, Rectangle


class MergedLayer(nn.Module):
    """One layer. H divides W."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        # A bias of the keys would change no weight.
        self.inner, self.outer = Linear(width, 3 * width, bias=False), Linear(width, width)
        self.network = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

    def forward(
        self, x_NW: Tensor, y_CW: Tensor, entries: Frame, candidates: Frame, recent: tuple[Frame, Tensor | None] | None
    ) -> tuple[Tensor | None, Tensor]:
        """Return the entries that go on, ``[M, W]``, and the candidates, after the layer.

        Args:
            entries, candidates: their rectangles, of the same requests.
            recent: rectangles and indices of the entries that go on. None: only candidates are computed.
        """
        z_NW = self.norms[0](x_NW)
        k_NW, v_NW = linear(z_NW, self.inner.weight[self.width :]).chunk(2, 1)
        keys, values = entries.fill(k_NW), entries.fill(v_NW)
        x_MW = None
        if recent is not None:
            frame, at_M = recent
            x_MW, q_MW = _select(x_NW, at_M), self._query(_select(z_NW, at_M))
            each = zip(frame.fill(q_MW), keys, values, entries.rectangles)
            x_MW = self._finish(x_MW, frame.flatten([self._attend_causal(*inputs) for inputs in each]))
        z_CW = self.norms[0](y_CW)
        own_v = linear(z_CW, self.inner.weight[2 * self.width :])
        weights = self._weigh(z_CW, keys, entries, candidates)
        outputs = [self._attend_candidates(*inputs) for inputs in zip(weights, candidates.fill(own_v), values)]
        return x_MW, self._finish(y_CW, candidates.flatten(outputs))

    def weights(self, x_NW: Tensor, y_CW: Tensor, entries: Frame, candidates: Frame) -> list[Tensor]:
        """Return the weights of entries for the candidates of their row, mean over heads: ``[R, T, C]`` of each
        rectangle.
        """
        k_NW = linear(self.norms[0](x_NW), self.inner.weight[self.width : 2 * self.width])
        every = self._weigh(self.norms[0](y_CW), entries.fill(k_NW), entries, candidates)
        return [w[..., :-1].mean(1).transpose(1, 2) for w in every]

    def _weigh(self, z_CW: Tensor, keys: list[Tensor], entries: Frame, candidates: Frame) -> list[Tensor]:
        """Return the weights of all entries for each candidate, and its own last, ``[R, H, C, T + 1]`` each."""
        own_k, every = linear(z_CW, self.inner.weight[self.width : 2 * self.width]), []
        filled = candidates.fill(self._query(z_CW)), candidates.fill(own_k), keys
        for rectangle, *inputs in zip(entries.rectangles, *filled):
            q, own, k = (self._split(x) for x in inputs)
            s_RHCT = torch.matmul(q, k.transpose(2, 3))
            if rectangle.real is not None:
                s_RHCT = s_RHCT.masked_fill(~rectangle.real[:, None, None, :], -torch.inf)
            own_RHC1 = (q * own).sum(3, keepdim=True).to(s_RHCT.dtype)
            every.append(torch.cat([s_RHCT, own_RHC1], 3).softmax(3))
        return every

    def _query(self, z_MW: Tensor) -> Tensor:
        q_MW: Tensor = linear(z_MW, self.inner.weight[: self.width]) * (self.width // self.heads) ** -0.5
        return q_MW

    def _split(self, x: Tensor) -> Tensor:
        """``[R, H, T, d]``."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.width // self.heads).transpose(1, 2)

    def _attend_causal(self, q: Tensor, k: Tensor, v: Tensor, rectangle: Rectangle) -> Tensor:
        """Return ``[R, M, W]``: each of the newest entries sees itself and older ones."""
        seen = see_older(q.shape[1], k.shape[1], rectangle.real, q.device)
        q, k, v = self._split(q), self._split(k), self._split(v)
        return attend(q, k, v, seen).transpose(1, 2).flatten(2)

    def _attend_candidates(self, w: Tensor, own_v: Tensor, v: Tensor) -> Tensor:
        """Return ``[R, C, W]``: what each candidate takes from all entries of its row, and from itself."""
        w, own_v, v = w.to(v.dtype), self._split(own_v), self._split(v)
        o_RHCd = torch.matmul(w[..., :-1], v) + w[..., -1:] * own_v
        return o_RHCd.transpose(1, 2).flatten(2)

    def _finish(self, x_MW: Tensor, o_MW: Tensor) -> Tensor:
        x_MW = x_MW + self.outer(o_MW)
        updated_MW: Tensor = x_MW + self.network(self.norms[1](x_MW))
        return updated_MW


class InnerLayer(nn.Module):
    """One layer over the events of each group, before they are merged. It has one head.

    Args:
        width: E.
        merge: K.
    """

    def __init__(self, width: int, merge: int) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.randn(merge, width) * 0.02)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.inner, self.outer = Linear(width, 3 * width, bias=False), Linear(width, width)
        self.network = nn.Sequential(Linear(width, 2 * width), nn.GELU(), Linear(2 * width, width))

    def forward(self, e_GKE: Tensor, padded_GK: Tensor | None) -> Tensor:
        """Return the events after attention over those of their group. Padded ones are not seen and remain 0."""
        groups, merge, width = e_GKE.shape
        x_NE = (e_GKE + self.position_embedding).flatten(0, 1)
        q, k, v = self.inner(self.norms[0](x_NE)).view(groups, 1, merge, 3 * width).chunk(3, 3)
        seen = None
        if padded_GK is not None:
            # A padded event sees itself, because it must see one.
            own = torch.eye(merge, dtype=torch.bool, device=e_GKE.device)
            seen = (~padded_GK.unsqueeze(1) | own).unsqueeze(1)
        x_NE = x_NE + self.outer(attend(q * width**-0.5, k, v, seen).flatten(0, 2))
        x_GKE = (x_NE + self.network(self.norms[1](x_NE))).view(groups, merge, width)
        return x_GKE if padded_GK is None else x_GKE.masked_fill(padded_GK.unsqueeze(2), 0)


def see_older(newest: int, entries: int, real_RT: Tensor | None, device: torch.device) -> Tensor:
    """Return which entries each of the newest ones sees, bool ``[M, T]`` or ``[R, 1, M, T]``.

    A padded entry sees itself, because it must see one. Its output is not read.
    """
    at_T = torch.arange(entries, device=device)
    own_M1 = (torch.arange(newest, device=device) + (entries - newest)).unsqueeze(1)
    older_MT = at_T <= own_M1
    if real_RT is None:
        return older_MT
    return older_MT & (real_RT[:, None, None, :] | (at_T == own_M1))


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """Return the attention ``[R, H, M, d]`` of scaled queries to what they see."""
    if not kernels.is_traced():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0)
    s_RHMT = torch.matmul(q, k.transpose(2, 3))
    if seen is not None:
        s_RHMT = s_RHMT.masked_fill(~seen, -torch.inf)
    return torch.matmul(s_RHMT.softmax(3).to(v.dtype), v)


def _select(x: Tensor, at: Tensor | None) -> Tensor:
    return x if at is None else x.index_select(0, at)
