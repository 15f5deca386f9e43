"""Stages that rearrange a list as a whole: MMR, DPP, controllable aggregation and spacing.

They read vectors or attributes of items from a bundle.

Shapes: C candidates, D width of a vector, V distinct values of an attribute.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.pipeline.candidates import Candidates
from longrec.pipeline.config import RerankConfig
from longrec.pipeline.controllable import select_controllable
from longrec.pipeline.dpp import dpp
from longrec.pipeline.mmr import mmr
from longrec.pipeline.rerank_inputs import normalize_relevance
from longrec.pipeline.spacing import space_categories
from longrec.pipeline.stage import Query
from longrec.pipeline.trace import DIVERSITY
from longrec.serve.item_attributes import ItemAttribute, ItemVectors, build_indicators

TRADE_OFF, DIVERSITY_WEIGHT, AT_MOST, WITHIN = 0.7, 0.25, 1, 3
"""Defaults of ``lambda`` and ``theta``, of ``diversity``, and of spacing."""


class Similarity(Protocol):
    """Vectors of items, whose products say how similar they are."""

    def read(self, keys: NDArray[Any], timestamp: int) -> NDArray[Any]:
        """Return the vector of every item, ``[C, D]``."""
        ...


class VectorSimilarity:
    """Vectors of a retriever."""

    def __init__(self, vectors: ItemVectors) -> None:
        self._vectors = vectors

    def read(self, keys: NDArray[Any], timestamp: int) -> NDArray[Any]:
        """Return the vector of every item, ``[C, D]``."""
        return self._vectors.read(keys)


class AttributeSimilarity:
    """Indicators of the values of an attribute."""

    def __init__(self, attribute: ItemAttribute) -> None:
        self._attribute = attribute

    def read(self, keys: NDArray[Any], timestamp: int) -> NDArray[Any]:
        """Return a vector with a one for each value of every item, ``[C, V]``."""
        return build_indicators(self._attribute.read(keys, timestamp))


class DiversityStage:
    """Stage that rearranges candidates by MMR or DPP.

    Args:
        config: method and its settings.
        similarity: vectors of items.
        name: name of the stage.
    """

    def __init__(self, config: RerankConfig, similarity: Similarity, name: str) -> None:
        self.config, self.name, self._similarity = config, name, similarity

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Rearrange candidates by relevance and diversity, and keep the first."""
        config, total = self.config, len(candidates)
        if total < 2:
            return candidates
        keep = _count_kept(config, total, query)
        relevance, vectors = get_relevance(candidates), self._similarity.read(candidates.keys, query.timestamp)
        if config.method == "mmr":
            order = mmr(relevance, vectors, keep, TRADE_OFF if config.trade_off is None else config.trade_off)
        else:
            order, _ = dpp(relevance, vectors, keep, TRADE_OFF if config.theta is None else config.theta, config.window)
        _note_dropped(candidates, order, query)
        return candidates.take(order)


class ControllableStage:
    """Stage that chooses candidates by controllable aggregation. The first value of an item with several counts.

    Scores are scaled to 0 .. 1 within the list. An item without a value differs from every other item.

    Args:
        config: its settings.
        attribute: the attribute.
        name: name of the stage.
    """

    def __init__(self, config: RerankConfig, attribute: ItemAttribute, name: str) -> None:
        self.config, self.name, self._attribute = config, name, attribute

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Choose candidates with high scores and different values, in the order of the choice."""
        config, total = self.config, len(candidates)
        if total < 2:
            return candidates
        values = self._attribute.read(candidates.keys, query.timestamp)
        # Values are positive, so the categories of items without one are those of no other item.
        categories = [own[0] if own else -1 - at for at, own in enumerate(values)]
        order = select_controllable(
            normalize_relevance(get_relevance(candidates)),
            categories,
            _count_kept(config, total, query),
            DIVERSITY_WEIGHT if config.diversity is None else config.diversity,
        )
        _note_dropped(candidates, order, query)
        return candidates.take(order)


class SpacingStage:
    """Stage that moves items of one value of an attribute apart. The first value of an item with several counts.

    Args:
        config: its settings.
        attribute: the attribute.
        name: name of the stage.
    """

    def __init__(self, config: RerankConfig, attribute: ItemAttribute, name: str) -> None:
        self.config, self.name, self._attribute = config, name, attribute

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Move candidates of one value apart, and keep the first."""
        config, total = self.config, len(candidates)
        if total < 2:
            return candidates
        values = self._attribute.read(candidates.keys, query.timestamp)
        order, _ = space_categories(
            [own[0] if own else None for own in values], config.at_most or AT_MOST, config.within or WITHIN
        )
        order = order[: _count_kept(config, total, query)]
        _note_dropped(candidates, order, query)
        return candidates.take(order)


def _count_kept(config: RerankConfig, total: int, query: Query) -> int:
    """Return the number of candidates that a stage keeps."""
    return total if config.count is None else min(total, max(config.count, query.k))


def _note_dropped(candidates: Candidates, order: NDArray[np.int64], query: Query) -> None:
    """Note in the trace which of the first candidates gave way to later ones."""
    if query.trace is not None:
        query.trace.drop(candidates.keys[np.setdiff1d(np.arange(len(order)), order)], DIVERSITY)


def get_relevance(candidates: Candidates) -> NDArray[np.float64]:
    """Return the scores of the last stage, or descending ranks if some candidates have none, float64 ``[C]``."""
    scores = candidates.score.astype(np.float64)
    return scores if np.isfinite(scores).all() else -np.arange(len(candidates), dtype=np.float64)
