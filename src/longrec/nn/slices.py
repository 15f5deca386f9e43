"""Slices of a history: a fixed number of numbered groups of events, such as spans of time, all computed.

Every event is in one slice, of which 0 is the oldest. An empty slice is masked: it has no weight.

Shapes: B rows, R requests, N positions, U entries of a history (see nn/segments.py), T positions of a shared history, S
slices, D width.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from longrec.nn.host_plans import expand_rows, fetch, put, sort
from longrec.nn.segments import Segments


class Slices:
    """Slices of the histories of a batch.

    Args:
        number_U: slice number of each event, below ``count``, on the host or on the device, from which it is copied.
        count: S.
    """

    def __init__(self, number_U: Int[Tensor, " U"], count: int, segments: Segments) -> None:
        self._numbers, self.count, self.segments = number_U, count, segments
        self._device = segments.offsets.device

    @cached_property
    def number_U(self) -> Tensor:
        """Slice number of each event."""
        return self._numbers.to(self._device)

    @cached_property
    def _member_ST(self) -> Tensor:
        return torch.arange(self.count, device=self._device).unsqueeze(1) == self.number_U

    @cached_property
    def _key_U(self) -> NDArray[np.int64]:
        """One number per slice, ascending with the requests. Not for a shared history."""
        stored = self.segments.requests
        return expand_rows(stored.host_offsets, np.arange(stored.rows)) * self.count + fetch(self._numbers)

    @cached_property
    def _slots(self) -> Segments:
        """The slices of all requests over their events. Not for a shared history."""
        counts = np.bincount(self._key_U, minlength=self.segments.requests.rows * self.count)
        return Segments.of_offsets(np.concatenate([[0], counts.cumsum()]), self._device)

    @cached_property
    def filled_RS(self) -> Bool[Tensor, "R S"]:
        """Mask of the slices that have events."""
        if self.segments.shared:
            return (self._member_ST.long().sum(1) > 0).unsqueeze(0)
        offsets = self._slots.offsets
        return (offsets[1:] > offsets[:-1]).view(-1, self.count)

    def pool(self, s_U: Float[Tensor, " U"], h_UD: Float[Tensor, "U D"]) -> tuple[Tensor, Tensor]:
        """Return ``sum_j softmax_j(s_j) h_j`` over the events of each slice, ``[R, S, D]``, and the weights ``[U]``."""
        if self.segments.shared:
            w_ST = masked_softmax(s_U.unsqueeze(0), self._member_ST, 1)
            return (w_ST @ h_UD).unsqueeze(0), w_ST.sum(0)
        slots, order_U = self._slots, None
        if not (self._key_U[1:] >= self._key_U[:-1]).all():  # in order of time already in most batches
            order_U = put(sort(self._key_U)[1], self._device)
            s_U, h_UD = s_U.index_select(0, order_U), h_UD.index_select(0, order_U)
        w_U = slots.softmax(s_U)
        l_RSD = slots.weighted_sum(w_U, h_UD).view(self.segments.requests.rows, self.count, -1)
        return l_RSD, w_U if order_U is None else torch.empty_like(w_U).index_copy(0, order_U, w_U)

    def weighted_sum(self, w_BS: Float[Tensor, "B S"], u_RSD: Float[Tensor, "R S D"]) -> Float[Tensor, "B D"]:
        """Return the sum over the slices of ``w * u``."""
        if self.segments.shared:
            return w_BS @ u_RSD[0]
        return torch.bmm(w_BS.unsqueeze(1), self.segments.broadcast(u_RSD)).squeeze(1)

    def weigh_events(self, w_BS: Float[Tensor, "B S"], share_U: Float[Tensor, " U"]) -> Tensor:
        """Return the weight of each event's slice times its weight within it: ``[N]``, shared ``[B, T]``."""
        if self.segments.shared:
            return w_BS.index_select(1, self.number_U) * share_U
        (number_N, flat), (share_N, _) = self.segments.flatten(self.number_U), self.segments.flatten(share_U)
        return w_BS.flatten().index_select(0, flat.row * self.count + number_N) * share_N


def masked_softmax(s: Tensor, real: Tensor, dim: int) -> Tensor:
    """Return the softmax over entries of the mask. 0 elsewhere, and everywhere for an empty mask."""
    s = s.float()
    w = s.masked_fill(~real, torch.finfo(s.dtype).min).softmax(dim)
    return w * real
