"""Stages that rearrange a list as a whole: MMR, DPP, controllable aggregation and spacing.

They read vectors or attributes of items from a bundle.

Shapes: C candidates, D width of a vector, V distinct values of an attribute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class RearrangingStage(ABC):
    """Stage that rearranges a list as a whole and keeps the first.

    Args:
        config: method and its settings.
        name: name of the stage.
    """

    def __init__(self, config: RerankConfig, name: str) -> None:
        self.config, self.name = config, name

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Rearrange candidates, and keep as many as the config says."""
        count, total = self.config.count, len(candidates)
        if total < 2:
            return candidates
        keep = total if count is None else min(total, max(count, query.k))
        order = self.choose(candidates, keep, query.timestamp)
        if query.trace is not None:  # which of the first candidates gave way to later ones
            query.trace.drop(candidates.keys[np.setdiff1d(np.arange(len(order)), order)], DIVERSITY)
        return candidates.take(order)

    @abstractmethod
    def choose(self, candidates: Candidates, keep: int, timestamp: int) -> NDArray[np.int64]:
        """Return the indices of the candidates to keep, in their new order.

        Args:
            candidates: two or more.
            keep: number of candidates to keep.
            timestamp: timestamp of the request, as of which attributes are read.
        """


class DiversityStage(RearrangingStage):
    """Stage that rearranges candidates by MMR or DPP.

    Args:
        config: method and its settings.
        similarity: vectors of items.
        name: name of the stage.
    """

    def __init__(self, config: RerankConfig, similarity: Similarity, name: str) -> None:
        super().__init__(config, name)
        self._similarity = similarity

    def choose(self, candidates: Candidates, keep: int, timestamp: int) -> NDArray[np.int64]:
        """Return candidates by relevance and diversity."""
        config, relevance = self.config, get_relevance(candidates)
        vectors = self._similarity.read(candidates.keys, timestamp)
        if config.method == "mmr":
            return mmr(relevance, vectors, keep, TRADE_OFF if config.trade_off is None else config.trade_off)
        return dpp(relevance, vectors, keep, TRADE_OFF if config.theta is None else config.theta, config.window)[0]


class ControllableStage(RearrangingStage):
    """Stage that chooses candidates by controllable aggregation. The first value of an item with several counts.

    Scores are scaled to 0 .. 1 within the list. An item without a value differs from every other item.

    Args:
        config: its settings.
        attribute: the attribute.
        name: name of the stage.
    """

    def __init__(self, config: RerankConfig, attribute: ItemAttribute, name: str) -> None:
        super().__init__(config, name)
        self._attribute = attribute

    def choose(self, candidates: Candidates, keep: int, timestamp: int) -> NDArray[np.int64]:
        """Return candidates with high scores and different values, in the order of the choice."""
        values = self._attribute.read(candidates.keys, timestamp)
        # Values are positive, so the categories of items without one are those of no other item.
        categories = [own[0] if own else -1 - at for at, own in enumerate(values)]
        weight = DIVERSITY_WEIGHT if self.config.diversity is None else self.config.diversity
        return select_controllable(normalize_relevance(get_relevance(candidates)), categories, keep, weight)


class SpacingStage(RearrangingStage):
    """Stage that moves items of one value of an attribute apart. The first value of an item with several counts.

    Args:
        config: its settings.
        attribute: the attribute.
        name: name of the stage.
    """

    def __init__(self, config: RerankConfig, attribute: ItemAttribute, name: str) -> None:
        super().__init__(config, name)
        self._attribute = attribute

    def choose(self, candidates: Candidates, keep: int, timestamp: int) -> NDArray[np.int64]:
        """Return the first candidates after items of one value have moved apart."""
        values = [own[0] if own else None for own in self._attribute.read(candidates.keys, timestamp)]
        order, _ = space_categories(values, self.config.at_most or AT_MOST, self.config.within or WITHIN)
        return order[:keep]


def get_relevance(candidates: Candidates) -> NDArray[np.float64]:
    """Return the scores of the last stage, or descending ranks if some candidates have none, float64 ``[C]``."""
    scores = candidates.score.astype(np.float64)
    return scores if np.isfinite(scores).all() else -np.arange(len(candidates), dtype=np.float64)
