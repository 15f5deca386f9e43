"""Selection of a few events of a history: the newest ones, those that score highest, or those with a key.

A model attends to a selection as to a history: ``take`` returns the entries that are selected, and ``rows`` are the
segments over them. There are two kinds of them, so that nothing is computed on padding and no size of a program depends
on values:

- **ragged** batches: each row has its own entries, as many as are selected for it;
- a **shared** history: each row has ``min(k, T)`` slots, of which those without an event are masked (``Slots``).

Of events with equal scores the newest ones are selected, on every device and in every runtime: the order in which
``topk`` returns equal values is not defined, so only its values are read.

Shapes: B rows, N positions, U stored positions (see nn/segments.py), T positions of a shared history, S entries of a
selection, K slots of a row of a shared history, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from longrec.nn import kernels
from longrec.nn.embedding import RESERVED
from longrec.nn.first_top import find_first_top
from longrec.nn.host_plans import expand_rows, put, put_all
from longrec.nn.key_search import find_key
from longrec.nn.segments import GroupedSegments, Segments

_NEVER = -1e30
"""Score of a slot without an event. It is finite, so that a row without events is no NaN."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Selected events of each row.

    Attributes:
        source: the segments that were selected from, U stored positions.
        rows: segments of the same rows over the S entries.
        stored: int64 ``[S]``, the stored position of each entry. None: all of them, in their order.
        host: the same on the host, of a ragged selection that was made there.
    """

    source: Segments
    rows: Segments
    stored: Tensor | None = None
    host: NDArray[np.int64] | None = None

    def take(self, x_U: Tensor) -> Tensor:
        """Return the values of the history at the entries, ``[S, ...]`` of ``[U, ...]``."""
        return x_U if self.stored is None else x_U.index_select(0, self.stored)

    def take_on_host(self, x_U: NDArray[Any]) -> NDArray[Any]:
        """Return the values at the entries, on the host."""
        if self.stored is None:
            return x_U
        assert self.host is not None, "this selection was made on the device"
        chosen: NDArray[Any] = x_U[self.host]
        return chosen

    def then(self, further: Selection) -> Selection:
        """Return the result of a selection among the entries of this one."""
        if self.stored is None:
            return further
        if further.stored is None:
            return self
        stored = self.stored.index_select(0, further.stored)
        return Selection(self.source, further.rows, stored)

    def project(self, layer: Callable[[Tensor], Tensor], x_UD: Float[Tensor, "U D"]) -> Float[Tensor, "S W"]:
        """Return the output of a layer at the entries.

        It is computed on the entries alone, unless several rows read the same event: then once per event.
        """
        once = self.source.requests is not self.source
        return self.take(layer(x_UD)) if once else layer(self.take(x_UD))

    def restore(self, w_N: Float[Tensor, " n"]) -> Float[Tensor, " N"]:
        """Return weights of the positions of ``rows`` as weights of all positions of the source. 0 for others."""
        if self.stored is None:
            return w_N
        source, rows = self.source, self.rows
        if source.shared:
            stored_N = self.stored if isinstance(rows, Slots) else self.stored.repeat(rows.rows)
            position_N = rows.row * source.positions + stored_N
            blank_N = w_N.new_zeros(source.rows * source.positions)
            return blank_N.index_add(0, position_N, w_N)  # slots without an event weigh 0
        shift_B = source.offsets[:-1] - source.broadcast(source.requests.offsets[:-1])
        position_N = rows.flatten(self.stored)[0] + rows.expand_rows(shift_B)
        return w_N.new_zeros(source.positions).index_copy(0, position_N, w_N)


class Slots(Segments):
    """Rows of a shared history that have entries of their own, K each.

    Args:
        of: the segments of the history.
        slots: K.
        real_BK: True for slots that have an event. None: all have.
    """

    def __init__(self, of: Segments, slots: int, real_BK: Bool[Tensor, "B K"] | None = None) -> None:
        super().__init__(of.offsets, of.rows, slots, shared=True)
        self.real_BK = real_BK

    def _by_row(self, k_SD: Tensor) -> Tensor:
        return k_SD.reshape(self.rows, self.positions, k_SD.shape[1])

    def keys(self, k_UD: Float[Tensor, "S D"]) -> Float[Tensor, "S D"]:
        """Return the entries, which are those of the rows already."""
        return k_UD

    def add(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "S D"]) -> Float[Tensor, "S D"]:
        """Return ``expand(x) + k``."""
        return (x_BD.unsqueeze(1) + self._by_row(k_UD)).reshape(k_UD.shape)

    def mul(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "S D"]) -> Float[Tensor, "S D"]:
        """Return ``expand(x) * k``."""
        return (x_BD.unsqueeze(1) * self._by_row(k_UD)).reshape(k_UD.shape)

    def dot(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "S D"]) -> Float[Tensor, " S"]:
        """Return ``<expand(x), k>``."""
        return torch.matmul(self._by_row(k_UD), x_BD.unsqueeze(2)).reshape(-1)

    def softmax(self, s_N: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """Return the softmax of the scores of each row's events. 0 for slots without an event."""
        if self.real_BK is None:
            return super().softmax(s_N)
        s_BK = s_N.reshape(self.rows, self.positions).masked_fill(~self.real_BK, _NEVER)
        return (s_BK.softmax(1) * self.real_BK).reshape(-1)

    def attend(self, q_BHD: Float[Tensor, "B H D"], k_SD: Float[Tensor, "S D"]) -> Float[Tensor, "B H D"]:
        """Return the attention of H queries of each row to its entries: their sum, weighted by a softmax of products.

        It is 0 for a row without events.
        """
        k_BKD = k_SD.reshape(self.rows, self.positions, k_SD.shape[1])
        s_BHK = torch.matmul(q_BHD, k_BKD.transpose(1, 2))
        if self.real_BK is None:
            return torch.matmul(s_BHK.softmax(2), k_BKD)
        real_B1K = self.real_BK.unsqueeze(1)
        return torch.matmul(s_BHK.masked_fill(~real_B1K, _NEVER).softmax(2) * real_B1K, k_BKD)

    def weighted_sum(self, w_N: Float[Tensor, " S"], k_UD: Float[Tensor, "S D"]) -> Float[Tensor, "B D"]:
        """Return the sum over each row's slots of ``w * k``."""
        w_B1K = w_N.to(k_UD.dtype).reshape(self.rows, 1, self.positions)
        return torch.matmul(w_B1K, self._by_row(k_UD)).squeeze(1)


def select_all(segments: Segments) -> Selection:
    """Return the selection of every event."""
    return Selection(segments, segments)


def exceeds(segments: Segments, k: int) -> bool:
    """Return True if a row has more than ``k`` events, or a program may read such a row."""
    if segments.shared:
        return kernels.is_traced() or segments.positions > k
    return bool((np.diff(segments.host_offsets) > k).any())


def select_newest(segments: Segments, k: int) -> Selection:
    """Return the newest ``k`` events of each history."""
    return _split(segments, k, newest=True)


def select_older(segments: Segments, k: int) -> Selection:
    """Return all events of each history but the newest ``k``."""
    return _split(segments, k, newest=False)


def _split(segments: Segments, k: int, newest: bool) -> Selection:
    plan = ("newest" if newest else "older", k)
    if plan not in segments.memo:
        chosen = _split_shared(segments, k, newest) if segments.shared else _cut(segments, k, newest)
        # Without the selection, whose source is these segments: a cycle would keep the batch until the next collection.
        segments.memo[plan] = chosen.rows, chosen.stored, chosen.host
    return Selection(segments, *segments.memo[plan])


def _split_shared(segments: Segments, k: int, newest: bool) -> Selection:
    last = limit_slots(segments.positions, k)
    first = segments.positions - last
    count = last if newest else first
    stored = torch.arange(count, device=segments.offsets.device)
    rows = Segments(segments.offsets, segments.rows, count, shared=True)
    return Selection(segments, rows, stored + first if newest else stored)


def _cut(segments: Segments, k: int, newest: bool) -> Selection:
    """Return the newest events, or the others, of each history of a ragged batch, which all rows of a request read."""
    offsets, device = segments.requests.host_offsets, segments.offsets.device
    newest_U = np.arange(offsets[-1]) >= expand_rows(offsets, offsets[1:] - k)
    stored = np.flatnonzero(newest_U == newest)
    rows = Segments.of_offsets(np.searchsorted(stored, offsets), device)
    if isinstance(segments, GroupedSegments):
        rows = GroupedSegments(rows, segments.layout)
    return Selection(segments, rows, put(stored, device), stored)


def search_top(
    score: Callable[..., Float[Tensor, " N"]], events: Sequence[Tensor], segments: Segments, k: int
) -> Selection:
    """Return the ``k`` events of each row with the highest scores, see ``select_top``, from a function of the events.

    A program scores the events newest first, and selects the first of equal scores (``nn/first_top.py``). So it reads
    the scores of all pairs of row and event once, where ``select_top`` compares each with the lowest selected one.

    Args:
        score: function that returns the scores of all positions of the events, in their order: float32, or int32.
        events: its arguments, ``[U, ...]`` each.
    """
    if not (segments.shared and kernels.is_traced()):
        return select_top(score(*events), segments, k)
    last = segments.positions - 1
    newest_U = last - torch.arange(segments.positions, device=segments.offsets.device)
    s_N = score(*(x_U.index_select(0, newest_U) for x_U in events)).detach()
    best_BK = find_first_top(s_N.reshape(segments.rows, segments.positions), limit_slots(segments.positions, k))
    return _fill_slots(segments.positions - best_BK, segments, full=True)


def select_top(s_N: Float[Tensor, " N"], segments: Segments, k: int) -> Selection:
    """Return the ``k`` events of each row with the highest scores, without a gradient of the scores.

    A row of at most ``k`` events has all of them. Of equal scores the newest events are selected.
    """
    if not exceeds(segments, k):
        return select_all(segments)
    s_N = s_N.detach().float()
    if segments.shared:
        return _select_slots(_find_top(s_N.reshape(segments.rows, segments.positions), k), segments, k)
    device, name = segments.offsets.device, ("top", k)
    if name not in segments.memo:
        *plans, edges = _plan_top(segments.host_offsets, k)
        segments.memo[name] = put_all(plans, device), edges
    (candidate_M, row_M, best, slot, position_S), edges = segments.memo[name]
    # An integer with the order of the score. Zeros of both signs are one.
    bits_M = (s_N.index_select(0, candidate_M) + 0.0).view(torch.int32).long()
    order_M = (row_M * 2**32 - (bits_M ^ ((bits_M >> 63) & (2**31 - 1)))).sort(stable=True)[1]
    chosen = candidate_M.index_select(0, order_M.index_select(0, best))
    return _select_positions(segments, position_S.index_copy(0, slot, chosen), edges)


def _plan_top(offsets: NDArray[np.int64], k: int) -> list[NDArray[np.int64]]:
    """Return what does not depend on scores.

    The positions of rows of more than k events, newest first, and their rows; the best k of each row in the order of
    scores; the entries of these; all entries, with the positions of shorter rows; and the offsets of the entries.
    """
    lengths = np.diff(offsets)
    many, counts = lengths > k, np.minimum(lengths, k)
    own = lengths[many]
    first = own.cumsum() - own
    rank_M = np.arange(own.sum()) - np.repeat(first, own)
    candidate_M = np.repeat(offsets[1:][many] - 1, own) - rank_M
    row_M = np.repeat(np.arange(len(own)), own)
    best = (first[:, None] + np.arange(k)).ravel()
    of_many_S = np.repeat(many, counts)
    position_S = np.zeros(len(of_many_S), np.int64)
    position_S[~of_many_S] = np.flatnonzero(np.repeat(~many, lengths))
    return [candidate_M, row_M, best, np.flatnonzero(of_many_S), position_S, np.append(0, counts.cumsum())]


def select_key(
    wanted_B: Tensor | NDArray[np.int64], key_U: Tensor | NDArray[np.int64], segments: Segments, k: int
) -> Selection:
    """Return the newest ``k`` events of each row that have the key of its candidate.

    A missing or unseen key selects no event.

    Args:
        wanted_B, key_U: ids of the candidates and of the events. Of a ragged batch on the host.
    """
    if segments.shared:
        number_BK = find_key(torch.as_tensor(wanted_B), torch.as_tensor(key_U), limit_slots(segments.positions, k))
        if kernels.choose(number_BK) in ("cpu", "plain") and number_BK.numel():
            number_BK = number_BK[:, : int((number_BK > 0).sum(1).max())]  # no row needs more slots
        return _fill_slots(number_BK, segments, full=False)
    wanted, key, offsets = np.asarray(wanted_B), np.asarray(key_U), segments.host_offsets
    if isinstance(segments, GroupedSegments):
        rows = segments.on_host
        assert isinstance(rows, GroupedSegments)
        key = key[rows.stored_position.numpy()]
    wanted_N = expand_rows(offsets, wanted)
    match_N = (key == wanted_N) & (wanted_N >= RESERVED)
    before = np.append(0, match_N.cumsum())  # number of matches before each position
    newer_N = expand_rows(offsets, before[offsets[1:]]) - before[1:]
    position = np.flatnonzero(match_N & (newer_N < k))
    device = segments.offsets.device
    return _select_positions(segments, put(position, device), np.searchsorted(position, offsets))


def _select_positions(segments: Segments, position_S: Tensor, edges: NDArray[np.int64]) -> Selection:
    """Return the selection of positions of ragged rows."""
    stored_S = position_S
    if isinstance(segments, GroupedSegments):
        stored_S = segments.stored_position.index_select(0, position_S)
    return Selection(segments, Segments.of_offsets(edges, segments.offsets.device), stored_S)


def _find_top(s_BT: Float[Tensor, "B T"], k: int) -> Bool[Tensor, "B T"]:
    """Return True for the k highest scores of each row, the newest of equal ones."""
    count = limit_slots(s_BT.shape[1], k)
    top_BK = s_BT.topk(count, 1)[0]
    # The lowest of them, with an entry for a history without events.
    least_B1 = torch.cat([top_BK, top_BK.new_full((top_BK.shape[0], 1), torch.inf)], 1).amin(1, keepdim=True)
    above_BT, equal_BT = s_BT > least_B1, s_BT == least_B1
    newer_BT = equal_BT.long().flip(1).cumsum(1).flip(1)
    return above_BT | (equal_BT & (newer_BT <= count - above_BT.sum(1, keepdim=True)))


def limit_slots(events: int, k: int) -> Any:
    """Return the number of slots of a row of a shared history: ``min(k, T)``, traced in a program."""
    return torch.sym_min(k, events) if kernels.is_traced() else min(k, events)  # type: ignore[no-untyped-call]


def _select_slots(chosen_BT: Bool[Tensor, "B T"], segments: Segments, k: int) -> Selection:
    """Return the newest k chosen events of each row of a shared history, which has at least ``min(k, T)`` of them."""
    index_T = torch.arange(1, segments.positions + 1, device=chosen_BT.device)
    number_BK: Int[Tensor, "B K"] = torch.where(chosen_BT, index_T, 0).topk(limit_slots(segments.positions, k), 1)[0]
    return _fill_slots(number_BK, segments, full=True)


def _fill_slots(number_BK: Int[Tensor, "B K"], segments: Segments, full: bool) -> Selection:
    """Return the selection of the events of each row with these numbers, from 1. 0 is a slot without an event.

    Args:
        full: no slot is without an event.
    """
    stored_S = (number_BK - 1).clamp(min=0).reshape(-1)
    return Selection(segments, Slots(segments, number_BK.shape[1], None if full else number_BK > 0), stored_S)
