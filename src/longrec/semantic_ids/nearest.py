"""Search for the nearest of a few centroids, block by block.

    score_k = <x - m, c_k - m> - |c_k - m|^2 / 2,     |x - c_k|^2 = |x - m|^2 - 2 score_k

m is the mean of the centroids. Subtracting it keeps the scores small where vectors have a large common offset, which
float32 would otherwise round away. The vectors themselves are not copied: <m, c_k - m> is added to the constant of
every centroid, and the constant is one more column of the product.

Shapes: N vectors, D width, K centroids.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK_SCORES = 1 << 19
"""Scores of a block. They stay in the cache between the product and the search for the largest."""
_DEVICE_SCORES = 1 << 26
"""The same on a GPU, where few large products are faster."""


def find_nearest(x_ND: Float[Tensor, "N D"], c_KD: Float[Tensor, "K D"]) -> Int[Tensor, " N"]:
    """Return the index of the nearest centroid of each vector, int64 ``[N]``. Of equally near ones the first."""
    return find_best(x_ND, c_KD)[0]


def find_best(x_ND: Float[Tensor, "N D"], c_KD: Float[Tensor, "K D"]) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the nearest centroid of each vector, int64 ``[N]``, and its score, float32 ``[N]``."""
    code_N = torch.empty(len(x_ND), dtype=torch.int64, device=x_ND.device)
    score_N = torch.empty(len(x_ND), device=x_ND.device)
    for rows, score_BK in iterate_scores(x_ND, c_KD):
        if score_BK.device.type == "cpu":
            # numpy's search is ten times as fast as torch's on one core.
            score_BK.numpy().argmax(1, out=code_N[rows].numpy())
            score_N[rows] = score_BK.gather(1, code_N[rows].unsqueeze(1)).squeeze(1)
        else:
            torch.max(score_BK, 1, out=(score_N[rows], code_N[rows]))
    return code_N, score_N


def iterate_scores(
    x_ND: Float[Tensor, "N D"], c_KD: Float[Tensor, "K D"]
) -> Iterator[tuple[slice, Float[Tensor, "B K"]]]:
    """Yield the rows of each block, and the scores of its vectors. The next block overwrites them."""
    width, size = c_KD.shape[1], len(c_KD)
    weight_EK = _append_constants(c_KD)
    most = _BLOCK_SCORES if x_ND.device.type == "cpu" else _DEVICE_SCORES
    block = min(max(most // size, 16), max(len(x_ND), 1))
    x_BE = x_ND.new_ones(block, width + 1)
    score_BK = x_ND.new_empty(block, size)
    for first in range(0, len(x_ND), block):
        rows = slice(first, min(first + block, len(x_ND)))
        count = rows.stop - rows.start
        x_BE[:count, :width] = x_ND[rows]
        yield rows, torch.mm(x_BE[:count], weight_EK, out=score_BK[:count])


def _append_constants(c_KD: Tensor) -> Tensor:
    """Return ``[D + 1, K]``: the centroids without their mean, and the constant of each score."""
    exact_KD = c_KD.double()
    mean_D = exact_KD.mean(0)
    shifted_KD = exact_KD - mean_D
    constant_K = -(shifted_KD * (shifted_KD / 2 + mean_D)).sum(1)
    return torch.cat([shifted_KD, constant_K.unsqueeze(1)], 1).t().contiguous().to(c_KD.dtype)
