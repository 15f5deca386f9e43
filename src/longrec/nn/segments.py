"""Segments: which positions of a history belong to each candidate of a batch.

A model writes its formula once, and it runs on all layouts of a batch:

- **single** (training, evaluation): N flat positions, where row b owns ``offsets[b]:offsets[b + 1]``, possibly empty;
- **shared** (serving): one history of T positions that each of B candidates reads, so N = B T. Tensors that depend on
  the history alone keep T rows until they are first combined with the candidate;
- **grouped** (training on requests of several candidates): the history of a request is stored once and read by each
  of its candidates. Tensors that depend on the history alone keep one row per stored position.

For a row without positions, ``sum``, ``mean``, ``max`` and ``weighted_sum`` return 0, never NaN.

Shapes: B rows (candidates), R requests, N positions that the rows read, U positions that the histories store (N single,
T shared, at most N grouped), D, H widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from longrec.features.batch import Batch, HistoryBatch, Jagged, Layout
from longrec.nn import kernels, segment_kernels
from longrec.nn.host_plans import put

Pool = Literal["mean", "sum", "max"]


class Segments:
    """B rows over the positions of one history.

    Args:
        offsets: int64 ``[B + 1]``. Not read when shared.
        rows: B.
        positions: N, or T when shared.
        host: the offsets on the host. None: copied when first needed.

    Attributes:
        memo: plans that were made from the offsets (nn/host_plans.py).
    """

    def __init__(
        self,
        offsets: Tensor,
        rows: int,
        positions: int,
        shared: bool = False,
        host: NDArray[np.int64] | None = None,
    ) -> None:
        self.offsets, self.rows, self.positions, self.shared, self._host = offsets, rows, positions, shared, host
        self.memo: dict[Any, Any] = {}

    @staticmethod
    def of(batch: Batch, history: str) -> Segments:
        """Return the segments of a history of a batch. They are made once per batch."""
        events = batch.histories[history]
        layout, segments = events.memo.get("segments", (None, None))
        if layout is not batch.layout:
            segments = _make_segments(events, batch.layout)
            events.memo["segments"] = batch.layout, segments
        assert isinstance(segments, Segments)
        return segments

    @classmethod
    def of_runs(cls, key_N: NDArray[np.int64], device: torch.device) -> Segments:
        """Return the runs of equal values of an integer key per position, ragged, none of them empty."""
        first_N = np.ones(len(key_N), bool)
        first_N[1:] = key_N[1:] != key_N[:-1]
        return cls.of_offsets(np.append(np.flatnonzero(first_N), len(key_N)), device)

    @classmethod
    def of_offsets(cls, offsets: NDArray[np.int64], device: torch.device) -> Segments:
        """Return ragged segments of offsets on the host."""
        return cls(put(offsets, device), len(offsets) - 1, int(offsets[-1]), host=offsets)

    @classmethod
    def of_values(cls, values: Jagged) -> Segments:
        """Return the segments of a multi-value feature: entry r owns its values."""
        return cls(values.offsets, values.offsets.shape[0] - 1, values.values.shape[0])

    @staticmethod
    def concat(every: Sequence[Segments]) -> tuple[Segments, Tensor | None]:
        """Return the segments of several histories of the same rows as one history, and the order of its positions.

        The order is an index of the concatenated stored positions that puts those of a row next to each other. None:
        they keep their order.
        """
        first, positions = every[0], sum(segments.positions for segments in every)
        if len(every) == 1:
            return first, None
        if first.shared:
            return Segments(first.offsets, first.rows, positions, shared=True), None
        if isinstance(first, GroupedSegments):
            stored, order = Segments.concat([segments.requests for segments in every])
            return GroupedSegments(stored, first.layout), order
        offsets = torch.stack([segments.offsets for segments in every]).sum(0)
        order = torch.cat([segments.row for segments in every]).argsort(stable=True)
        host = np.sum([segments.host_offsets for segments in every], 0)
        return Segments(offsets, first.rows, positions, host=host), order

    @property
    def host_offsets(self) -> NDArray[np.int64]:
        """The offsets on the host, int64 ``[B + 1]``. Not defined when shared."""
        if self._host is None:
            self._host = self.offsets.detach().cpu().numpy()
        return self._host

    @property
    def on_host(self) -> Segments:
        """The same segments on the host, for plans from values on the host."""
        if self.offsets.device.type == "cpu":
            return self
        if "host" not in self.memo:
            self.memo["host"] = self._copy_to_host()
        copy: Segments = self.memo["host"]
        return copy

    def _copy_to_host(self) -> Segments:
        return Segments(torch.from_numpy(self.host_offsets), self.rows, self.positions, self.shared, self._host)

    @property
    def requests(self) -> Segments:
        """The requests over the stored positions: R rows, each history once."""
        return Segments(self.offsets, 1, self.positions, shared=True) if self.shared else self

    def repeat(self, x_RD: Float[Tensor, "R D"]) -> Float[Tensor, "B D"]:
        """Return the value of its request for every row."""
        return x_RD.expand(self.rows, -1) if self.shared else x_RD

    def broadcast(self, x_R: Tensor) -> Tensor:
        """Return values of requests that broadcast against those of rows: ``[B, ...]``, or ``[1, ...]`` when shared."""
        return x_R

    @property
    def flat(self) -> Segments:
        """Segments in which no two rows share positions, unless all rows share one history."""
        return self

    def flatten(self, k_U: Shaped[Tensor, "U ..."]) -> tuple[Shaped[Tensor, "N ..."], Segments]:
        """Return the keys at the positions of ``flat``, and these segments."""
        return k_U, self

    def multiply(self, times: int) -> Segments:
        """Return segments in which each position is followed by ``times - 1`` more of its row."""
        host = None if self._host is None else self._host * times
        return Segments(self.offsets * times, self.rows, self.positions * times, self.shared, host)

    def lengths(self) -> Tensor | int:
        """Return the number of positions of each row: int64 ``[B, 1]``, or T for all when shared."""
        return self.positions if self.shared else (self.offsets[1:] - self.offsets[:-1]).unsqueeze(1)

    def count_newer(self) -> Tensor:
        """Return int64 ``[U]``: the number of newer positions in the history of each stored position."""
        stored = self.requests
        stop = stored.positions if self.shared else stored.expand_rows(stored.offsets[1:])
        return stop - 1 - torch.arange(stored.positions, device=self.offsets.device)

    def by_candidate(self, w_N: Float[Tensor, " N"]) -> Tensor:
        """Return weights of positions as a model explains them: ``[N]``, or ``[B, T]`` when shared."""
        return w_N.reshape(self.rows, -1) if self.shared else w_N

    def repeat_weights(self, w_U: Float[Tensor, " U"]) -> Tensor:
        """Return weights that depend on the history alone as a model explains them: ``[N]``, or ``[B, T]`` shared."""
        return w_U.unsqueeze(0).expand(self.rows, -1) if self.shared else self.keys(w_U.unsqueeze(1)).squeeze(1)

    @cached_property
    def row(self) -> Tensor:
        """int64 ``[N]``: the row of each position."""
        rows = torch.arange(self.rows, device=self.offsets.device)
        if self.shared:
            return rows.unsqueeze(1).expand(-1, self.positions).reshape(-1)
        if kernels.is_traced():
            # A mark at the start of each row but the first, and a running sum: operators that every runtime supports.
            starts = self.offsets[1:-1]
            marks = torch.zeros(self.positions + 1, dtype=torch.int64, device=starts.device)
            return marks.index_add(0, starts, torch.ones_like(starts))[:-1].cumsum(0)
        return rows.repeat_interleave(self.offsets[1:] - self.offsets[:-1], output_size=self.positions)

    @cached_property
    def _position(self) -> Tensor:
        return torch.arange(self.positions, device=self.offsets.device, dtype=self.offsets.dtype)

    def expand(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "N D"]:
        """Repeat the value of each row at its positions."""
        if self.shared:
            width = x_BD.shape[1]
            return x_BD.unsqueeze(1).expand(-1, self.positions, width).reshape(-1, width)
        if kernels.is_traced():
            return x_BD.index_select(0, self.row)
        return segment_kernels.expand(x_BD, self)

    def expand_rows(self, x_B: Tensor) -> Tensor:
        """Return ``[N]``, the entry of its row at every position, without a gradient."""
        return x_B.index_select(0, self.row)

    def keys(self, k_UD: Float[Tensor, "U D"]) -> Float[Tensor, "N D"]:
        """Return the value of the history at every position."""
        if not self.shared:
            return k_UD
        return k_UD.unsqueeze(0).expand(self.rows, -1, -1).reshape(-1, k_UD.shape[1])

    def add(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "U D"]) -> Float[Tensor, "N D"]:
        """Return ``expand(x) + keys(k)``. When shared, neither is repeated."""
        if self.shared:
            return (x_BD.unsqueeze(1) + k_UD.unsqueeze(0)).reshape(-1, x_BD.shape[1])
        return self.keys(k_UD) + self.expand(x_BD)

    def mul(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "U D"]) -> Float[Tensor, "N D"]:
        """Return ``expand(x) * keys(k)``. When shared, neither is repeated."""
        if self.shared:
            return (x_BD.unsqueeze(1) * k_UD.unsqueeze(0)).reshape(-1, x_BD.shape[1])
        return self.keys(k_UD) * self.expand(x_BD)

    def sum(self, v_ND: Float[Tensor, "N D"]) -> Float[Tensor, "B D"]:
        """Return the sum over each row's positions."""
        if self.shared:
            return v_ND.reshape(self.rows, self.positions, v_ND.shape[1]).sum(1)
        if kernels.is_traced():
            return v_ND.new_zeros(self.rows, v_ND.shape[1]).index_add(0, self.row, v_ND)
        return segment_kernels.add_up(v_ND, self)

    def mean(self, v_ND: Float[Tensor, "N D"]) -> Float[Tensor, "B D"]:
        """Return the mean over each row's positions. 0 for a row without positions."""
        if self.shared:
            ones = torch.ones_like(v_ND[:, :1]).reshape(self.rows, self.positions, 1)
            return self.sum(v_ND) / ones.sum(1).clamp(min=1)
        count = (self.offsets[1:] - self.offsets[:-1]).clamp(min=1)
        return self.sum(v_ND) / count.to(v_ND.dtype).unsqueeze(1)

    def max(self, v_ND: Float[Tensor, "N D"]) -> Float[Tensor, "B D"]:
        """Return the maximum over each row's positions, column by column. 0 for a row without positions."""
        if self.shared:
            return _amax(v_ND.reshape(self.rows, self.positions, v_ND.shape[1]), 1)
        index = self.row.unsqueeze(1).expand_as(v_ND)
        floor = v_ND.new_full((self.rows, v_ND.shape[1]), -torch.inf)
        top_BD = floor.scatter_reduce(0, index, v_ND, "amax", include_self=True)
        return torch.where(top_BD == -torch.inf, torch.zeros_like(top_BD), top_BD)

    def pool(self, k_UD: Float[Tensor, "U D"], how: Pool) -> Float[Tensor, "B D"]:
        """Pool the entries of the history by ``sum``, ``mean`` or ``max``. When shared, one result is repeated."""
        if not self.shared:
            return {"sum": self.sum, "mean": self.mean, "max": self.max}[how](k_UD)
        if how == "max":
            one_D = _amax(k_UD, 0)
        else:
            one_D = k_UD.sum(0)
        if how == "mean":
            one_D = one_D / torch.ones_like(k_UD[:, 0]).sum().clamp(min=1)
        return one_D.unsqueeze(0).expand(self.rows, -1)

    def softmax(self, s_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return the softmax of the scores of each row."""
        if self.shared:
            return s_N.reshape(self.rows, self.positions).softmax(1).reshape(-1)
        if kernels.is_traced():
            w_N = torch.exp(s_N - self.max(s_N.unsqueeze(1)).squeeze(1).index_select(0, self.row))
            return w_N / self.sum(w_N.unsqueeze(1)).squeeze(1).index_select(0, self.row)
        return segment_kernels.softmax(_wide(s_N), self)

    def softmax_with_null(
        self, s_N: Float[Tensor, " N"], null_B: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " B"]]:
        """Return the softmax of the scores of each row and one null score per row. An empty row gives the null weight
        1.
        """
        if self.shared:
            w_BT = torch.cat([null_B.unsqueeze(1), s_N.reshape(self.rows, self.positions)], 1).softmax(1)
            return w_BT[:, 1:].reshape(-1), w_BT[:, 0]
        if kernels.is_traced():
            top_B = null_B.scatter_reduce(0, self.row, s_N, "amax", include_self=True)
            w_N, own_B = torch.exp(s_N - top_B.index_select(0, self.row)), torch.exp(null_B - top_B)
            total_B = self.sum(w_N.unsqueeze(1)).squeeze(1) + own_B
            return w_N / total_B.index_select(0, self.row), own_B / total_B
        return segment_kernels.softmax_with_null(_wide(s_N), _wide(null_B), self)

    def dot(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "U D"]) -> Float[Tensor, " N"]:
        """Return the inner product of the row's value and the history's at every position."""
        if self.shared:
            return (x_BD @ k_UD.t()).reshape(-1)
        return self.mul(x_BD, k_UD).sum(1)

    def weighted_sum(self, w_N: Float[Tensor, " N"], k_UD: Float[Tensor, "U D"]) -> Float[Tensor, "B D"]:
        """Return the sum over each row's positions of ``w * k``."""
        if self.shared:
            return w_N.reshape(self.rows, self.positions) @ k_UD
        if kernels.is_traced():
            return self.sum(w_N.unsqueeze(1) * self.keys(k_UD))
        k_ND = self.keys(k_UD)
        return segment_kernels.weighted_sum(w_N.to(k_ND.dtype), k_ND, self)

    def add_up(self, v_ND: Tensor, w_N: Tensor | None = None) -> Tensor:
        """Return ``[B, D]``: the (weighted) sum of each row's positions, without a gradient.

        An embedding bag of consecutive positions runs 10 times as fast as ``index_add``. Narrow floats are summed in
        float32.
        """
        wide_ND = _wide(v_ND)
        if wide_ND is not v_ND:
            return self.add_up(wide_ND, w_N if w_N is None else w_N.float()).to(v_ND.dtype)
        if self.positions == 0:
            return v_ND.new_zeros(self.rows, v_ND.shape[1])
        bag = F.embedding_bag
        return bag(self._position, v_ND, self.offsets, mode="sum", include_last_offset=True, per_sample_weights=w_N)


def _wide(v: Tensor) -> Tensor:
    """Return half floats as float32, others unchanged."""
    return v.float() if v.dtype in (torch.bfloat16, torch.float16) else v


def _amax(v: Tensor, dim: int) -> Tensor:
    """Return the maximum along ``dim``. 0 without entries (or with only -inf)."""
    shape = [*v.shape[:dim], 1, *v.shape[dim + 1 :]]
    top = torch.cat([v, v.new_full(shape, -torch.inf)], dim).amax(dim)
    return torch.where(top == -torch.inf, torch.zeros_like(top), top)


class GroupedSegments(Segments):
    """Rows that share the history of their request with others.

    Args:
        stored: the requests over the stored positions.
        layout: which request each row belongs to.
    """

    def __init__(self, stored: Segments, layout: Layout) -> None:
        assert layout.host_owner is not None
        lengths = np.diff(stored.host_offsets)[layout.host_owner]
        host = np.concatenate([[0], np.cumsum(lengths)])
        super().__init__(put(host, stored.offsets.device), layout.candidates, int(host[-1]), host=host)
        self._stored, self.layout = stored, layout

    def _copy_to_host(self) -> Segments:
        assert self.layout.host_owner is not None
        owner = torch.from_numpy(self.layout.host_owner)
        return GroupedSegments(self._stored.on_host, replace(self.layout, owner=owner))

    @property
    def requests(self) -> Segments:
        """The requests over the stored positions."""
        return self._stored

    @cached_property
    def stored_position(self) -> Tensor:
        """int64 ``[N]``: the stored position of each position."""
        assert self.layout.owner is not None
        starts_B = self._stored.offsets.index_select(0, self.layout.owner)
        return self._position + self.expand_rows(starts_B - self.offsets[:-1])

    def repeat(self, x_RD: Float[Tensor, "R D"]) -> Float[Tensor, "B D"]:
        """Return the value of its request for every row."""
        return self.layout.repeat(x_RD)

    def keys(self, k_UD: Float[Tensor, "U D"]) -> Float[Tensor, "N D"]:
        """Return the value of the history at every position."""
        return k_UD.index_select(0, self.stored_position)

    def broadcast(self, x_R: Tensor) -> Tensor:
        """Return the value of its request for every row: ``[B, ...]``."""
        return self.layout.repeat(x_R)

    @cached_property
    def flat(self) -> Segments:
        """Segments in which no two rows share positions."""
        return Segments(self.offsets, self.rows, self.positions, host=self.host_offsets)

    def flatten(self, k_U: Shaped[Tensor, "U ..."]) -> tuple[Shaped[Tensor, "N ..."], Segments]:
        """Return the keys at the positions of ``flat``, and these segments."""
        return k_U.index_select(0, self.stored_position), self.flat

    def multiply(self, times: int) -> Segments:
        """Return segments in which each stored position is followed by ``times - 1`` more of its request."""
        return GroupedSegments(self._stored.multiply(times), self.layout)

    def pool(self, k_UD: Float[Tensor, "U D"], how: Pool) -> Float[Tensor, "B D"]:
        """Pool the entries of each history once, and repeat the result."""
        return self.repeat(self._stored.pool(k_UD, how))


def _make_segments(history: HistoryBatch, layout: Layout) -> Segments:
    column = next(iter(history.columns.values()))
    positions = column.offsets.shape[0] - 1 if isinstance(column, Jagged) else column.shape[0]
    if layout.kind == "shared":
        return Segments(history.offsets, layout.candidates, positions, shared=True)
    # Offsets are copied to the host only where they are read, which a traced program never does.
    stored = Segments(history.offsets, layout.requests, positions, host=history.host)
    return stored if layout.kind in ("single", "catalog") else GroupedSegments(stored, layout)
