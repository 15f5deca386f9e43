"""Lookups of all uses of one table on the CPU, pooled where a use has several values per entry.

No vector of a single value of a list is written to memory, in neither direction. The gradient of the table is sparse
and already summed by row, so that the optimizer has nothing left to group.

A long history takes more memory than all else in a step. So its columns can be written next to each other, and read
as one tensor without a copy (``allocate_columns``, ``join``). The gradient of this tensor may be sparse, of the events
alone that a model chose (``take``).

Shapes: N entries of a use, n values of all uses, m distinct rows of a table, D width, K width of joined columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn.gemm import allocate_rows
from longrec.nn.row_sums import group


@dataclass(frozen=True)
class Use:
    """Ids of one column.

    Attributes:
        ids: int32 ``[N]``, or all values of all entries.
        offsets: int64 ``[N + 1]`` of the values of each entry. None: one value per entry.
        mean: pool by the mean instead of the sum.
        into: memory ``[N, D]`` for the vectors, of ``allocate_columns``. None: new memory. Not with offsets.
    """

    ids: Tensor
    offsets: Tensor | None = None
    mean: bool = False
    into: Tensor | None = None


def look_up(weight: nn.Parameter, uses: list[Use]) -> list[Tensor]:
    """Return the vectors ``[N, D]`` of each use, from a table ``[rows, D]``. 0 for an entry without values."""
    return list(_LookUp.apply(weight, uses))  # type: ignore[no-untyped-call]


def allocate_columns(like: Tensor, rows: int, widths: Sequence[int]) -> list[Tensor]:
    """Return memory of ``rows`` vectors for each column, next to each other.

    They are tensors of their own and no views, since for autograd a write to one view changes the others.
    """
    whole = allocate_rows(like, rows, sum(widths)).untyped_storage()
    starts = [sum(widths[:number]) for number in range(len(widths))]
    return [like.new_empty(0).set_(whole, at, (rows, D), (sum(widths), 1)) for at, D in zip(starts, widths)]


def join(columns: Sequence[Tensor]) -> Tensor:
    """Return the vectors of all columns of ``allocate_columns`` as one tensor ``[N, K]``, which shares their memory.

    Its gradient may be dense or sparse.
    """
    out: Tensor = _Join.apply(*columns)  # type: ignore[no-untyped-call]
    return out


def takes_sparse(x_NK: Tensor) -> bool:
    """Return True if the gradient of a tensor may be sparse: that of ``join``, or of a function that says so."""
    return getattr(x_NK.grad_fn, "takes_sparse", False)


def take(x_NK: Tensor, index_S: Tensor) -> Tensor:
    """Return rows of a tensor, ``[S, K]``. Its gradient is sparse where it may be."""
    return F.embedding(index_S, x_NK, sparse=True) if takes_sparse(x_NK) else x_NK.index_select(0, index_S)


class _Join(torch.autograd.Function):
    """``cat`` of columns that are next to each other."""

    @staticmethod
    def forward(ctx: Any, *columns: Tensor) -> Tensor:
        ctx.takes_sparse = True
        ctx.widths, first = [e_ND.shape[1] for e_ND in columns], columns[0]
        shape = len(first), sum(ctx.widths)
        return first.new_empty(0).set_(first.untyped_storage(), 0, shape, (shape[1], 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NK: Tensor) -> tuple[Tensor, ...]:
        if not g_NK.is_sparse:
            return torch.split(g_NK, ctx.widths, 1)
        index_1S, columns = g_NK._indices(), torch.split(g_NK._values(), ctx.widths, 1)
        shapes = [(len(g_NK), width) for width in ctx.widths]
        return tuple(
            torch.sparse_coo_tensor(index_1S, g_SD, shape, check_invariants=False)
            for g_SD, shape in zip(columns, shapes)
        )


class _LookUp(torch.autograd.Function):
    """``embedding`` or ``embedding_bag`` of every use."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, uses: list[Use]) -> tuple[Tensor, ...]:
        ctx.joined = any(use.into is not None for use in uses)
        # Without the memory, whose gradient refers to this.
        ctx.uses, ctx.shape = [Use(use.ids, use.offsets, use.mean) for use in uses], weight.shape
        ctx.set_materialize_grads(False)
        return tuple(_read(weight, use) for use in uses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        uses = [(use, g_ND) for use, g_ND in zip(ctx.uses, gradients) if g_ND is not None]
        if not uses:
            return None, None
        if ctx.joined and all(use.offsets is None for use, _ in uses):
            return _make_sparse(*_sum_each(uses), ctx.shape), None
        g = torch.cat([g_ND.to_dense() if g_ND.is_sparse else g_ND for _, g_ND in uses])
        rows_m, order_n, starts_m = group(torch.cat([use.ids for use, _ in uses]))
        weights_n = None
        if any(use.offsets is not None for use, _ in uses):
            entries, weights, first = [], [], 0
            for use, g_ND in uses:
                entries.append(_find_entries(use) + first)
                weights.append(_weigh(use, entries[-1] - first, g.dtype))
                first += len(g_ND)
            if any(use.mean for use, _ in uses):
                weights_n = torch.cat(weights).index_select(0, order_n)
            order_n = torch.cat(entries).index_select(0, order_n)
        sums_mD = g.new_zeros(0, g.shape[1])
        if len(rows_m):
            sums_mD = F.embedding_bag(order_n, g, starts_m, mode="sum", per_sample_weights=weights_n)
        return _make_sparse(rows_m, sums_mD, ctx.shape), None


def _make_sparse(rows_m: Tensor, sums_mD: Tensor, shape: torch.Size) -> Tensor:
    # Ascending and distinct, but autograd drops a mark of it.
    return torch.sparse_coo_tensor(rows_m.unsqueeze(0), sums_mD, shape, check_invariants=False)


def _sum_each(uses: list[tuple[Use, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of uses without lists, and the sum of the gradients of each.

    A history with a dense gradient is read where it is, and other uses are added. No copy of all gradients is made.
    """
    # Dense ones first, the largest of these before the others.
    uses = sorted(uses, key=lambda pair: (pair[1].is_sparse, -len(pair[0].ids)))
    (largest, g_ND), *others = uses
    rows_m, order_n, starts_m = group(torch.cat([use.ids for use, _ in uses]))
    if g_ND.is_sparse or 2 * len(largest.ids) < len(order_n):
        number_n = _number_groups(order_n, starts_m)
        sums_mD = torch.zeros(len(rows_m), g_ND.shape[1], dtype=g_ND.dtype)
        for (_, own_ND), at in zip(uses, torch.split(number_n, [len(use.ids) for use, _ in uses])):
            if own_ND.is_sparse:
                sums_mD.index_add_(0, at.index_select(0, own_ND._indices()[0]), own_ND._values())
            else:
                sums_mD.index_add_(0, at, own_ND)
        return rows_m, sums_mD
    if others:
        own_n = order_n < len(largest.ids)
        order_n = order_n.masked_select(own_n)
        starts_m = (own_n.cumsum(0) - own_n.long()).index_select(0, starts_m)
    sums_mD = _sum_rows(g_ND, order_n, starts_m)
    for use, own_ND in others:
        own_ND = own_ND.to_dense() if own_ND.is_sparse else own_ND
        sums_mD.index_add_(0, torch.searchsorted(rows_m, use.ids.long()), own_ND)
    return rows_m, sums_mD


def _number_groups(order_n: Tensor, starts_m: Tensor) -> Tensor:
    """Return the number of the group of each id, int64 ``[n]``, from what ``group`` returns."""
    lengths_m = torch.diff(starts_m, append=starts_m.new_tensor([len(order_n)]))
    number_n = torch.arange(len(starts_m)).repeat_interleave(lengths_m, output_size=len(order_n))
    return torch.empty_like(order_n).index_copy_(0, order_n, number_n)


def _sum_rows(g_ND: Tensor, index_n: Tensor, starts_m: Tensor) -> Tensor:
    """Return the sum of the rows at the indices of each group, ``[m, D]``."""
    stride, width = g_ND.stride(0), g_ND.shape[1]
    if not len(index_n):
        return g_ND.new_zeros(len(starts_m), width)
    if not g_ND.is_contiguous() and g_ND.stride(1) == 1 and stride % width == 0:
        # A column between others of a multiple of its width: each of its vectors is one of several in a longer row.
        g_ND = g_ND.as_strided(((len(g_ND) - 1) * stride // width + 1, width), (width, 1))
        index_n = index_n * (stride // width)
    return F.embedding_bag(index_n, g_ND.contiguous(), starts_m, mode="sum")


def _read(weight: Tensor, use: Use) -> Tensor:
    if use.into is not None:
        return torch.index_select(weight, 0, use.ids, out=use.into)
    if use.offsets is None:
        return F.embedding(use.ids, weight)
    mode = "mean" if use.mean else "sum"
    ids, offsets = use.ids.long(), use.offsets
    return F.embedding_bag(ids, weight, offsets, mode=mode, include_last_offset=True)


def _find_entries(use: Use) -> Tensor:
    """Return int64: the entry that each value belongs to."""
    if use.offsets is None:
        return torch.arange(len(use.ids))
    lengths = use.offsets[1:] - use.offsets[:-1]
    return torch.arange(len(lengths)).repeat_interleave(lengths, output_size=len(use.ids))


def _weigh(use: Use, entry: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of each value in its entry."""
    if use.offsets is None or not use.mean:
        return torch.ones(len(use.ids), dtype=dtype)
    lengths = use.offsets[1:] - use.offsets[:-1]
    return lengths.to(dtype).reciprocal_().index_select(0, entry)
