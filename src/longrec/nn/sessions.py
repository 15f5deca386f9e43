"""Sessions of a history: numbered groups of events, such as the sessions of a user or the quarters of a year.

Every event is in one session of its row, or in none. Sessions are numbered backward from the newest, which is 0. In a
ragged batch the sessions that have events are segments of their own, oldest first, and nothing is computed for others.
In a shared batch all K sessions are computed and those without events are masked, so that no size depends on an id.

Shapes: B rows, N positions, U entries of a history (see nn/segments.py), T positions of a shared history, K sessions at
most, P events in sessions (all T in a shared batch), G sessions with events (all K in a shared batch), W width.
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
    """Sessions of the rows of one history.

    Args:
        number_U: session number of each event. K and above: no session.
        count: K.
        segments: rows and positions.

    Attributes:
        rows: segments of the rows over their sessions.
        number: int64 ``[G]``, the number of each session.
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
        """bool, shared: True for sessions that have events."""
        return self._member_KT.sum(1) > 0

    @cached_property
    def _same_TT(self) -> Tensor:
        return self._number_U.unsqueeze(0) == self._number_U.unsqueeze(1)

    @cached_property
    def attention(self) -> BucketedAttention:
        """Attention of the events of each session over each other."""
        if self.segments.shared:
            return BucketedAttention(self.segments, self._same_TT)
        return BucketedAttention(self._within)

    def gather(self, x_UW: Float[Tensor, "U W"]) -> Float[Tensor, "P W"]:
        """Return the events in sessions, session by session. For a shared history all events in their order."""
        return x_UW if self.segments.shared else x_UW.index_select(0, self._at)

    def gather_numbers(self) -> Int[Tensor, " P"]:
        """Return the session number of each event. For a shared history some are K or above."""
        return self._number_U if self.segments.shared else self._within.expand_rows(self.number)

    def count_newer(self) -> Int[Tensor, " P"]:
        """Return the number of newer events in the same session, per event."""
        if not self.segments.shared:
            ends_P = self._within.expand_rows(self._within.offsets[1:])
            return ends_P - 1 - torch.arange(len(ends_P), device=ends_P.device)
        index_T = torch.arange(self.segments.positions, device=self._number_U.device)
        return (self._same_TT & (index_T.unsqueeze(0) > index_T.unsqueeze(1))).sum(1)

    def count_events(self) -> Int[Tensor, " P"]:
        """Return the number of events in the same session, per event."""
        if not self.segments.shared:
            return self._within.expand_rows(self._within.offsets[1:] - self._within.offsets[:-1])
        return self._same_TT.sum(1)

    def mean(self, x_PW: Float[Tensor, "P W"]) -> Float[Tensor, "G W"]:
        """Return the mean of the events of each session. 0 for one without events."""
        if not self.segments.shared:
            return self._within.mean(x_PW)
        member_KT = self._member_KT.to(x_PW.dtype)
        return (member_KT @ x_PW) / member_KT.sum(1, keepdim=True).clamp(min=1)

    def softmax(self, s: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """Return the softmax over the sessions of each row, of one score per session: ``[G]``, shared ``[B K]``."""
        if not self.segments.shared:
            return self.rows.softmax(s)
        s_BK = s.reshape(self.segments.rows, self.rows.positions)
        w_BK = s_BK.masked_fill(~self.nonempty_K, _NEVER).softmax(1)
        return (w_BK * self.nonempty_K).reshape(-1)

    def attend(self, q_BW: Float[Tensor, "B W"], x_PW: Float[Tensor, "P W"]) -> tuple[Tensor, Tensor]:
        """Return each row's attention over the events of each session, and the weights of the events.

        The result is ``sum_j softmax_j(q . x_j) x_j`` over the events of a session, ``[G, W]`` (shared ``[B K, W]``).
        The weights are ``[P]`` (shared ``[B, K, T]``).
        """
        if not self.segments.shared:
            q_GW = self.rows.expand(q_BW)
            w_P = self._within.softmax(self._within.dot(q_GW, x_PW))
            return self._within.weighted_sum(w_P, x_PW), w_P
        s_BKT = (q_BW @ x_PW.t()).unsqueeze(1).masked_fill(~self._member_KT, _NEVER)
        w_BKT = s_BKT.softmax(2) * self._member_KT
        return torch.matmul(w_BKT.to(x_PW.dtype), x_PW).flatten(0, 1), w_BKT

    def weigh_events(self, session_weights: Tensor, event_weights: Tensor) -> Tensor:
        """Return the weight of every event of a history, ``[N]`` or shared ``[B, T]``. 0 for events in no session.

        Args:
            session_weights: as returned by ``softmax``.
            event_weights: as returned by ``attend``, or one weight per event of a session, ``[P]``.
        """
        if self.segments.shared:
            session_BK1 = session_weights.reshape(self.segments.rows, self.rows.positions, 1)
            within = event_weights if event_weights.ndim == 3 else self._member_KT * event_weights
            return (session_BK1 * within).sum(1)
        w_P = event_weights * self._within.expand_rows(session_weights)
        return w_P.new_zeros(self.segments.positions).index_copy(0, self._at, w_P)
