"""Parity: the exported program answers what the model answers, at every shape and along the whole online path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.export.golden import GoldenRequest
from longrec.export.inputs import make_random_tensors
from longrec.export.program import SharedModel, run_torch
from longrec.export.runtime import Program
from longrec.export.scale import Scale

TOLERANCE = 1e-5
"""Largest difference between two probabilities that passes; between vectors, as a share of their largest number."""

SHAPES = ((100, 100), (7, 100), (1, 1), (500, 300), (3, 0), (1, 0))
"""(candidates, events of every history)."""

ReplayFunction = Callable[[Path, Sequence[GoldenRequest]], Sequence[NDArray[Any]]]
"""A bundle's folder and requests -> for each request the score (or vector) of each of its candidates, in order."""


def check_shapes(module: SharedModel, program: Program) -> dict[str, float]:
    """Largest difference between torch and onnxruntime at every shape.

    Raises:
        BundleError: above the tolerance.
    """
    worst = {}
    for seed, (candidates, events) in enumerate(SHAPES):
        tensors = make_random_tensors(module.inputs, candidates, events, seed)
        shape = f"{candidates}x{events}"
        worst[shape] = check_difference(run_torch(module, tensors), program.run(tensors), f"shape {shape}")
    return worst


def check_golden(
    folder: Path, golden: Sequence[GoldenRequest], replay: ReplayFunction, scale: Scale | None = None
) -> float:
    """Largest difference between offline scores and those of the whole online path.

    Args:
        scale: of an encoder's tokens: they are compared as the source makes them, since a number that hardly moves
            makes any difference look large.

    Raises:
        BundleError: above the tolerance, or nothing to compare.
    """
    if not golden:
        raise BundleError("golden requests", "none", "at least one request of the log with its offline scores")
    answers = replay(folder, golden)
    own = (lambda values: values) if scale is None else scale.unstandardize
    return max(
        check_difference(own(one.expected), own(np.asarray(scores)), f"golden request {number}")
        for number, (one, scores) in enumerate(zip(golden, answers, strict=True))
    )


def check_difference(offline: NDArray[Any], online: NDArray[Any], where: str) -> float:
    """Largest absolute difference of two lists of probabilities; of vectors, as a share of the largest number (or 1).

    Raises:
        BundleError: above the tolerance, other lengths, or a score that is not finite.
    """
    if offline.shape != online.shape:
        raise BundleError(where, f"{online.shape[0]} scores", f"{offline.shape[0]}")
    size = max(1.0, float(np.abs(offline).max(initial=0.0)))
    worst = float(np.abs(offline.astype(np.float64) - online.astype(np.float64)).max(initial=0.0)) / size
    if not worst <= TOLERANCE:
        raise BundleError(
            where,
            f"the exported program differs from the model by {worst:.2g}",
            f"at most {TOLERANCE:g}",
            "look for an operation that behaves differently in ONNX, or for features made in two ways",
        )
    return worst
