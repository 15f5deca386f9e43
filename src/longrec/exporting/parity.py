"""Parity checks: the exported ONNX model and the whole online path score like the model, at every shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.exporting.golden import GoldenRequest
from longrec.exporting.program import ProgramModule
from longrec.exporting.runtime import Program
from longrec.exporting.scale import Scale

TOLERANCE = 1e-5
"""Largest allowed difference of two probabilities, or of two vectors as a share of their largest number."""

SHAPES = ((100, 100), (7, 100), (1, 1), (500, 300), (3, 0), (1, 0))
"""Checked shapes: (candidates, events per history)."""

ReplayFunction = Callable[[Path, Sequence[GoldenRequest]], Sequence[NDArray[Any]]]
"""Function from a bundle's folder and requests to the score (or vector) of each candidate, per request, in order."""


def check_shapes(module: ProgramModule, program: Program) -> dict[str, float]:
    """Return the largest difference between torch and onnxruntime at every shape.

    Raises:
        BundleError: if a difference is above the tolerance.
    """
    worst = {}
    for seed, (candidates, events) in enumerate(SHAPES):
        tensors = module.make_random_tensors(candidates, events, seed)
        where, names = f"shape {candidates}x{events}", module.compared
        expected, online = module.compute_expected(tensors, program, where), program.run_outputs(tensors, names)
        worst[where.removeprefix("shape ")] = max(
            check_difference(own, served, where if name == names[0] else f"{where}, {name}")
            for name, own, served in zip(names, expected, online, strict=True)
        )
    return worst


def check_golden(
    folder: Path, golden: Sequence[GoldenRequest], replay: ReplayFunction, scale: Scale | None = None
) -> float:
    """Return the largest difference between offline scores and those of the whole online path.

    Args:
        scale: scale of an encoder's tokens. Tokens are compared before scaling, because dividing by a tiny deviation
            would magnify any difference.

    Raises:
        BundleError: if a difference is above the tolerance, or there is nothing to compare.
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
    """Return the largest absolute difference of two lists of probabilities.

    The difference of vectors is a share of their largest number (or of 1).

    Raises:
        BundleError: if a difference is above the tolerance, lengths differ, or a score is not finite.
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
            "look for an operation that behaves differently in ONNX, or for features computed in two ways",
        )
    return worst
