"""Residual codebooks as arrays: quantized vectors, inputs of each level, and codebooks computed from codes alone.

    R^1 = z;    R^{l+1} = R^l - C^l[k_l];    z^ = sum_l C^l[k_l]

Shapes: N items, L levels, K codes of a level (levels can differ), D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from longrec.metrics.columns import Floats
from longrec.semantic_ids.diagnostics.usage import as_codes


def compute_residual_means(vectors: ArrayLike, codes: ArrayLike, sizes: Sequence[int]) -> list[Floats]:
    """Return codebooks for codes that were published without: the mean residual of the items of each code.

    These are the best codebooks for the codes in squared error, level by level. They are not those of the tokenizer
    that assigned the codes, unless it was residual k-means on the same vectors. An unused code gets zeros.

    Args:
        vectors: ``[N, D]`` vectors of the items.
        codes: ``[N, L]`` codes of the items.
        sizes: number of codes of each level.
    """
    residual, codes_NL = np.array(vectors, np.float64), as_codes(codes)
    codebooks = []
    for code_N, size in zip(codes_NL.T, sizes):
        order = np.argsort(code_N, kind="stable")
        used, starts, counts = np.unique(code_N[order], return_index=True, return_counts=True)
        codebook = np.zeros((size, residual.shape[1]))
        codebook[used] = np.add.reduceat(residual[order], starts, axis=0) / counts[:, None]
        residual -= codebook[code_N]
        codebooks.append(codebook)
    return codebooks


def sum_codewords(codes: ArrayLike, codebooks: Sequence[ArrayLike]) -> Floats:
    """Return the quantized vectors z^, float64 ``[N, D]``."""
    codes_NL = as_codes(codes)
    quantized = np.zeros((len(codes_NL), np.asarray(codebooks[0]).shape[1]))
    for code_N, codebook in zip(codes_NL.T, codebooks):
        quantized += np.asarray(codebook, np.float64)[code_N]
    return quantized


def list_residuals(latents: ArrayLike, codes: ArrayLike, codebooks: Sequence[ArrayLike]) -> list[Floats]:
    """Return the input of the quantizer of each level, and the rest after the last: L + 1 arrays ``[N, D]``."""
    residual, codes_NL = np.array(latents, np.float64), as_codes(codes)
    residuals = [residual]
    for code_N, codebook in zip(codes_NL.T, codebooks):
        residual = residual - np.asarray(codebook, np.float64)[code_N]
        residuals.append(residual)
    return residuals


def measure_rest(residuals: Sequence[Floats]) -> tuple[float, ...]:
    """Return the share of the variance of z that is left before each level and after the last, from 1."""
    center = residuals[0].mean(0)
    total = float(((residuals[0] - center) ** 2).sum())
    rest = [float((residual**2).sum()) / total for residual in residuals[1:]]
    return (1.0, *rest)
