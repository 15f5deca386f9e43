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
            return s_BHS.softmax(2).transpose(1, 2).flatten(0, 1)
        segments = chosen.segments
        if segments.shared:
            s_HBM = torch.matmul(q_BHd.transpose(0, 1), k_MHd.permute(1, 2, 0))
            w_HBM = s_HBM.softmax(2) if chosen.real_M is None else masked_softmax(s_HBM, chosen.real_M, 2)
            return w_HBM.permute(1, 2, 0).flatten(0, 1)
        s_NH = self._split(segments.mul(q_BHd.flatten(1), k_MHd.flatten(1))).sum(2)
        return torch.stack([segments.softmax(s_N) for s_N in s_NH.unbind(1)], 1)

    def pool(self, w_NH: Float[Tensor, "N H"], k_MK: Float[Tensor, "M K"], chosen: Chosen) -> Float[Tensor, "B D"]:
        """Return u from the weights. Not for lists."""
        every = zip(w_NH.unbind(1), self.value(k_MK).chunk(self.heads, 1))
        o_BX = torch.cat([chosen.segments.weighted_sum(w_N.to(v.dtype), v) for w_N, v in every], 1)
        return self.out(o_BX)

    def _attend_lists(self, q_BQ: Float[Tensor, "B Q"], k_MK: Float[Tensor, "M K"], chosen: Chosen) -> Tensor:
        """Return u of lists. Queries and results are projected, which are fewer than the chosen events."""
        assert chosen.size is not None
        q_BHd = self._split(self.query(q_BQ)) * self.size**-0.5
        w_HdK, v_HdK = (layer.weight.view(self.heads, self.size, -1) for layer in (self.key, self.value))
        q_BHK = torch.matmul(q_BHd.transpose(0, 1), w_HdK).transpose(0, 1)
        k_BSK = k_MK.reshape(q_BQ.shape[0], chosen.size, k_MK.shape[1])
        o_BHK = torch.matmul(torch.matmul(q_BHK, k_BSK.transpose(1, 2)).softmax(2), k_BSK)
        o_BHd = torch.matmul(o_BHK.transpose(0, 1), v_HdK.transpose(1, 2)).transpose(0, 1)
        return self.out(o_BHd.flatten(1))

    def forward(self, q_BQ: Float[Tensor, "B Q"], k_MK: Float[Tensor, "M K"], chosen: Chosen) -> Float[Tensor, "B D"]:
        """Return u of each row from its chosen events."""
        if chosen.size is not None:
            return self._attend_lists(q_BQ, k_MK, chosen)
        return self.pool(self.weights(q_BQ, k_MK, chosen), k_MK, chosen)

    def _split(self, x_NX: Tensor) -> Tensor:
        return x_NX.view(x_NX.shape[0], self.heads, self.size)
