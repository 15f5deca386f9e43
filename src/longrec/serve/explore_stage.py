"""Last stage of a pipeline: it explores one position of the page, see ``pipeline/explore.py``."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.exporting.explorer_facts import draw_uniform
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.deadline import is_late
from longrec.pipeline.explore import (
    SEED_BITS,
    Exploration,
    assign_bucket,
    build_page,
    compute_propensities,
    compute_weights,
    derive_seed,
    draw,
)
from longrec.pipeline.explore_config import ExploreConfig
from longrec.pipeline.stage import Query

COIN, ITEM = "explore.coin", "explore.item"
"""Streams of the seed of a request: whether its page explores, and which item is drawn."""


class Scorer(Protocol):
    """Exploration scores of candidates, see ``exploration_scorer.py``."""

    def contains(self, keys: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which items can be scored, bool ``[C]``."""
        ...

    def __call__(self, candidates: Candidates, query: Query, seed: int) -> NDArray[np.float32]:
        """Return the exploration score of every candidate, float32 ``[C]``."""
        ...


class ExploreStage:
    """Stage that moves a drawn item to one position of the page.

    Candidates of the page in front of the position are never drawn, because they are shown anyway. The scores of the
    other stages stay as they are: the exploration score is one more, and not the last.

    Args:
        config: budget, position and draw.
        scorer: exploration scores.
        counts: function that returns the number of ``below`` for items, float64 ``[C]``, as they are now. None without.
        propensities: compute the propensities of every page, which needs the scores of pages that do not explore too.
        name: name of the stage and of its scores.
    """

    def __init__(
        self,
        config: ExploreConfig,
        scorer: Scorer,
        counts: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None,
        *,
        propensities: bool = True,
        name: str = "explore",
    ) -> None:
        self.config, self.name = config, name
        self._scorer, self._counts, self._propensities = scorer, counts, propensities

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Return the page with the drawn item in its position, and note in the query what was done."""
        config, size = self.config, min(query.k, len(candidates))
        assert query.user is not None
        bucket = assign_bucket(query.user, config.control, config.salt)
        certain = np.ones(size) if self._propensities else None
        query.explored.result = Exploration(bucket, propensities=certain)
        if bucket == "control":
            return candidates
        if is_late(query, None if config.deadline_ms is None else config.deadline_ms / 1_000):
            query.fallbacks.append(self.name)
            if query.trace is not None:
                query.trace.note_late()
            return candidates
        seed = self._choose_seed(query)
        explores = draw_uniform(seed, COIN) < config.share
        item, propensities, slot, reserve = None, certain, config.position - 1, query.explored.reserve
        listed = candidates if reserve is None else reserve
        allowed = self._find_allowed(listed, slot)
        if slot < size and len(allowed) and config.share > 0 and (explores or self._propensities):
            scores_A = self._scorer(listed.take(allowed), query, seed)
            weights_C = np.zeros(len(listed))
            weights_C[allowed] = compute_weights(scores_A, config.temperature)
            page = build_page(size, slot, draw(weights_C, draw_uniform(seed, ITEM)) if explores else None)
            if self._propensities:
                propensities = compute_propensities(page, slot, weights_C, config.share)
            scores_C = np.full(len(listed), np.nan, np.float32)
            scores_C[allowed] = scores_A
            # Of a page that rules arranged, the item that gave way is no candidate any more.
            behind = np.setdiff1d(np.arange(len(listed)), page) if reserve is None else np.zeros(0, np.int64)
            order = np.concatenate([np.array(page, np.int64), behind])
            candidates = listed.with_scores(self.name, scores_C, last=False).take(order)
            item = candidates.keys[slot : slot + 1].tolist()[0] if explores else None
        query.explored.result = Exploration(bucket, seed, item, None if query.seed is not None else propensities)
        return candidates

    def _choose_seed(self, query: Query) -> int:
        if query.seed is not None:
            return query.seed
        if self.config.seed is None:
            return secrets.randbits(SEED_BITS)
        assert query.user is not None
        return derive_seed(self.config.seed, query.user, query.timestamp)

    def _find_allowed(self, listed: Candidates, slot: int) -> NDArray[np.int64]:
        """Return the indices of the candidates that may be drawn, the first ones."""
        allowed = np.arange(len(listed)) >= slot
        if self._counts is not None and self.config.below is not None:
            allowed &= self._counts(listed.keys) < self.config.below.count
        allowed[allowed] = self._scorer.contains(listed.keys[allowed])
        return np.flatnonzero(allowed)[: self.config.candidates]
