"""Residual codebooks as arrays: quantized vectors, inputs of each level, and codebooks computed from codes alone.

    R^1 = z;    R^{l+1} = R^l - C^l[k_l];    z^ = sum_l C^l[k_l]

Shapes: N items, L levels, K codes of a level (levels can differ), D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from longrec.metrics.columns import Floats
from longrec.semantic_ids.diagnostics.overlap import measure_sigma
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


def iterate_residuals(latents: ArrayLike, codes: ArrayLike, codebooks: Sequence[ArrayLike]) -> Iterator[Floats]:
    """Yield the input of the quantizer of each level, and the rest after the last: L + 1 arrays ``[N, D]``.

    Each array is changed by the next step.
    """
    residual, codes_NL = np.array(latents, np.float64), as_codes(codes)
    yield residual
    for code_N, codebook in zip(codes_NL.T, codebooks, strict=True):
        residual -= np.asarray(codebook, np.float64)[code_N]
        yield residual


def measure_residuals(
    latents: ArrayLike, codes: ArrayLike, codebooks: Sequence[ArrayLike]
) -> tuple[list[float], list[float]]:
    """Return figures of the input of each level, and of the rest after the last: L + 1 of each.

    Returns:
        The root of the mean variance per dimension, and the share of the variance of z that is left, from 1.
    """
    sigmas: list[float] = []
    energies: list[float] = []
    for residual in iterate_residuals(latents, codes, codebooks):
        sigmas.append(measure_sigma(residual))
        # What is left counts with its mean, since no codeword explains it. The variance of z has no mean.
        energies.append(float(np.einsum("nd,nd->", residual, residual)) if energies else sigmas[0] ** 2 * residual.size)
    return sigmas, [energy / energies[0] if energies[0] > 0 else 0.0 for energy in energies]
