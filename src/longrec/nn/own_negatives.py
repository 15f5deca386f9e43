"""Scores of negatives that each target has of its own.

The vectors of all negatives of a batch are there once, and each target names k of them. If few vectors serve all
targets, one product of all states with all vectors is cheaper than k copied vectors per target: it runs at the speed
of a matrix product, and no ``[T, k, D]`` is written.

Shapes: T targets, k negatives per target, n distinct negatives, D width.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from longrec.nn.linear import linear

_VECTORS_PER_NEGATIVE = 64
"""One product is used up to this number of vectors per negative of a target. Measured at D = 64 on a CPU."""


def score_own(
    state_TD: Float[Tensor, "T D"], vector_nD: Float[Tensor, "n D"], own_Tk: Int[Tensor, "T k"]
) -> Float[Tensor, "T k"]:
    """Return the inner product of each state with its own negatives.

    Args:
        own_Tk: rows of ``vector_nD``.
    """
    targets, count = own_Tk.shape
    if len(vector_nD) <= _VECTORS_PER_NEGATIVE * count:
        return linear(state_TD, vector_nD).gather(1, own_Tk)
    vector_TkD = vector_nD.index_select(0, own_Tk.flatten()).view(targets, count, -1)
    return (vector_TkD * state_TD.unsqueeze(1)).sum(2)
