"""Multi-head target attention: the candidate attends to chosen events of its history.

    s_jh = (W_q q + b_q)_h . (W_k e_j)_h / sqrt(d)                                  for each head h
    o_h  = sum_j softmax_j(s_jh) (W_v e_j)_h
    u    = W_o [o_1; ...; o_H]

u is 0 without events. Keys and values are computed for chosen events alone (nn/chosen.py), and once for all candidates
that read the same ones.

Shapes: B rows, M chosen positions, N those that the rows read (M, or B M of a choice that all rows share), S length of
a list, Q width of the query, K width of an event, D width of the result, H heads, d = D / H, rounded up.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn.chosen import Chosen
from longrec.nn.linear import Linear
from longrec.nn.slices import masked_softmax


class TargetHeads(nn.Module):
    """Multi-head attention of one query per row.

    Args:
        query: Q.
        key: K.
        width: D.
        heads: H.
    """

    def __init__(self, query: int, key: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, -(-width // heads)
        inner = heads * self.size
        self.query = Linear(query, inner)
        # A bias of the keys adds the same to all scores of a row, which the softmax ignores.
        self.key = Linear(key, inner, bias=False)
        self.value = Linear(key, inner, bias=False)
        self.out = Linear(inner, width, bias=False)

    def weights(self, q_BQ: Float[Tensor, "B Q"], k_MK: Float[Tensor, "M K"], chosen: Chosen) -> Float[Tensor, "N H"]:
        """Return the weight of every chosen position in every head."""
        q_BHd, k_MHd = self._split(self.query(q_BQ)), self._split(self.key(k_MK))
        q_BHd = q_BHd * self.size**-0.5
        if chosen.size is not None:
            k_BHdS = k_MHd.view(-1, chosen.size, self.heads, self.size).permute(0, 2, 3, 1)
            s_BHS = torch.matmul(q_BHd.unsqueeze(2), k_BHdS).squeeze(2)
            real = None if chosen.real_M is None else chosen.real_M.view(-1, 1, chosen.size)
            return _softmax(s_BHS, real).transpose(1, 2).flatten(0, 1)
        segments = chosen.segments
        if segments.shared:
            s_HBM = torch.matmul(q_BHd.transpose(0, 1), k_MHd.permute(1, 2, 0))
            return _softmax(s_HBM, chosen.real_M).permute(1, 2, 0).flatten(0, 1)
        s_NH = self._split(segments.mul(q_BHd.flatten(1), k_MHd.flatten(1))).sum(2)
        return torch.stack([segments.softmax(s_N) for s_N in s_NH.unbind(1)], 1)

    def pool(self, w_NH: Float[Tensor, "N H"], k_MK: Float[Tensor, "M K"], chosen: Chosen) -> Float[Tensor, "B D"]:
        """Return u from the weights."""
        v_MX = self.value(k_MK)
        if chosen.size is not None:
            v_BSHd = v_MX.view(-1, chosen.size, self.heads, self.size)
            w_BHS = w_NH.view(-1, chosen.size, self.heads).transpose(1, 2).to(v_MX.dtype)
            o_BX = torch.matmul(w_BHS.unsqueeze(2), v_BSHd.transpose(1, 2)).flatten(1)
        else:
            every = zip(w_NH.unbind(1), v_MX.chunk(self.heads, 1))
            o_BX = torch.cat([chosen.segments.weighted_sum(w_N.to(v.dtype), v) for w_N, v in every], 1)
        return self.out(o_BX)

    def forward(self, q_BQ: Float[Tensor, "B Q"], k_MK: Float[Tensor, "M K"], chosen: Chosen) -> Float[Tensor, "B D"]:
        """Return u of each row from its chosen events."""
        return self.pool(self.weights(q_BQ, k_MK, chosen), k_MK, chosen)

    def _split(self, x_NX: Tensor) -> Tensor:
        return x_NX.view(x_NX.shape[0], self.heads, self.size)


def _softmax(s: Tensor, real: Tensor | None) -> Tensor:
    return s.softmax(-1) if real is None else masked_softmax(s, real, -1)
