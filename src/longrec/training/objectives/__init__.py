"""Objectives: what training and evaluation mean for a kind of model."""

from __future__ import annotations

from longrec.models.core.base import Model
from longrec.models.core.kinds import Reranker, Retriever
from longrec.training.objectives.clicks import Clicks
from longrec.training.objectives.lists import Lists
from longrec.training.objectives.next_item import NextItem
from longrec.training.objectives.objective import Objective

__all__ = ["OBJECTIVES", "Objective", "objective_of"]

OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in (Clicks(), Lists(), NextItem())}
"""Every objective by its name, which results hold."""


def objective_of(model: type[Model]) -> Objective:
    """Return the objective of a class of models."""
    if issubclass(model, Reranker):
        return OBJECTIVES["lists"]
    return OBJECTIVES["next_item" if issubclass(model, Retriever) else "clicks"]
