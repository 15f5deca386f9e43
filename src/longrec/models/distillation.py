r"""Knowledge distillation: Distilling the Knowledge in a Neural Network.

Hinton, Vinyals, Dean, NIPS Deep Learning Workshop 2014. https://arxiv.org/abs/1503.02531

A small student learns the label and the soft targets of a large teacher that was trained before and stays as it is:

    L = (1 - alpha) H(y, sigmoid(l)) + alpha T^2 H(sigmoid(z / T), sigmoid(l / T))  (section 2)

with the logits l of the student and z of the teacher. Only the student is exported. The weights of the teacher are
those of a finished run (``fit.init_from``), whose last checkpoint is read.

Departures from the paper
    - one binary label: a softmax over two classes is a sigmoid;
    - the cross entropy of the soft targets is less the entropy of the teacher, a constant, so that it is 0 for equal
      logits; ``hint`` chooses the squared difference of logits or of probabilities instead;
    - the teacher is in evaluation mode: no dropout, running statistics.

Shapes: C candidates.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.hints import Hint, compute_hint
from longrec.models.core.losses import compute_mean_loss
from longrec.models.core.over import Over
from longrec.models.core.registry import BaseSection, build_base, name_of


class DistillationConfig(Strict):
    """Settings of knowledge distillation."""

    student: BaseSection = Field({"name": "din"}, description="Model section of the student, which is served.")
    teacher: BaseSection = Field(
        {"name": "din", "attention": [160, 80], "mlp": [800, 320, 80]},
        description="Model section of the teacher, as in the run that `fit.init_from` names.",
    )
    hint: Hint = Field("distillation", description="Distance of the student from the teacher.")
    alpha: float = Field(0.5, ge=0, le=1, description="Share of the soft targets in the loss.")
    temperature: float = Field(2.0, gt=0, description="Temperature T of hint: distillation.")


class Distillation(Over):
    """A student that learns from a trained teacher. Its scores and its export are the student's."""

    Config = DistillationConfig
    history_optional = True
    needs_init_from = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"student": {"name": "lr"}, "teacher": {"name": "pooling"}, "hint": "logits", "alpha": 0.2},
    )

    def __init__(self, config: DistillationConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.set_base(config.student, fields, "model.student")
        self.teacher = build_base(config.teacher, fields, "model.teacher").requires_grad_(False).eval()
        self.reads_groups &= self.teacher.reads_groups

    def train(self, mode: bool = True) -> Distillation:
        """Switch between training and evaluation. The teacher stays in evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def served(self) -> Model:
        """Return the student."""
        return self.base

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of the teacher for a run of its kind."""
        return "" if name_of(other) == name_of(self) else "teacher."

    def label_loss(self, logits_C1: Float[Tensor, "C 1"], batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the label and of the soft targets."""
        with torch.no_grad():
            target_C = self.teacher(batch)
        hint_C = compute_hint(self.config.hint, logits_C1[:, 0], target_C, self.config.temperature)
        soft = compute_mean_loss(hint_C, batch, torch.ones_like(hint_C, dtype=torch.bool))
        return (1 - self.config.alpha) * self.base.label_loss(logits_C1, batch) + self.config.alpha * soft
