"""Sessions of a history: numbered groups of events, such as the sessions of a user or the quarters of a year.

Every event is in one session of its history, or in none. Sessions are numbered backward from the newest, which is 0. In
a ragged batch the sessions that have events are segments of their own, oldest first, and nothing is computed for
others. In a shared batch all K sessions are computed and those without events are masked, so that no size depends on an
id.

Shapes: B rows, R requests, N positions, U entries of a history (see nn/segments.py), T positions of a shared history, K
sessions at most, P events in sessions (all T in a shared batch), M of them, G sessions with events (all K in a shared
batch), S and E sessions and events as the rows read them (G and P single, B K and B K T shared), W width.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.features.batch import HistoryBatch, Layout
from longrec.features.transfer import transfer
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.host_plans import expand_rows, fetch, put_all, sort
from longrec.nn.segments import GroupedSegments, Segments

_NEVER = -1e30
_NONE = 2**40
"""Session number of an event that is in no session."""


class Sessions:
    """Sessions of one history of a batch.

    Args:
        number_U: session number of each event, on the host or on the device, from which it is copied. K and above: no
            session.
        count: K.

    Attributes:
        rows: segments of the rows over their sessions.
        number: int64 ``[G]``, the number of each session.
    """

    def __init__(self, number_U: Int[Tensor, " U"], count: int, segments: Segments) -> None:
        self.segments, number_U, device = segments, number_U.long(), segments.offsets.device
        if segments.shared:
            self.rows = Segments(segments.offsets, segments.rows, count, shared=True)
            self.number = torch.arange(count - 1, -1, -1, device=device)
            self._number_U = number_U.to(device)
            return
        stored, number = segments.requests, fetch(number_U)
        row = expand_rows(stored.host_offsets, np.arange(stored.rows))
        self._kept = np.flatnonzero(number < count)
        key_P, order = sort(row[self._kept] * count + (count - 1 - number[self._kept]))
        self._within = Segments.of_runs(key_P, device)
        key_G = key_P[self._within.host_offsets[:-1]]
        plans = [order, self._kept[order], count - 1 - key_G % count]
        self._order, self._at, self.number = put_all(plans, device)
        self.rows = Segments.of_offsets(np.searchsorted(key_G, np.arange(stored.rows + 1) * count), device)
        if isinstance(segments, GroupedSegments):
            self.rows = GroupedSegments(self.rows, segments.layout)

    @cached_property
    def _read(self) -> Segments:
        """The sessions as the rows read them, over their events. Not for a shared history."""
        if not isinstance(self.rows, GroupedSegments):
            return self._within
        # Each session of a row reads the events of a stored one.
        rows = self.rows.on_host
        assert isinstance(rows, GroupedSegments)
        owner = rows.stored_position.numpy()
        layout = Layout(self._within.rows, rows.positions, "grouped", self.rows.stored_position, owner)
        return GroupedSegments(self._within, layout)

    @cached_property
    def _member_KT(self) -> Tensor:
        return self._number_U.unsqueeze(0) == self.number.unsqueeze(1)

    @cached_property
    def nonempty_K(self) -> Tensor:
        """bool, shared: True for sessions that have events."""
        return self._member_KT.sum(1) > 0

    @property
    def moves(self) -> Tensor | None:
        """Mask of the sessions that a recurrence steps with, bool ``[K]``. None: it steps with all."""
        return self.nonempty_K if self.segments.shared else None

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

    def select(self, events: HistoryBatch) -> HistoryBatch:
        """Return the events in sessions alone. For a shared history all, as its length must not depend on ids."""
        if self.segments.shared:
            return events
        return transfer(events.on_host.select_events(torch.from_numpy(self._kept)), events.offsets.device)

    def gather_selected(self, x_MW: Float[Tensor, "M W"]) -> Float[Tensor, "P W"]:
        """Return the events from ``select`` as ``gather`` does."""
        return x_MW if self.segments.shared else x_MW.index_select(0, self._order)

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
        """Return the softmax over the sessions of each row, of one score per session."""
        if not self.segments.shared:
            return self.rows.softmax(s)
        s_BK = s.reshape(self.segments.rows, self.rows.positions)
        w_BK = s_BK.masked_fill(~self.nonempty_K, _NEVER).softmax(1)
        return (w_BK * self.nonempty_K).reshape(-1)

    def attend(self, q_BW: Float[Tensor, "B W"], x_PW: Float[Tensor, "P W"]) -> tuple[Tensor, Tensor]:
        """Return each row's attention over the events of each session ``[S, W]``, and the weights of the events.

        The result is ``sum_j softmax_j(q . x_j) x_j`` over the events of a session. The weights are ``[E]`` (shared
        ``[B, K, T]``).
        """
        if not self.segments.shared:
            q_SW = self.rows.expand(q_BW)
            w_E = self._read.softmax(self._read.dot(q_SW, x_PW))
            return self._read.weighted_sum(w_E, x_PW), w_E
        s_BKT = (q_BW @ x_PW.t()).unsqueeze(1).masked_fill(~self._member_KT, _NEVER)
        w_BKT = s_BKT.softmax(2) * self._member_KT
        return torch.matmul(w_BKT.to(x_PW.dtype), x_PW).flatten(0, 1), w_BKT

    def weigh_events(self, session_weights: Tensor, event_weights: Tensor | None = None) -> Tensor:
        """Return the weight of every event of a history, ``[N]`` or shared ``[B, T]``. 0 for events in no session.

        Args:
            session_weights: as returned by ``softmax``.
            event_weights: as returned by ``attend``. None: equal ones in each session, whose sum is 1.
        """
        equal_P = 1 / self.count_events().clamp(min=1)
        if self.segments.shared:
            session_BK1 = session_weights.reshape(self.segments.rows, self.rows.positions, 1)
            within = self._member_KT * equal_P if event_weights is None else event_weights
            return (session_BK1 * within).sum(1)
        w_E = self._read.flatten(equal_P)[0] if event_weights is None else event_weights
        w_E = w_E * self._read.expand_rows(session_weights)
        row_E = self.rows.row.index_select(0, self._read.row)
        # From the stored positions to those of the row.
        shift_B = self.segments.offsets[:-1] - self.segments.broadcast(self.segments.requests.offsets[:-1])
        at_E = self._read.flatten(self._at)[0] + shift_B.index_select(0, row_E)
        return w_E.new_zeros(self.segments.positions).index_copy(0, at_E, w_E)


def number_sessions(
    session_id_U: Int[Tensor, " U"], segments: Segments, longest: int, shortest: int
) -> Int[Tensor, " U"]:
    """Return the session number of each event, 0 for the latest session. A large number marks a dropped event.

    Args:
        session_id_U: changes where a session ends.
        longest: latest events of a session that are kept.
        shortest: sessions of at most this many events are dropped, and not counted.
    """
    segments = segments.requests
    position_U = torch.arange(segments.positions, device=session_id_U.device)
    before_U = (position_U - 1).clamp(min=0)
    new_U = (session_id_U != session_id_U.index_select(0, before_U)) | (position_U == 0)
    if not segments.shared:
        new_U = new_U | (segments.row != segments.row.index_select(0, before_U))
    # Sums per session, with operators that every exported program supports.
    session_U = new_U.long().cumsum(0)
    blank = torch.zeros(segments.positions + 1, dtype=torch.int64, device=session_id_U.device)
    size_U = blank.index_add(0, session_U, torch.ones_like(session_U)).index_select(0, session_U)
    start_U = blank.index_add(0, session_U, torch.where(new_U, position_U, 0)).index_select(0, session_U)
    kept_U = size_U > shortest
    count_U = (new_U & kept_U).long().cumsum(0)
    if segments.shared:
        all_U = (new_U & kept_U).sum()
    else:
        all_U = count_U.index_select(0, segments.expand_rows(segments.offsets[1:]) - 1)
    newer_U = start_U + size_U - 1 - position_U
    return torch.where(kept_U & (newer_U < longest), all_U - count_U, _NONE)
