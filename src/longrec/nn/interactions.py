"""Pairwise interactions of a factorization machine, in O(F D) per row.

Shapes: B rows, F fields, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def pairwise(v_BFD: Float[Tensor, "B F D"]) -> Float[Tensor, " B"]:
    """Return the sum over all pairs i < j of ``<v_i, v_j>`` (Rendle, lemma 3.1)."""
    return bi_interaction(v_BFD).sum(1)


def bi_interaction(v_BFD: Float[Tensor, "B F D"]) -> Float[Tensor, "B D"]:
    """Return the sum over all pairs i < j of ``v_i * v_j``, column by column.

    Computed as ``0.5 * [(sum_i v_ik)^2 - sum_i v_ik^2]``, always in float32 or wider, because the difference of two
    large squares cancels in narrow floats.
    """
    with torch.autocast(v_BFD.device.type, enabled=False):
        v_BFD = v_BFD.float() if v_BFD.dtype in (torch.bfloat16, torch.float16) else v_BFD
        s_BD = v_BFD.sum(1)
        return 0.5 * (s_BD * s_BD - (v_BFD * v_BFD).sum(1))
