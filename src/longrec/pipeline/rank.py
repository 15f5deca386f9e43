"""Ranking stage, which scores every candidate and sorts them, best first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import LongRecError
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import RankQuery

Scorer = Callable[[Candidates, RankQuery], NDArray[Any]]
"""Function from candidates and a query to one finite number per candidate."""


class RankStage:
    """Stage that scores candidates and sorts them, highest first. Equal scores keep their order."""

    def __init__(self, scorer: Scorer, name: str = "rank") -> None:
        self.scorer, self.name = scorer, name

    def __call__(self, candidates: Candidates, query: RankQuery) -> Candidates:
        """Score and sort candidates.

        Raises:
            LongRecError: if the scorer returns another number of scores, or a score that is not finite.
        """
        scores = np.asarray(self.scorer(candidates, query))
        if scores.shape != (len(candidates),):
            raise LongRecError(
                f"stage {self.name!r}", f"scores of shape {scores.shape} for {len(candidates)} candidates", "one each"
            )
        if not np.isfinite(scores).all():
            first = candidates.keys[~np.isfinite(scores)].tolist()[0]
            raise LongRecError(
                f"stage {self.name!r}", f"a score that is not finite, first for item {first!r}", "finite scores"
            )
        return candidates.with_scores(scores).take(np.argsort(-scores, kind="stable"))
