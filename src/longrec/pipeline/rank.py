"""Order of candidates by their scores, and selection of the best."""

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


def select_top(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the indices of the k highest scores, highest first. Of equal scores the first ones are selected.

    >>> select_top(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 3).tolist()
    [1, 3, 2]
    """
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    if k <= 0:
        return np.zeros(0, np.int64)
    lowest = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > lowest)
    chosen = np.concatenate([above, np.flatnonzero(scores == lowest)[: k - len(above)]])
    return chosen[np.argsort(-scores[chosen], kind="stable")]


class TopStage:
    """Stage that keeps the first k candidates of a query."""

    def __init__(self, name: str = "top") -> None:
        self.name = name

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Return the first candidates."""
        return candidates if len(candidates) <= query.k else candidates.take(np.arange(query.k))
