"""Measurement of semantic IDs: every figure that the material allows, and the findings.

Shapes: N items, L levels, K codes of a level (levels can differ), D dimensions of the latent, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from longrec.metrics.columns import Floats
from longrec.semantic_ids.diagnostics.checks import list_findings
from longrec.semantic_ids.diagnostics.codebooks import measure_residuals, sum_codewords
from longrec.semantic_ids.diagnostics.diagnosis import CODEWORDS, LATENT, ORIGINAL, Diagnosis, Level, Material
from longrec.semantic_ids.diagnostics.item_pairs import sample_pairs
from longrec.semantic_ids.diagnostics.latent import measure_geometry
from longrec.semantic_ids.diagnostics.matching import measure_matching
from longrec.semantic_ids.diagnostics.overlap import SIGMA_FACTORS, compute_overlaps
from longrec.semantic_ids.diagnostics.prefixes import measure_collisions, measure_prefixes
from longrec.semantic_ids.diagnostics.retention import CUTS, measure_retention
from longrec.semantic_ids.diagnostics.usage import measure_usage

_SIMILARITIES = 4e8
"""Similarities of pairs and items that are computed at most, per kind of vectors."""


def diagnose_material(
    material: Material,
    *,
    weights: str = "items",
    sigma: float | None = None,
    sigma_of: str = "level",
    seed: int = 0,
    max_pairs: int = 10_000,
) -> Diagnosis:
    """Return all figures of a tokenizer, with findings.

    Args:
        weights: what a code's share counts: ``items``, or ``exposure``, the events of the items.
        sigma: standard deviation of the perturbation of a vector per dimension, for the overlap. Default: the root of
            the mean variance per dimension.
        sigma_of: vectors of that variance: ``level``, the input of each level's quantizer, or ``latent``, the whole
            latent for all levels.
        seed: of samples.
        max_pairs: largest number of pairs for retention and matching. With many items, retention uses fewer.
    """
    codes, exposure = material.codes, material.exposure
    weight_N = exposure if weights == "exposure" else None
    pairs = None if material.pairs is None or not len(material.pairs) else material.pairs
    vectors = _list_vectors(material)
    notes = [*material.notes, *_describe_choices(material, weights, sigma, sigma_of, seed)]
    item_exposure = None if exposure is None else np.sort(exposure / exposure.sum())[::-1]
    retention = None
    if pairs is not None and material.vectors is not None and material.reconstructions:
        count = int(min(max_pairs, max(1_000, _SIMILARITIES / len(codes))))
        if len(codes) > min(CUTS) + 1:
            chosen = sample_pairs(pairs, count, seed)
            retention = measure_retention(material.vectors, material.reconstructions, chosen)
            notes.append(f"Retention is of {len(chosen):,} of {len(pairs):,} pairs of consecutive items.")
    matching = None
    if pairs is not None:
        matching = measure_matching(codes, sample_pairs(pairs, max_pairs, seed), vectors, seed=seed)
    measured = Diagnosis(
        name=material.name,
        items=len(codes),
        weights=weights,
        codebooks=material.codebook_origin,
        levels=tuple(_measure_levels(material, weight_N, sigma, sigma_of, notes)),
        prefixes=tuple(measure_prefixes(codes, exposure)),
        item_top=None if exposure is None else measure_prefixes(np.arange(len(codes))[:, None], exposure)[0].top,
        item_exposure=item_exposure,
        collisions=measure_collisions(codes, material.vectors),
        retention=retention,
        matching=matching,
        geometry={label: measure_geometry(own, seed=seed) for label, own in vectors.items()},
        churn=material.churn,
        facts=dict(material.facts),
        notes=tuple(notes),
    )
    return replace(measured, findings=tuple(list_findings(measured)))


def _describe_choices(material: Material, weights: str, sigma: float | None, sigma_of: str, seed: int) -> Iterator[str]:
    """Yield sentences about weights, sigma and samples."""
    yield f"The share of a code counts {'its items' if weights == 'items' else 'the events of its items'}."
    if material.codebooks is not None and sigma is not None:
        yield f"Sigma is {sigma:g}, as set."
    elif material.codebooks is not None:
        vectors = "the input of each level" if sigma_of == "level" else "the latent"
        yield f"Sigma is the root of the mean variance per dimension of {vectors} (`--sigma-of`, `--sigma`)."
    yield f"Samples of pairs and of random items have the seed {seed}."


def _list_vectors(material: Material) -> dict[str, Floats]:
    """Return the vectors by label. A latent that is x itself is listed once."""
    vectors = {}
    if material.vectors is not None:
        vectors[ORIGINAL] = material.vectors
    latents = material.latents
    if latents is not None and not (
        material.vectors is not None
        and latents.shape == material.vectors.shape
        and np.array_equal(latents, material.vectors)
    ):
        vectors[LATENT] = latents
    if material.codebooks is not None:
        vectors[CODEWORDS] = sum_codewords(material.codes, material.codebooks)
    return vectors


def _measure_levels(
    material: Material, weight_N: Floats | None, sigma: float | None, sigma_of: str, notes: list[str]
) -> list[Level]:
    usages = [
        measure_usage(code_N, size, weight_N) for code_N, size in zip(material.codes.T, material.sizes, strict=True)
    ]
    if material.codebooks is None:
        return [Level(at, usage) for at, usage in enumerate(usages, 1)]
    latents = material.latents
    if latents is None:
        latents = sum_codewords(material.codes, material.codebooks)
        notes.append("Without item vectors, the latent is taken to be the sum of the codewords of each item.")
    bases, rest = measure_residuals(latents, material.codes, material.codebooks)
    levels = []
    for at, (usage, codebook) in enumerate(zip(usages, material.codebooks, strict=True)):
        base = bases[0 if sigma_of == "latent" else at]
        if base <= 1e-12 * bases[0]:
            notes.append(f"Level {at + 1} has no overlap: nothing is left to quantize before it.")
            levels.append(Level(at + 1, usage, rest=rest[at + 1]))
            continue
        sigmas = [base * factor**0.5 for factor in SIGMA_FACTORS] + [base if sigma is None else sigma]
        *curve, own = compute_overlaps(usage.shares, codebook, sigmas)
        levels.append(Level(at + 1, usage, own, tuple(curve), rest[at + 1]))
    return levels
