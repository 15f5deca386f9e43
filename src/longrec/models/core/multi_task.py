"""Labels, loss weights and ranking score of multi-task models.

The first task is always the schema's label, called ``label`` here. The others are feedback features with the values 0
and 1. A score for ranking may join several,

    s = prod_k p_k^e_k                                              over the tasks k of ``rank_by``, each with e_k > 0

and is a probability again.

Shapes: B rows, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.models.core.losses import bce_loss, compute_mean_loss

LABEL = "label"
"""Name of the schema's label in settings."""
Weights = dict[str, Annotated[float, Field(gt=0)]]
"""Type of a setting that maps tasks to numbers above 0."""

_NEARLY = -1e-6
"""Largest logarithm of a joined probability. Above it float32 has no finite logit."""


class TasksConfig(Strict):
    """Settings of a multi-task model."""

    tasks: Weights = Field(
        {}, description="Labels besides the schema's: feedback features with the values 0 and 1, each with its weight."
    )
    label_weight: float = Field(1.0, gt=0, description="Weight of the schema's label.")
    rank_by: Weights = Field(
        {}, description="Exponents of the tasks whose probabilities form the score; by default `label` alone."
    )


class Tasks:
    """The labels of a multi-task model, with their losses and their ranking score.

    Args:
        tasks: feedback features, each with its weight in the loss.
        label_weight: weight of the schema's label.
        rank_by: exponents of the tasks in the ranking score. Empty for the schema's label alone.

    Attributes:
        names: of all tasks, ``label`` first.

    Raises:
        ConfigError: if a task is called ``label``, or exponents name unknown tasks.
    """

    def __init__(
        self, tasks: Mapping[str, float], label_weight: float = 1.0, rank_by: Mapping[str, float] | None = None
    ) -> None:
        self.weights = {LABEL: label_weight, **tasks}
        self.names, self.rank_by = tuple(self.weights), dict(rank_by or {})
        choices = ", ".join(self.names)
        faults = [f"model.rank_by: {name!r} is not a task; tasks: {choices}" for name in self.rank_by
                  if name not in self.weights]  # fmt: skip
        if LABEL in tasks:
            faults.append(f"model.tasks: {LABEL} is the schema's label; give the feedback feature another name")
        if faults:
            raise ConfigError("config", faults)

    @classmethod
    def of(cls, config: TasksConfig) -> Tasks:
        """Return the tasks of a config."""
        return cls(config.tasks, config.label_weight, config.rank_by)

    @property
    def targets(self) -> tuple[str, ...]:
        """All tasks except the schema's label."""
        return self.names[1:]

    def loss(self, logits_BK: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of the cross entropies, each over its labeled rows."""
        total = self.weights[LABEL] * bce_loss(logits_BK[:, 0], batch)
        for column, name in enumerate(self.targets, 1):
            total = total + self.weights[name] * masked_bce_loss(logits_BK[:, column], batch, name)
        return total

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """Return the logit of the score for ranking."""
        return join_logits(logits_BK, {self.names.index(name): power for name, power in self.rank_by.items()})


def join_logits(logits_BK: Float[Tensor, "B K"], powers: Mapping[int, float]) -> Float[Tensor, " B"]:
    """Return the logit of ``prod_k sigmoid(logit_k)^power_k``. A single task of power 1 keeps its logit.

    Args:
        powers: power per column of ``logits_BK``. Empty: the first logit is returned.
    """
    if not powers:
        return logits_BK[:, 0]
    if len(powers) == 1 and 1 in powers.values():
        return logits_BK[:, next(iter(powers))]
    terms = [power * F.logsigmoid(logits_BK[:, column].float()) for column, power in powers.items()]
    log_B = torch.stack(terms).sum(0).clamp(max=_NEARLY)
    return log_B - torch.log(-torch.expm1(log_B))


def masked_bce_loss(logit_B: Float[Tensor, " B"], batch: Batch, name: str) -> Float[Tensor, ""]:
    """Return the mean binary cross entropy over the labeled rows in the loss mask, in float32. 0 if there are none.

    Raises:
        ValueError: if the batch has no labels of this task.
    """
    if name not in batch.task_labels:
        raise ValueError(f"the batch carries no target {name!r}")
    target_B = batch.task_labels[name]
    loss_B = F.binary_cross_entropy_with_logits(logit_B.float(), target_B.nan_to_num(), reduction="none")
    return compute_mean_loss(loss_B, batch, ~target_B.isnan())
