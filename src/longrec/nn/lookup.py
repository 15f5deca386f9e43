"""Lookups of all uses of one table on the CPU, pooled where a use has several values per entry.

No vector of a single value of a list is written to memory, in neither direction. The gradient of the table is sparse
and already summed by row, so that the optimizer has nothing left to group.

Shapes: N entries of a use, n values of all uses, m distinct rows of a table, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn.row_sums import group


@dataclass(frozen=True)
class Use:
    """Ids of one column.

    Attributes:
        ids: int32 ``[N]``, or all values of all entries.
        offsets: int64 ``[N + 1]`` of the values of each entry. None: one value per entry.
        mean: pool by the mean instead of the sum.
    """

    ids: Tensor
    offsets: Tensor | None = None
    mean: bool = False


def look_up(weight: nn.Parameter, uses: list[Use]) -> list[Tensor]:
    """Return the vectors ``[N, D]`` of each use, from a table ``[rows, D]``. 0 for an entry without values."""
    return list(_LookUp.apply(weight, uses))  # type: ignore[no-untyped-call]


class _LookUp(torch.autograd.Function):
    """``embedding`` or ``embedding_bag`` of every use."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, uses: list[Use]) -> tuple[Tensor, ...]:
        ctx.uses, ctx.shape = uses, weight.shape
        ctx.set_materialize_grads(False)
        return tuple(_read(weight, use) for use in uses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        uses = [(use, g_ND) for use, g_ND in zip(ctx.uses, gradients) if g_ND is not None]
        if not uses:
            return None, None
        g = torch.cat([g_ND for _, g_ND in uses])
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
        # Ascending and distinct, but autograd drops a mark of it.
        grad = torch.sparse_coo_tensor(rows_m.unsqueeze(0), sums_mD, ctx.shape, check_invariants=False)
        return grad, None


def _read(weight: Tensor, use: Use) -> Tensor:
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
