"""Parts of a past: the sessions of a user, the quarters of a year, each with the events that fall into it.

Every event is in one part of its row, or in none; parts are numbered back from the newest, which is 0. In a ragged
batch the parts that have events are segments of their own, oldest first, and nothing is computed for others. In a
shared batch there is room for all K of them and those without events are masked, so that no size depends on an id.

Letters: B rows, N positions, U what a history brings (see nn/segments.py), T positions of a shared history, K parts
that are told apart, P events in parts (all T in a shared batch), G parts that there are (all K in a shared batch), W
width.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.segments import Segments

_NEVER = -1e30


class Sessions:
    """The parts of the rows of one history.

    Args:
        number_U: the part of each event; K and above for none.
        parts: K.
        segments: rows and positions.

    Attributes:
        rows: rows over their parts.
        number: int64 ``[G]``, of each part.
    """

    def __init__(self, number_U: Int[Tensor, " U"], count: int, segments: Segments) -> None:
        self.segments, number_U = segments, number_U.long()
        if segments.shared:
            self.rows = Segments(segments.offsets, segments.rows, count, shared=True)
            self.number = torch.arange(count - 1, -1, -1, device=number_U.device)
            self._number_U = number_U
            return
        at = (number_U < count).nonzero().squeeze(1)
        key_P, order = (segments.row[at] * count + (count - 1 - number_U[at])).sort(stable=True)
        self._at = at[order]
        self._within = Segments.of_runs(key_P)
        key_G = key_P[self._within.offsets[:-1]]
        self.number = count - 1 - key_G % count
        marks = torch.arange(segments.rows + 1, device=key_G.device) * count
        self.rows = Segments(torch.searchsorted(key_G, marks), segments.rows, len(key_G))

    @cached_property
    def _member_KT(self) -> Tensor:
        return self._number_U.unsqueeze(0) == self.number.unsqueeze(1)

    @cached_property
    def nonempty_K(self) -> Tensor:
        """bool, shared: which parts have events."""
        return self._member_KT.sum(1) > 0

    @cached_property
    def _same_TT(self) -> Tensor:
        return self._number_U.unsqueeze(0) == self._number_U.unsqueeze(1)

    @cached_property
    def attention(self) -> BucketedAttention:
        """For the attention of the events of each part among themselves."""
        if self.segments.shared:
            return BucketedAttention(self.segments, self._same_TT)
        return BucketedAttention(self._within)

    def gather(self, x_UW: Float[Tensor, "U W"]) -> Float[Tensor, "P W"]:
        """The events in parts, part by part; of a shared history all as they stand."""
        return x_UW if self.segments.shared else x_UW.index_select(0, self._at)

    def gather_numbers(self) -> Int[Tensor, " P"]:
        """The part of each event; of a shared history some K or above."""
        return self._number_U if self.segments.shared else self._within.expand_rows(self.number)

    def count_newer(self) -> Int[Tensor, " P"]:
        """How many events of its part are newer than each."""
        if not self.segments.shared:
            ends_P = self._within.expand_rows(self._within.offsets[1:])
            return ends_P - 1 - torch.arange(len(ends_P), device=ends_P.device)
        index_T = torch.arange(self.segments.positions, device=self._number_U.device)
        return (self._same_TT & (index_T.unsqueeze(0) > index_T.unsqueeze(1))).sum(1)

    def count_events(self) -> Int[Tensor, " P"]:
        """How many events the part of each has."""
        if not self.segments.shared:
            return self._within.expand_rows(self._within.offsets[1:] - self._within.offsets[:-1])
        return self._same_TT.sum(1)

    def mean(self, x_PW: Float[Tensor, "P W"]) -> Float[Tensor, "G W"]:
        """The mean of the events of each part; 0 for one without."""
        if not self.segments.shared:
            return self._within.mean(x_PW)
        member_KT = self._member_KT.to(x_PW.dtype)
        return (member_KT @ x_PW) / member_KT.sum(1, keepdim=True).clamp(min=1)

    def softmax(self, s: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """Softmax over the parts of each row, of one score for each of its parts: ``[G]``, shared ``[B K]``."""
        if not self.segments.shared:
            return self.rows.softmax(s)
        s_BK = s.reshape(self.segments.rows, self.rows.positions)
        w_BK = s_BK.masked_fill(~self.nonempty_K, _NEVER).softmax(1)
        return (w_BK * self.nonempty_K).reshape(-1)

    def attend(self, q_BW: Float[Tensor, "B W"], x_PW: Float[Tensor, "P W"]) -> tuple[Tensor, Tensor]:
        """What the query of each row reads in each of its parts, ``[G, W]`` (shared ``[B K, W]``), and the weights of
        the events, ``[P]`` (shared ``[B, K, T]``): ``sum_j softmax_j(q . x_j) x_j`` over the events of a part.
        """
        if not self.segments.shared:
            q_GW = self.rows.expand(q_BW)
            w_P = self._within.softmax(self._within.dot(q_GW, x_PW))
            return self._within.weighted_sum(w_P, x_PW), w_P
        s_BKT = (q_BW @ x_PW.t()).unsqueeze(1).masked_fill(~self._member_KT, _NEVER)
        w_BKT = s_BKT.softmax(2) * self._member_KT
        return torch.matmul(w_BKT.to(x_PW.dtype), x_PW).flatten(0, 1), w_BKT

    def weigh_events(self, session_weights: Tensor, event_weights: Tensor) -> Tensor:
        """The weight of every event of a history, ``[N]`` or shared ``[B, T]``, 0 for one in no part.

        Args:
            of_parts: as ``softmax`` gives them.
            of_events: as ``attend`` gives them; or one weight for each event of a part, ``[P]``.
        """
        if self.segments.shared:
            session_BK1 = session_weights.reshape(self.segments.rows, self.rows.positions, 1)
            within = event_weights if event_weights.ndim == 3 else self._member_KT * event_weights
            return (session_BK1 * within).sum(1)
        w_P = event_weights * self._within.expand_rows(session_weights)
        return w_P.new_zeros(self.segments.positions).index_copy(0, self._at, w_P)
