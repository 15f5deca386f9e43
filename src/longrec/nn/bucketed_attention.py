"""Attention over ragged histories, computed in buckets of rows of similar length.

The caller makes queries, keys and values, and scales, normalizes or projects them as its paper says. Dot products,
bilinear forms and cosines are therefore all

    o_i = sum_j softmax_j(q_i . k_j) v_j                                            in each head

``attend_within`` computes the attention of the events of a row over each other, and ``attend_query`` that of one query
per row over its events. In both, a row may add a key and a value of its own (``own``), as for a candidate that is
placed among its events.

In a ragged batch, rows of similar length are adjacent (nn/length_buckets.py), and all inputs are in that order.
``gather_positions`` and ``gather_rows`` put tensors into it, ``restore_positions`` and ``restore_rows`` undo it. All
other operations of a layer run on flat positions. A shared history is computed once for all candidates. In a grouped
batch ``requests`` is the attention of events over each other, once per request, and ``flatten`` repeats its results for
each candidate. The result of a row without events is 0, or its own value.

Shapes: B rows, N positions, U entries of a history (see nn/segments.py), R rows of a bucket, T events of its longest
row, C candidates per row (1, or all of a request), H heads, X width of all heads' queries and keys, V width of values.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn import kernels
from longrec.nn.host_plans import expand_rows, fetch
from longrec.nn.length_buckets import Bucket, Buckets
from longrec.nn.segments import GroupedSegments, Segments

_MAX_POSITIONS = 4_096
"""Maximum number of positions of a bucket."""

Own = tuple[Tensor, Tensor]
"""Keys ``[B, X]`` and values ``[B, V]`` that rows add to those of their events."""


class BucketedAttention:
    """Attention over the events of the rows of a batch.

    Args:
        segments: rows and positions.
        seen_TT: bool mask of the events of a shared history that each event attends to (its own included), or None for
            all. In a ragged batch, groups of events are segments of their own.
    """

    def __init__(self, segments: Segments, seen_TT: Tensor | None = None) -> None:
        self.shared, self.seen_TT = segments.shared, seen_TT
        self.buckets: list[Bucket] = []
        self.sizes: list[int] = []
        self.filled = segments.rows
        self._segments = segments
        self._order: Buckets | None = None
        if self.shared:
            return
        plan = Buckets.of(segments, _MAX_POSITIONS)
        self.buckets, self.sizes, self.filled = plan.all, plan.sizes, plan.filled
        self._order = None if plan.sorted else plan

    @property
    def requests(self) -> BucketedAttention:
        """Attention over the events of the requests, each history once. Itself unless rows are grouped."""
        return self._of_requests or self

    @cached_property
    def _of_requests(self) -> BucketedAttention | None:
        stored = self._segments.requests
        return None if self.shared or stored is self._segments else BucketedAttention(stored)

    def folds(self, x: Tensor) -> bool:
        """Return True if nn/folded_attention.py computes the attention of one query per row over events ``x``."""
        return not self.shared and self._of_requests is None and kernels.choose(x) == "cpu"

    def flatten(self, x_UW: Tensor) -> Tensor:
        """Return ``[N, W]``, the value at every position, from that of ``requests``, both in bucket order."""
        return _select(x_UW, self._stored)

    @cached_property
    def _stored(self) -> Tensor | None:
        """int64 ``[N]``: the entry of ``requests`` that each position reads. None: the same."""
        if self._of_requests is None or not isinstance(self._segments, GroupedSegments):
            return None
        stored_N, of_requests = self.gather_positions(self._segments.stored_position), self._of_requests._order
        return stored_N if of_requests is None else of_requests.positions_back.index_select(0, stored_N)

    def gather_rows(self, x_BW: Tensor) -> Tensor:
        """Reorder a tensor over rows from batch order to bucket order. Rows without events come last."""
        order = self._order
        return x_BW if order is None else _permute(x_BW, order.every_row, order.every_row_back)

    def restore_rows(self, x_BW: Tensor) -> Tensor:
        """Reorder a tensor over rows from bucket order to batch order."""
        order = self._order
        return x_BW if order is None else _permute(x_BW, order.every_row_back, order.every_row)

    def gather_positions(self, x_UW: Tensor) -> Tensor:
        """Reorder a tensor over positions from batch order to bucket order."""
        order = self._order
        return x_UW if order is None else _permute(x_UW, order.positions, order.positions_back)

    def restore_positions(self, x_UW: Tensor) -> Tensor:
        """Reorder a tensor over positions from bucket order to batch order."""
        order = self._order
        return x_UW if order is None else _permute(x_UW, order.positions_back, order.positions)

    def pool_beside(self, x: Tensor, y_BD: Tensor, how: Literal["mean", "sum"]) -> Tensor:
        """Return the mean or the sum over the events of each row and an entry of its own, ``[B, D]``.

        Args:
            x: outputs of ``attend_within`` with ``own``: ``[N, D]`` in bucket order, shared ``[B, T, D]``.
            y_BD: the row's own entry, in batch order.
        """
        if self.shared:
            all_BTD = torch.cat([x, y_BD.unsqueeze(1)], 1)
            return all_BTD.mean(1) if how == "mean" else all_BTD.sum(1)
        total_BD = self._segments.sum(self.restore_positions(x)) + y_BD
        return total_BD if how == "sum" else total_BD / (1 + self._segments.lengths())

    def attend_within(self, q: Tensor, k: Tensor, v: Tensor, heads: int, own: Own | None = None) -> Tensor:
        """Return ``[U, V]``, the attention of each event over its row's events. With ``own`` in a shared batch: ``[B,
        T, V]``.

        Args:
            q, k, v: ``[U, X]``, ``[U, X]`` and ``[U, V]``; or ``[B, T, ...]`` of a shared history whose events differ
                per candidate.
        """
        if self.shared:
            q_RTX, k_RTX, v_RTV = (x if x.ndim == 3 else x.unsqueeze(0) for x in (q, k, v))
            if own is not None:
                return _attend_beside(q_RTX, k_RTX, v_RTV, heads, *_shape_own(own, k)).flatten(0, 1)
            return _attend_within(q_RTX, k_RTX, v_RTV, heads, self.seen_TT).view(v.shape)
        if not self.buckets:
            return v
        outputs = []
        chunks = (torch.split(x, self.sizes) for x in (q, k, v))
        for bucket, chunk_q, chunk_k, chunk_v in zip(self.buckets, *chunks):
            q_RTX, k_RTX, v_RTV = (bucket.pad(chunk) for chunk in (chunk_q, chunk_k, chunk_v))
            seen = None if bucket.real is None else bucket.real[:, None, None, :]
            if own is not None:
                k_RTX, v_RTV = (torch.cat([x, o[bucket.rows].unsqueeze(1)], 1) for x, o in zip((k_RTX, v_RTV), own))
                seen = None if seen is None else F.pad(seen, (0, 1), value=True)
            outputs.append(_drop_padding(_attend_within(q_RTX, k_RTX, v_RTV, heads, seen).flatten(0, 1), bucket))
        return torch.cat(outputs)

    def attend_query(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, own: Own | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the attention of each row's query ``[B, V]`` and its weights, mean over heads: ``[N]``, shared ``[B,
        T]``.

        Args:
            q: ``[B, X]``.
            k, v: as in ``attend_within``.
        """
        if self.shared:
            apart = k.ndim == 3
            q_RCX = q.unsqueeze(1) if apart else q.unsqueeze(0)
            k_RTX, v_RTV = (k, v) if apart else (k.unsqueeze(0), v.unsqueeze(0))
            o_RCV, w_RCT = _attend_candidates(q_RCX, k_RTX, v_RTV, heads, None if own is None else _shape_own(own, k))
            return o_RCV.flatten(0, 1), w_RCT.flatten(0, 1)
        blank = v.new_zeros(len(q) - self.filled, v.shape[1]) if own is None else own[1][self.filled :]
        outputs, weights = [], [v[:0, 0]]
        for bucket, chunk_k, chunk_v in zip(self.buckets, *(torch.split(x, self.sizes) for x in (k, v))):
            beside = None if own is None else (own[0][bucket.rows], own[1][bucket.rows])
            rows = q[bucket.rows]
            o_RV, w_RT = _attend_one(rows, bucket.pad(chunk_k), bucket.pad(chunk_v), heads, bucket.real, beside)
            outputs.append(o_RV)
            weights.append(_drop_padding(w_RT.flatten(), bucket))
        return torch.cat([*outputs, blank]), torch.cat(weights)


def attend_runs(value_U: Tensor | None, segments: Segments) -> tuple[BucketedAttention, Tensor]:
    """Return the attention of the events of each run over each other, and the number of newer events in its run.

    A run is the consecutive events of a row that have one value.

    Args:
        value_U: integers of at most 32 bits, on the host or on the device, from which they are copied. None: a row is
            one run.
        segments: of requests over stored positions.
    """
    if value_U is None:
        return BucketedAttention(segments), segments.count_newer()
    if not segments.shared:
        row = expand_rows(segments.host_offsets, np.arange(segments.rows))
        runs = Segments.of_runs(row * 2**32 + fetch(value_U), segments.offsets.device)
        return BucketedAttention(runs), runs.count_newer()
    value_U = value_U.to(segments.offsets.device)
    position_U = torch.arange(segments.positions, device=value_U.device)
    before_U = value_U.index_select(0, (position_U - 1).clamp(min=0))
    number_U = (value_U != before_U).cumsum(0)
    seen_TT = number_U.unsqueeze(1) == number_U.unsqueeze(0)
    newer_U = (seen_TT & (position_U.unsqueeze(1) < position_U.unsqueeze(0))).sum(1)
    return BucketedAttention(segments, seen_TT), newer_U


def _permute(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    out: Tensor = _Permute.apply(x, order, back)  # type: ignore[no-untyped-call]
    return out


class _Permute(torch.autograd.Function):
    """``x[order]`` of a permutation. Its gradient is a gather too, where that of ``index_select`` adds row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return g.index_select(0, *ctx.saved_tensors), None, None


def _select(x: Tensor, at: Tensor | None) -> Tensor:
    return x if at is None else x.index_select(0, at)


def _drop_padding(x: Tensor, bucket: Bucket) -> Tensor:
    """Return the entries that are not padding."""
    return _select(x, bucket.slots)


def _shape_own(own: Own, k: Tensor) -> Own:
    """``[R, C, W]``: all candidates of one history, or the single candidate of each history that differs per
    candidate.
    """
    return (own[0].unsqueeze(1), own[1].unsqueeze(1)) if k.ndim == 3 else (own[0].unsqueeze(0), own[1].unsqueeze(0))


def _split_heads(x_RTX: Tensor, heads: int) -> Tensor:
    """``[R, H, T, d]``."""
    rows, entries, width = x_RTX.shape
    return x_RTX.reshape(rows, entries, heads, width // heads).transpose(1, 2)


def _attend_within(q_RTX: Tensor, k_RTX: Tensor, v_RTV: Tensor, heads: int, seen: Tensor | None) -> Tensor:
    """``[R, T, V]``."""
    q, k, v = (_split_heads(x, heads) for x in (q_RTX, k_RTX, v_RTV))
    if kernels.is_traced():
        s_RHTT = torch.matmul(q, k.transpose(2, 3))
        if seen is not None:
            s_RHTT = s_RHTT.masked_fill(~seen, -torch.inf)
        o = torch.matmul(s_RHTT.softmax(3).to(v.dtype), v)
    else:
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0)
    return o.transpose(1, 2).flatten(2)


def _attend_beside(q: Tensor, k: Tensor, v: Tensor, heads: int, own_k: Tensor, own_v: Tensor) -> Tensor:
    """``[R, C, T, V]``: attention of events with each candidate as one more key. Scores among events are computed
    once.
    """
    q, k, v, own_k, own_v = (_split_heads(x, heads) for x in (q, k, v, own_k, own_v))
    s_RHTT = torch.matmul(q, k.transpose(2, 3))
    t_RHCT1 = torch.matmul(own_k, q.transpose(2, 3)).unsqueeze(4)
    s_RHCTT = s_RHTT.unsqueeze(2).expand(-1, -1, own_k.shape[2], -1, -1)
    w = torch.cat([s_RHCTT, t_RHCT1], 4).softmax(4).to(v.dtype)
    e_RHCTd = torch.matmul(w[..., :-1], v.unsqueeze(2)) + w[..., -1:] * own_v.unsqueeze(3)
    return e_RHCTd.permute(0, 2, 3, 1, 4).flatten(3)


def _attend_candidates(q: Tensor, k: Tensor, v: Tensor, heads: int, own: Own | None) -> tuple[Tensor, Tensor]:
    """``[R, C, V]`` and ``[R, C, T]``: attention of C candidates per row, and their weights, mean over heads."""
    q, k, v = (_split_heads(x, heads) for x in (q, k, v))
    s_RHCT = torch.matmul(q, k.transpose(2, 3))
    if own is None:
        w = s_RHCT.softmax(3).to(v.dtype)
        return torch.matmul(w, v).transpose(1, 2).flatten(2), w.mean(1)
    own_k, own_v = (_split_heads(x, heads) for x in own)
    own_RHC1 = (q * own_k).sum(3, keepdim=True).to(s_RHCT.dtype)
    w = torch.cat([s_RHCT, own_RHC1], 3).softmax(3).to(v.dtype)
    o_RHCd = torch.matmul(w[..., :-1], v) + w[..., -1:] * own_v
    return o_RHCd.transpose(1, 2).flatten(2), w[..., :-1].mean(1)


def _attend_one(
    q_RX: Tensor, k_RTX: Tensor, v_RTV: Tensor, heads: int, real_RT: Tensor | None, own: Own | None
) -> tuple[Tensor, Tensor]:
    """``[R, V]`` and ``[R, T]`` of one query per row, as products and sums, which are faster here than small matrix
    products.
    """
    rows, entries, width = k_RTX.shape
    q_R1Hd = q_RX.reshape(rows, 1, heads, width // heads)
    s_RTH = (q_R1Hd * k_RTX.reshape(rows, entries, heads, width // heads)).sum(3)
    if real_RT is not None:
        s_RTH = s_RTH.masked_fill(~real_RT.unsqueeze(2), -torch.inf)
    if own is not None:
        s_RTH = torch.cat([s_RTH, (q_R1Hd * own[0].reshape(q_R1Hd.shape)).sum(3)], 1)
    w_RTH = s_RTH.softmax(1).to(v_RTV.dtype)
    events_RTH = w_RTH[:, :entries]
    o_RHd = (events_RTH.unsqueeze(3) * v_RTV.reshape(rows, entries, heads, -1)).sum(1)
    if own is not None:
        o_RHd = o_RHd + w_RTH[:, entries].unsqueeze(2) * own[1].reshape(o_RHd.shape)
    return o_RHd.flatten(1), events_RTH.mean(2)
