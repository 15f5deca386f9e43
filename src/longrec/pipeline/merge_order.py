"""Order of candidates of several sources in one list, and the stage that cuts it to a budget.

An item of several sources is in the list once, and keeps all of them. Three orders:

    interleave  the sources take turns; a source of weight w takes w turns of each round
    fusion      descending sum over the sources of w / (60 + rank), from rank 1: reciprocal rank fusion (Cormack, Clarke
                and Buettcher, SIGIR 2009, https://doi.org/10.1145/1571941.1572114)
    score       descending score of one source, then the items that it does not have, interleaved

The rank of an item in a source follows from the source's scores. Of equal scores, items that an earlier source has come
first, then those that the source returned first.

Shapes: C candidates, S sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longrec.pipeline.candidates import Candidates
from longrec.pipeline.deadline import cut
from longrec.pipeline.stage import Query

Order = Literal["interleave", "fusion", "score"]
SMOOTHING = 60
"""Constant of reciprocal rank fusion, that of the paper."""


def rank_in_sources(candidates: Candidates, score_names: Sequence[str]) -> NDArray[np.float64]:
    """Return the rank of every candidate in every source, float64 ``[S, C]`` from 0, infinite for other items.

    Args:
        score_names: name of the scores of each source.
    """
    ranks_SC = np.full((len(score_names), len(candidates)), np.inf)
    for ranks_C, name in zip(ranks_SC, score_names):
        if name in candidates.scores:
            scores_C = candidates.scores[name]
            own = np.flatnonzero(~np.isnan(scores_C))
            ranks_C[own[np.argsort(-scores_C[own], kind="stable")]] = np.arange(len(own))
    return ranks_SC


def order_candidates(
    candidates: Candidates, score_names: Sequence[str], order: Order, weights: Sequence[float], by: str | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the order of candidates, and a score of each that has this order.

    Args:
        score_names: name of the scores of each source.
        weights: weight of each source.
        by: name of the scores that ``score`` orders by. The score of items without one is not a number.
    """
    ranks_SC, weights_S1 = rank_in_sources(candidates, score_names), np.array(weights)[:, None]
    if order == "fusion":
        scores_C = (weights_S1 / (SMOOTHING + 1 + ranks_SC)).sum(0)
        return np.argsort(-scores_C, kind="stable"), scores_C
    turns_SC = (ranks_SC + 1) / weights_S1
    turns_C, source_C = turns_SC.min(0, initial=np.inf), turns_SC.argmin(0)
    if order == "score":
        assert by is not None
        scores_C = candidates.scores.get(by, np.full(len(candidates), np.nan)).astype(np.float64)
        first_C = np.where(np.isnan(scores_C), np.inf, -scores_C)
        return np.lexsort((source_C, turns_C, first_C)), scores_C
    return np.lexsort((source_C, turns_C)), 1 / turns_C


class MergeStage:
    """Stage that orders the candidates of several sources and keeps the first.

    Args:
        score_names: name of the scores of each source, in the order of the sources.
        keep: number of items that it keeps, or k if that is more. None for all.
        order: the order.
        weights: weight of a source by the name of its scores, by default 1.
        by: name of the scores of the source that ``score`` orders by.
        name: name of the stage and of its scores.
    """

    def __init__(
        self,
        score_names: Sequence[str],
        keep: int | None = None,
        order: Order = "interleave",
        weights: Mapping[str, float] | None = None,
        by: str | None = None,
        name: str = "merge",
    ) -> None:
        self.score_names, self.keep, self.order, self.by, self.name = list(score_names), keep, order, by, name
        self._weights = [(weights or {}).get(source, 1.0) for source in score_names]

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Order candidates and keep the first."""
        if len(self.score_names) > 1 and len(candidates):
            order, scores = order_candidates(candidates, self.score_names, self.order, self._weights, self.by)
            candidates = candidates.with_scores(self.name, scores).take(order)
        return cut(candidates, self.keep, query)
