"""Means over the beginnings of a history, of all its positions in one pass.

    m_t = (1 / t) sum_{s <= t} v_s

A running sum over the positions of all rows, less that before each row, gives all sums. It is kept in float64: in
float32 the difference would lose the digits of what came before.

Shapes: N stored positions, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.segments import Segments


def prefix_mean(v_ND: Float[Tensor, "N D"], segments: Segments) -> Float[Tensor, "N D"]:
    """Return the mean of the values up to each position of its row, this position included.

    Args:
        segments: the rows over stored positions (``Segments.requests``).
    """
    sums_ND = v_ND.double().cumsum(0)
    at_N = torch.arange(len(v_ND), device=v_ND.device)
    if segments.shared:
        first_N = torch.zeros_like(at_N)
    else:
        first_N = segments.expand_rows(segments.offsets[:-1])
        before_ND = torch.cat([sums_ND.new_zeros(1, sums_ND.shape[1]), sums_ND])
        sums_ND = sums_ND - before_ND.index_select(0, first_N)
    return (sums_ND / (at_N - first_N + 1).unsqueeze(1)).to(v_ND.dtype)
