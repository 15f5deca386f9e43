"""Exploration by several trained runs of a model (Osband et al. 2016): a member per request, or their deviation.

Shapes: C candidates, M members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.exploration.explorer import Explorer, Scores
from longrec.exploration.noise import Noise
from longrec.exploration.settings import EnsembleSettings
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker


class Ensemble(Explorer):
    """Several trained runs of one schema.

    The probability is the mean of the members. ``thompson`` ranks a request by one of them, drawn at random, and
    ``ucb`` by the mean plus their standard deviation. ``strength`` multiplies the distance from the mean.

    Args:
        models: at least two trained rankers.

    Raises:
        ConfigError: if there are fewer, or one has no such task.
    """

    settings: EnsembleSettings

    def __init__(self, models: Sequence[Ranker], settings: EnsembleSettings) -> None:
        if len(models) < 2:
            raise ConfigError("explore", [f"models: an ensemble has at least 2 trained runs, got {len(models)}"])
        super().__init__(models[0], settings)
        self.members = nn.ModuleList(_Member(model, settings) for model in models)
        if settings.uncertainty == "thompson":
            self.noise = (Noise("member", "request", 1, "uniform"),)

    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return the mean of the members, and one of them or the mean plus the deviation."""
        p_MC = torch.stack([cast(_Member, member).explore(batch, {}).probability for member in self.members])
        mean_C, count = p_MC.mean(0), len(self.members)
        if self.settings.uncertainty == "ucb":
            return Scores(mean_C, mean_C + self.settings.strength * p_MC.std(0, correction=0))
        chosen = (noise["member"].squeeze(1) * count).long().clamp(max=count - 1).expand(mean_C.shape[0])
        away_C = p_MC.gather(0, chosen.unsqueeze(0)).squeeze(0) - mean_C
        return Scores(mean_C, mean_C + self.settings.strength * away_C)


class _Member(Explorer):
    """The plain probability of one run."""

    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return the probability twice."""
        clicks = self.read(batch if self.model.reads_groups else batch.ungroup())
        y_C = torch.sigmoid(clicks.logit(clicks.vectors))
        return Scores(y_C, y_C)
