"""What models of several tasks have in common: labels with their weights, what rows are ranked by, and a bottom.

The first task is always the schema's label, called ``label`` here; the others are feedback features with the values 0
and 1. A score for ranking may join several,

    s = prod_k p_k^e_k                                              over the tasks k of ``rank_by``, each with e_k > 0

and is a probability again, so that everything behind the model takes it for one.

Letters: B rows, K tasks, W width of the bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.base import Model, Ranker, base_of, cross_entropy, name_of
from longrec.nn.embedding import Embeddings
from longrec.nn.segment import Segments

LABEL = "label"
"""What a setting calls the schema's label."""
Weights = dict[str, Annotated[float, Field(gt=0)]]
"""The type of a setting that gives tasks numbers above 0."""

_NEARLY = -1e-6
"""The logarithm of a joined probability ends here: beyond, float32 knows no logit."""


class Tasks:
    """The labels that a model learns.

    Args:
        tasks: feedback features, each with its weight in the loss.
        label_weight: weight of the schema's label.
        rank_by: exponents of the tasks that a row is ranked by; empty for the schema's label alone.

    Attributes:
        names: of all tasks, ``label`` first.

    Raises:
        ConfigError: a task called ``label``, or exponents of tasks that are not learnt.
    """

    def __init__(
        self, tasks: Mapping[str, float], label_weight: float = 1.0, rank_by: Mapping[str, float] | None = None
    ) -> None:
        self.weights = {LABEL: label_weight, **tasks}
        self.names, self.rank_by = tuple(self.weights), dict(rank_by or {})
        known = ", ".join(self.names)
        faults = [f"model.rank_by: {name!r} is not learnt; tasks: {known}" for name in self.rank_by
                  if name not in self.weights]  # fmt: skip
        if LABEL in tasks:
            faults.append(f"model.tasks: {LABEL} stands for the schema's label; give the feedback feature another name")
        if faults:
            raise ConfigError("config", faults)

    @property
    def targets(self) -> tuple[str, ...]:
        """All tasks but the schema's label."""
        return self.names[1:]

    def loss(self, logits_BK: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
        """The weighted sum of the cross entropies, each over the rows whose label is known."""
        total = self.weights[LABEL] * cross_entropy(logits_BK[:, 0], batch)
        for place, name in enumerate(self.targets, 1):
            total = total + self.weights[name] * known_cross_entropy(logits_BK[:, place], batch, name)
        return total

    def ranked(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """The logit of the score for ranking."""
        return joined(logits_BK, {self.names.index(name): power for name, power in self.rank_by.items()})


def joined(logits_BK: Float[Tensor, "B K"], powers: Mapping[int, float]) -> Float[Tensor, " B"]:
    """The logit of ``prod_k sigmoid(logit_k)^power_k``; without powers, or with one of 1, a logit as it is.

    Args:
        powers: by column.
    """
    if not powers:
        return logits_BK[:, 0]
    if len(powers) == 1 and 1 in powers.values():
        return logits_BK[:, next(iter(powers))]
    parts = [power * F.logsigmoid(logits_BK[:, place].float()) for place, power in powers.items()]
    log_B = torch.stack(parts).sum(0).clamp(max=_NEARLY)
    return log_B - torch.log(-torch.expm1(log_B))


def known_cross_entropy(logit_B: Float[Tensor, " B"], batch: Batch, name: str) -> Float[Tensor, ""]:
    """Mean binary cross entropy over the rows that count and whose target is known, in float32; 0 if there are none.

    Raises:
        ValueError: a batch without this target.
    """
    if name not in batch.targets:
        raise ValueError(f"the batch carries no target {name!r}")
    target_B = batch.targets[name]
    known_B = ~target_B.isnan()
    if batch.counts is not None:
        known_B &= batch.counts
    loss_B = F.binary_cross_entropy_with_logits(logit_B.float(), target_B.nan_to_num(), reduction="none")
    return torch.where(known_B, loss_B, torch.zeros_like(loss_B)).sum() / known_B.sum().clamp(min=1)


class Bottom(nn.Module):
    """What the tasks share before anything of theirs: a ranker's last hidden layer with its logit beside it, or all
    fields beside the mean of each history.

    Args:
        base: the section of a ranker, or None.
        dim, std: of the embeddings where there is no ranker.

    Attributes:
        width: W.
        base: the ranker.
    """

    def __init__(self, base: Mapping[str, Any] | None, fields: Fields, dim: int, std: float) -> None:
        super().__init__()
        self.base: Ranker | None = None
        self.embeddings: Embeddings | None = None
        if base is not None:
            self.base = base_of(base, fields, "model.base")
            self.width = self.base.interaction + 1
            return
        self.embeddings = Embeddings(fields, dim, histories=True, std=std)
        read = [*fields.features, *(field for columns in fields.histories.values() for field in columns)]
        self.width = sum(self.embeddings.widths[field.name] for field in read)

    def lend(self, model: Ranker) -> None:
        """Tell a model what the bottom makes of it."""
        if self.base is None:
            model.reads_history = bool(model.fields.histories)
            return
        model.reads_history, model.order_matters = self.base.reads_history, self.base.order_matters
        model.user_order = self.base.user_order

    def forward(self, batch: Batch) -> Float[Tensor, "B W"]:
        """One vector a row."""
        if self.base is not None:
            h_BH = self.base.interact(batch)
            return torch.cat([h_BH, self.base.head(h_BH).unsqueeze(1)], 1)
        assert self.embeddings is not None
        embedded = self.embeddings(batch)
        parts = list(embedded.features.values())
        for history, columns in embedded.histories.items():
            segments = Segments.of(batch.histories[history], batch.size)
            parts.extend(segments.pool(e_UD, "mean") for e_UD in columns.values())
        return torch.cat(parts, 1)

    def loss(self, batch: Batch) -> Float[Tensor, ""] | float:
        """The base's own loss where it has one beyond the cross entropy of its label; else 0."""
        own = self.base is not None and type(self.base).loss is not Ranker.loss
        return self.base.loss(batch) if own and self.base is not None else 0.0

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """What the base tells of its histories."""
        return {} if self.base is None else self.base.explain(batch)

    def home_of(self, other: Model) -> str:
        """Where the weights of a run of the base belong in a model that calls this its ``bottom``."""
        of_base = self.base is not None and name_of(other) == name_of(self.base)
        return "bottom.base." if of_base else ""
