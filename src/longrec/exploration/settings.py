"""Settings of the explorers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longrec.config import Strict
from longrec.models.core.multi_task import LABEL

Uncertainty = Literal["thompson", "ucb"]
"""How uncertainty enters a score: as one signed draw of the posterior, or as an upper confidence bound."""


class TaskSettings(Strict):
    """Which label is explored."""

    task: str = Field(LABEL, description="Task whose probability is explored; by default the schema's label.")


class StrengthSettings(TaskSettings):
    """How much uncertainty counts."""

    strength: float = Field(1.0, ge=0, description="Factor of the uncertainty in the score.")


class MaskSettings(TaskSettings):
    """Masks of Monte Carlo dropout."""

    dropout: float = Field(
        0.01, ge=0, lt=1, description="Share of the hidden units of the final networks that a mask drops."
    )
    draws: int = Field(20, ge=1, description="Masks of an upper confidence bound. Thompson sampling draws one.")
    masks: Literal["request", "candidate"] = Field(
        "request", description="One mask for all candidates of a request, or one per candidate."
    )


class AgeSettings(MaskSettings):
    """Settings of AGE."""

    uncertainty: Uncertainty = Field("thompson", description="One signed draw, or an upper confidence bound.")
    statistic: Literal["std", "var"] = Field(
        "std", description="Deviation or variance of the draws of an upper confidence bound."
    )
    direction: Literal["pgd", "fgm"] = Field("pgd", description="Search of the direction: projected steps, or one.")
    steps: int = Field(5, ge=1, description="Steps of `pgd`.")
    strength: float = Field(1e-3, ge=0, description="Factor of the uncertainty in the size of the perturbation.")
    scope: Literal["item", "all"] = Field(
        "item", description="Perturbed embeddings: those of the candidate, or also of user and context."
    )
    gate: bool = Field(True, description="Explore only where the user likes the item more than the average user.")


class UCBSettings(MaskSettings, StrengthSettings):
    """Settings of an upper confidence bound by Monte Carlo dropout."""


class ThompsonSettings(MaskSettings, StrengthSettings):
    """Settings of Thompson sampling by Monte Carlo dropout."""


class EpsilonGreedySettings(TaskSettings):
    """Settings of epsilon-greedy exploration."""

    epsilon: float = Field(0.05, ge=0, le=1, description="Share of requests whose candidates get a random order.")


class EnsembleSettings(StrengthSettings):
    """Settings of exploration by several trained runs."""

    uncertainty: Uncertainty = Field("thompson", description="A random member per request, or the members' deviation.")


class GradientSettings(StrengthSettings):
    """Settings of exploration by the norm of the gradient of the weights."""

    uncertainty: Uncertainty = Field("thompson", description="Gaussian noise times the norm, or the norm itself.")
