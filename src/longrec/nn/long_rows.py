"""Operations over long ragged histories that need little memory beside the history itself.

The value of a row at each of its positions is as large as the history, and so is a product with it. Here both exist for
a block of positions at a time, which stays in the cache of the processor. On a GPU, in a shared history, in a grouped
one and in a traced program the formula is the plain one.

Shapes: B rows, N positions, U stored positions (see nn/segments.py), S entries of a selection (see nn/selection.py), D
width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn import gemm, kernels, lookup
from longrec.nn.segments import Segments
from longrec.nn.selection import Selection

_BLOCK = 4_096
"""Positions of a block: 512 KiB of vectors of 32 numbers."""


def map_blocks(function: Callable[[Tensor], Tensor], x_ND: Tensor) -> Tensor:
    """Return ``function(x)`` of a function that treats each position alone, without a gradient."""
    if kernels.choose(x_ND, casts=False) != "cpu" or len(x_ND) <= _BLOCK:
        return function(x_ND)
    with torch.no_grad():
        return torch.cat([function(block) for block in torch.split(x_ND, _BLOCK)])


def dot(x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "U D"], segments: Segments) -> Float[Tensor, " N"]:
    """Return ``segments.dot(x, k)``. Where no gradient is wanted it is computed in blocks."""
    wanted = torch.is_grad_enabled() and (x_BD.requires_grad or k_UD.requires_grad)
    return segments.dot(x_BD, k_UD) if wanted or not _has_blocks(k_UD, segments) else _dot(x_BD, k_UD, segments)


def weigh_by_dot(
    x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "U D"], segments: Segments
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "U D"]]:
    """Return the sum over each row's positions of ``<x, k> k``, with gradients, and the history.

    What else is read of the returned history adds its gradient, which may be sparse, to the one made here. So there is
    one gradient as large as the history.
    """
    if not _has_blocks(k_UD, segments):
        return segments.weighted_sum(segments.dot(x_BD, k_UD), k_UD), k_UD
    sparse = lookup.takes_sparse(k_UD)
    u_BD, k_UD = _WeighByDot.apply(x_BD, k_UD, segments, sparse)  # type: ignore[no-untyped-call]
    return u_BD, k_UD


def take_each(x_UD: Float[Tensor, "U D"], selections: Sequence[Selection]) -> list[Tensor]:
    """Return the values of one history at the entries of each selection, ``[S, D]`` each.

    They are gathered together, so that the gradient of the history is made once.
    """
    every = [selection.stored for selection in selections if selection.stored is not None]
    if kernels.is_traced() or len(every) < len(selections):
        return [selection.take(x_UD) for selection in selections]
    return list(torch.split(lookup.take(x_UD, torch.cat(every)), [len(stored) for stored in every]))


def _has_blocks(k_ND: Tensor, segments: Segments) -> bool:
    return kernels.choose(k_ND) == "cpu" and not segments.shared and segments.requests is segments


def _blocks(positions: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, positions, _BLOCK))


def _dot(x_BD: Tensor, k_ND: Tensor, segments: Segments) -> Tensor:
    s_N = k_ND.new_empty(len(k_ND))
    for at in _blocks(len(k_ND)):
        torch.sum(x_BD.index_select(0, segments.row[at]).mul_(k_ND[at]), 1, out=s_N[at])
    return s_N


class _WeighByDot(torch.autograd.Function):
    """``u = sum_i <x, k_i> k_i``, with ``g_x = sum_i <g, k_i> k_i`` and ``g_ki = <x, k_i> g + <g, k_i> x``, and k."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, k_ND: Tensor, segments: Segments, sparse: bool) -> tuple[Tensor, Tensor]:
        s_N = _dot(x_BD, k_ND, segments)
        ctx.segments, ctx.takes_sparse = segments, sparse
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_BD, k_ND, s_N)
        return segments.add_up(k_ND.contiguous(), s_N), k_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BD: Tensor | None, own_ND: Tensor | None) -> tuple[Tensor | None, ...]:
        if g_BD is None:
            return None, own_ND, None, None
        x_BD, k_ND, s_N = ctx.saved_tensors
        segments = ctx.segments
        t_N, g_ND = _dot(g_BD, k_ND, segments), gemm.allocate_rows(k_ND, *k_ND.shape)
        for at in _blocks(len(k_ND)):
            row = segments.row[at]
            torch.mul(x_BD.index_select(0, row), t_N[at].unsqueeze(1), out=g_ND[at])
            g_ND[at].addcmul_(g_BD.index_select(0, row), s_N[at].unsqueeze(1))
        if own_ND is not None and own_ND.is_sparse:
            g_ND.index_add_(0, own_ND._indices()[0], own_ND._values())
        elif own_ND is not None:
            g_ND.add_(own_ND)
        return segments.add_up(k_ND.contiguous(), t_N), g_ND, None, None
