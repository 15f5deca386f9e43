"""Segments: which positions of a history belong to each row of a batch.

A model writes its formula once, and it runs on both kinds of batches:

- **ragged** (training, evaluation): N flat positions, where row b owns ``offsets[b]:offsets[b + 1]``, possibly empty;
- **shared** (serving): one history of T positions that each of B candidates reads, so N = B T. Tensors that depend on
  the history alone keep T rows until they are first combined with the candidate.

For a row without positions, ``sum``, ``mean``, ``max`` and ``weighted_sum`` return 0, never NaN.

Shapes: B rows, N positions, T positions of a shared history, U entries of the history (N ragged, T shared), D, H
widths.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.features.batch import HistoryBatch, Jagged

Pool = Literal["mean", "sum", "max"]


class Segments:
    """B rows over the positions of one history.

    Args:
        offsets: int64 ``[B + 1]``. Not read when shared.
        rows: B.
        positions: N, or T when shared.
    """

    def __init__(self, offsets: Tensor, rows: int, positions: int, shared: bool = False) -> None:
        self.offsets, self.rows, self.positions, self.shared = offsets, rows, positions, shared

    @classmethod
    def of(cls, history: HistoryBatch, rows: int) -> Segments:
        """Return the segments of a history in a batch of ``rows`` rows."""
        column = next(iter(history.columns.values()))
        positions = column.offsets.shape[0] - 1 if isinstance(column, Jagged) else column.shape[0]
        return cls(history.offsets, rows, positions, history.shared)

    @classmethod
    def of_runs(cls, key_N: Tensor) -> Segments:
        """Return the runs of equal values of an integer key per position, ragged, none of them empty."""
        first_N = torch.ones_like(key_N, dtype=torch.bool)
        first_N[1:] = key_N[1:] != key_N[:-1]
        starts = first_N.nonzero().squeeze(1)
        return cls(torch.cat([starts, starts.new_tensor([len(key_N)])]), len(starts), len(key_N))

    @classmethod
    def of_values(cls, values: Jagged) -> Segments:
        """Return the segments of a multi-value feature: entry r owns its values."""
        return cls(values.offsets, values.offsets.shape[0] - 1, values.values.shape[0])

    @cached_property
    def row(self) -> Tensor:
        """int64 ``[N]``: the row of each position."""
        rows = torch.arange(self.rows, device=self.offsets.device)
        if self.shared:
            return rows.unsqueeze(1).expand(-1, self.positions).reshape(-1)
        if torch.compiler.is_compiling():
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
        if torch.compiler.is_compiling():
            return x_BD.index_select(0, self.row)
        out: Tensor = _Expand.apply(x_BD, self)  # type: ignore[no-untyped-call]
        return out

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
        return k_UD + self.expand(x_BD)

    def mul(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "U D"]) -> Float[Tensor, "N D"]:
        """Return ``expand(x) * keys(k)``. When shared, neither is repeated."""
        if self.shared:
            return (x_BD.unsqueeze(1) * k_UD.unsqueeze(0)).reshape(-1, x_BD.shape[1])
        return k_UD * self.expand(x_BD)

    def sum(self, v_ND: Float[Tensor, "N D"]) -> Float[Tensor, "B D"]:
        """Return the sum over each row's positions."""
        if self.shared:
            return v_ND.reshape(self.rows, self.positions, v_ND.shape[1]).sum(1)
        if torch.compiler.is_compiling():
            return v_ND.new_zeros(self.rows, v_ND.shape[1]).index_add(0, self.row, v_ND)
        out: Tensor = _Sum.apply(v_ND, self)  # type: ignore[no-untyped-call]
        return out

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
        if torch.compiler.is_compiling():
            w_N = torch.exp(s_N - self.max(s_N.unsqueeze(1)).squeeze(1).index_select(0, self.row))
            return w_N / self.sum(w_N.unsqueeze(1)).squeeze(1).index_select(0, self.row)
        out: Tensor = _Softmax.apply(_wide(s_N), self)  # type: ignore[no-untyped-call]
        return out

    def softmax_with_null(
        self, s_N: Float[Tensor, " N"], null_B: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " B"]]:
        """Return the softmax of the scores of each row and one null score per row. An empty row gives the null weight
        1.
        """
        if self.shared:
            w_BT = torch.cat([null_B.unsqueeze(1), s_N.reshape(self.rows, self.positions)], 1).softmax(1)
            return w_BT[:, 1:].reshape(-1), w_BT[:, 0]
        if torch.compiler.is_compiling():
            top_B = null_B.scatter_reduce(0, self.row, s_N, "amax", include_self=True)
            w_N, own_B = torch.exp(s_N - top_B.index_select(0, self.row)), torch.exp(null_B - top_B)
            total_B = self.sum(w_N.unsqueeze(1)).squeeze(1) + own_B
            return w_N / total_B.index_select(0, self.row), own_B / total_B
        out: tuple[Tensor, Tensor] = _SoftmaxWithNull.apply(_wide(s_N), _wide(null_B), self)  # type: ignore[no-untyped-call]
        return out

    def dot(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "U D"]) -> Float[Tensor, " N"]:
        """Return the inner product of the row's value and the history's at every position."""
        if self.shared:
            return (x_BD @ k_UD.t()).reshape(-1)
        return self.mul(x_BD, k_UD).sum(1)

    def weighted_sum(self, w_N: Float[Tensor, " N"], k_UD: Float[Tensor, "U D"]) -> Float[Tensor, "B D"]:
        """Return the sum over each row's positions of ``w * k``."""
        if self.shared:
            return w_N.reshape(self.rows, self.positions) @ k_UD
        if torch.compiler.is_compiling():
            return self.sum(w_N.unsqueeze(1) * k_UD)
        out: Tensor = _WeightedSum.apply(w_N.to(k_UD.dtype), k_UD, self)  # type: ignore[no-untyped-call]
        return out

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


class _Expand(torch.autograd.Function):
    """``x[row]``. Its gradient is the sum over the positions of each row."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return x_BD.index_select(0, segments.row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_ND: Tensor) -> tuple[Tensor, None]:
        return ctx.segments.add_up(g_ND.contiguous()), None


class _Sum(torch.autograd.Function):
    """``zeros(B, D).index_add(0, row, v)``."""

    @staticmethod
    def forward(ctx: Any, v_ND: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return segments.add_up(v_ND.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BD: Tensor) -> tuple[Tensor, None]:
        return g_BD.index_select(0, ctx.segments.row), None


class _WeightedSum(torch.autograd.Function):
    """``zeros(B, D).index_add(0, row, w[:, None] * k)``."""

    @staticmethod
    def forward(ctx: Any, w_N: Tensor, k_ND: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        ctx.save_for_backward(w_N, k_ND)
        return segments.add_up(k_ND.contiguous(), w_N.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BD: Tensor) -> tuple[Tensor, Tensor, None]:
        w_N, k_ND = ctx.saved_tensors
        g_ND = g_BD.index_select(0, ctx.segments.row)
        g_w = (g_ND * k_ND).sum(1)
        return g_w, g_ND.mul_(w_N.unsqueeze(1)), None


class _Softmax(torch.autograd.Function):
    """``exp(s - max) / sum`` in each row, with the gradient ``w * (g - sum of w g in the row)``."""

    @staticmethod
    def forward(ctx: Any, s_N: Tensor, segments: Segments) -> Tensor:
        top_B = s_N.new_zeros(segments.rows).scatter_reduce(0, segments.row, s_N, "amax", include_self=False)
        w_N = (s_N - top_B.index_select(0, segments.row)).exp_()
        total_B = segments.add_up(w_N.unsqueeze(1)).squeeze(1)
        w_N.div_(total_B.index_select(0, segments.row))
        ctx.segments = segments
        ctx.save_for_backward(w_N)
        return w_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor, None]:
        (w_N,) = ctx.saved_tensors
        product_N = w_N * g_N
        total_B = ctx.segments.add_up(product_N.unsqueeze(1)).squeeze(1)
        return product_N - w_N * total_B.index_select(0, ctx.segments.row), None


class _SoftmaxWithNull(torch.autograd.Function):
    """``exp(s - max) / sum`` in each row, where the null score of the row is included in both."""

    @staticmethod
    def forward(ctx: Any, s_N: Tensor, null_B: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        top_B = null_B.scatter_reduce(0, segments.row, s_N, "amax", include_self=True)
        w_N, own_B = (s_N - top_B.index_select(0, segments.row)).exp_(), (null_B - top_B).exp_()
        total_B = segments.add_up(w_N.unsqueeze(1)).squeeze(1) + own_B
        w_N.div_(total_B.index_select(0, segments.row))
        own_B.div_(total_B)
        ctx.segments = segments
        ctx.save_for_backward(w_N, own_B)
        return w_N, own_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor, g_B: Tensor) -> tuple[Tensor, Tensor, None]:
        w_N, own_B = ctx.saved_tensors
        product_N, product_B = w_N * g_N, own_B * g_B
        total_B = ctx.segments.add_up(product_N.unsqueeze(1)).squeeze(1) + product_B
        return product_N - w_N * total_B.index_select(0, ctx.segments.row), product_B - own_B * total_B, None
