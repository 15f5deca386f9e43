"""Sessions of a history as a short-term part, the events of a session, and a long-term part, those of older sessions.

A session is a run of events with one key, which no other session of its history has. Two classes have the same methods,
so that a model is written once:

    EverySession     a result for each event: of its session up to it, and of all sessions before
    NewestSession    a result for each request: of its newest session, and of all sessions before

``gather`` returns the events that are in the short-term part of any result. A part without events gives 0.

Shapes: R requests, U stored positions of a history, P events of short-term parts, X results (U or R), Q = 3 W queries,
keys and values, W width.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.nn.host_plans import expand_rows, fetch, put
from longrec.nn.lstm import LSTM
from longrec.nn.rectangles import Rectangles
from longrec.nn.segments import Segments
from longrec.nn.self_attention import attend_to_earlier

_NEVER = -1e30
"""Score of an event that has no weight. It is finite, so that a row without weights is no NaN."""


class EverySession:
    """All sessions of the histories of a batch.

    Args:
        key_U: key of the session of each event, on the host.
        segments: the requests over the stored positions.
    """

    def __init__(self, key_U: Int[Tensor, " U"], segments: Segments) -> None:
        key, self.segments = fetch(key_U), segments
        first = np.ones(len(key), bool)
        first[1:] = key[1:] != key[:-1]
        if not segments.shared:
            starts = segments.host_offsets[:-1]
            first[starts[starts < len(key)]] = True
        self._sessions = Segments.of_offsets(np.append(np.flatnonzero(first), len(key)), segments.offsets.device)

    def gather(self, x_UW: Float[Tensor, "U W"]) -> Float[Tensor, "U W"]:
        """Return all events."""
        return x_UW

    def recur(self, layer: LSTM, x_PW: Float[Tensor, "P W"]) -> Float[Tensor, "P H"]:
        """Return the state after each event, which begins at zero in each session."""
        return layer.states(x_PW, self._sessions)

    def attend(self, qkv_PQ: Float[Tensor, "P Q"], heads: int) -> Float[Tensor, "P W"]:
        """Return the attention of each event to the events of its session up to it."""
        return attend_to_earlier(qkv_PQ, self._sessions, heads)

    def pool(self, q_XW: Float[Tensor, "X W"], x_PW: Float[Tensor, "P W"]) -> Float[Tensor, "X W"]:
        """Return the attention of each query to the events of the session up to its event."""
        return attend_to_earlier(torch.cat([q_XW, x_PW, x_PW], 1), self._sessions, 1)

    def recall(self, q_XW: Float[Tensor, "X W"], x_UW: Float[Tensor, "U W"]) -> Float[Tensor, "X W"]:
        """Return the attention of each query to the events of older sessions."""
        plan = Rectangles.of(self.segments)
        if not plan.shapes:
            return x_UW
        session_U1 = self._sessions.expand_rows(torch.arange(self._sessions.rows, device=x_UW.device)).unsqueeze(1)
        filled = zip(plan.fill(q_XW), plan.fill(x_UW), plan.fill(session_U1))
        return plan.restore([_attend(*of_rectangle) for of_rectangle in filled])


def _attend(q_RTW: Tensor, x_RTW: Tensor, session_RT1: Tensor) -> Tensor:
    """``[R, T, W]`` of one rectangle: each query over the events of older sessions of its row."""
    older_RTT = session_RT1.transpose(1, 2) < session_RT1
    s_RTT = torch.bmm(q_RTW, x_RTW.transpose(1, 2)) * x_RTW.shape[2] ** -0.5
    return torch.bmm(s_RTT.masked_fill(~older_RTT, _NEVER).softmax(2) * older_RTT, x_RTW)


class NewestSession:
    """The newest session of each request. Arguments as above.

    For a shared history the newest session is a mask, as no size of a program may depend on values.
    """

    def __init__(self, key_U: Int[Tensor, " U"], segments: Segments) -> None:
        self.segments = segments
        if segments.shared:
            self._key_T = key_U.to(segments.offsets.device)
            # A sum, because a program may have no event.
            self._newest_U = self._key_T == (self._key_T * (segments.count_newer() == 0)).sum()
            return
        key, offsets = fetch(key_U), segments.host_offsets
        newest = key == key[expand_rows(offsets, offsets[1:] - 1)]
        before = np.append(0, np.cumsum(newest))  # number of these events before each position
        device = segments.offsets.device
        self._newest_U, self._at = put(newest, device), put(np.flatnonzero(newest), device)
        self._own = Segments.of_offsets(before[offsets], device)

    def gather(self, x_UW: Float[Tensor, "U W"]) -> Float[Tensor, "P W"]:
        """Return the events of the newest sessions. For a shared history all events."""
        return x_UW if self.segments.shared else x_UW.index_select(0, self._at)

    def recur(self, layer: LSTM, x_PW: Float[Tensor, "P W"]) -> Float[Tensor, "P H"]:
        """Return the state after each event, which begins at zero in each session."""
        if self.segments.shared:
            return layer.states(x_PW, self.segments, moves_T=self._newest_U)
        return layer.states(x_PW, self._own)

    def attend(self, qkv_PQ: Float[Tensor, "P Q"], heads: int) -> Float[Tensor, "P W"]:
        """Return the attention of each event to the events of its session up to it."""
        if not self.segments.shared:
            return attend_to_earlier(qkv_PQ, self._own, heads)
        length, width = qkv_PQ.shape[0], qkv_PQ.shape[1] // 3
        q, k, v = qkv_PQ.view(length, 3, heads, width // heads).permute(1, 2, 0, 3).unbind()
        rank_T = torch.arange(length, device=qkv_PQ.device)
        other_TT = rank_T.unsqueeze(0) > rank_T.unsqueeze(1)
        other_TT = other_TT | (self._key_T.unsqueeze(0) != self._key_T.unsqueeze(1))
        s_HTT = torch.matmul(q, k.transpose(1, 2)) * (width // heads) ** -0.5
        w_HTT = s_HTT.masked_fill(other_TT, _NEVER).softmax(2)
        return torch.matmul(w_HTT.to(v.dtype), v).transpose(0, 1).reshape(length, width)

    def pool(self, q_XW: Float[Tensor, "X W"], x_PW: Float[Tensor, "P W"]) -> Float[Tensor, "X W"]:
        """Return the attention of each query to the events of its newest session."""
        if self.segments.shared:
            return self._weigh(q_XW, x_PW, self._newest_U)
        w_P = self._own.softmax(self._own.dot(q_XW, x_PW) * x_PW.shape[1] ** -0.5)
        return self._own.weighted_sum(w_P, x_PW)

    def recall(self, q_XW: Float[Tensor, "X W"], x_UW: Float[Tensor, "U W"]) -> Float[Tensor, "X W"]:
        """Return the attention of each query to the events of older sessions."""
        return self._weigh(q_XW, x_UW, ~self._newest_U)

    def _weigh(self, q_RW: Tensor, x_UW: Tensor, kept_U: Tensor) -> Tensor:
        """Return the attention of each request to some of its events."""
        s_U = self.segments.dot(q_RW, x_UW) * x_UW.shape[1] ** -0.5
        w_U = self.segments.softmax(s_U.masked_fill(~kept_U, _NEVER)) * kept_U
        return self.segments.weighted_sum(w_U, x_UW)
