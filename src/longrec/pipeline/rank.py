"""Order of candidates by their scores, and the first of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import LongRecError
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query


def rank(candidates: Candidates, scores: NDArray[Any], stage: str) -> Candidates:
    """Return candidates with the scores of a stage, highest first. Equal scores keep their order.

    Raises:
        LongRecError: if there are other numbers of scores than candidates, or a score is not finite.
    """
    if scores.shape != (len(candidates),):
        raise LongRecError(
            f"stage {stage!r}", f"scores of shape {scores.shape} for {len(candidates)} candidates", "one each"
        )
    if not np.isfinite(scores).all():
        first = candidates.keys[~np.isfinite(scores)].tolist()[0]
        raise LongRecError(f"stage {stage!r}", f"a score that is not finite, first for item {first!r}", "finite scores")
    return candidates.with_scores(stage, scores).take(np.argsort(-scores, kind="stable"))


class TopStage:
    """Stage that keeps the first k candidates of a query."""

    def __init__(self, name: str = "top") -> None:
        self.name = name

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Return the first candidates."""
        return candidates if len(candidates) <= query.k else candidates.take(np.arange(query.k))
