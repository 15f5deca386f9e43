"""Shared bottom of multi-task models, another ranker or all fields, and the base class of rankers over it.

Shapes: B rows, K tasks, W width of the bottom, H width of the towers' inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.kinds import Ranker
from longrec.models.core.multi_task import Tasks
from longrec.models.core.registry import BaseSection, build_base, name_of
from longrec.models.core.top import EmbeddingConfig
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.experts import Form, MLPs, MMoELayer, PLELevels, SharedBottom, Towers
from longrec.nn.segments import Segments

Common = SharedBottom | MMoELayer | PLELevels | MLPs
"""Layers that map ``[B, W]`` to ``[B, K, H]``."""


class BottomConfig(EmbeddingConfig):
    """Settings of a model over a shared bottom."""

    base: BaseSection | None = Field(
        None, description="Ranker below the tasks; by default all fields and the mean of each history."
    )
    activation: ActivationName = Field("relu", description="Activation of all networks.")
    batch_norm: bool = Field(True, description="Batch normalization in all networks.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of all networks.")

    @property
    def form(self) -> Form:
        """Activation, dropout and normalization of all networks."""
        return Form(self.activation, self.dropout, self.batch_norm)


class Bottom(nn.Module):
    """Input that all tasks share: the last hidden layer and the logit of a ranker, or all fields and history means.

    Args:
        config: ``base`` is the section of a ranker, or None.

    Attributes:
        width: W.
        base: the ranker.
    """

    def __init__(self, config: BottomConfig, fields: Fields) -> None:
        super().__init__()
        self.base: Ranker | None = None
        self.embeddings: Embeddings | None = None
        if config.base is not None:
            self.base = build_base(config.base, fields, "model.base")
            self.width = self.base.interaction_width + 1
            return
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        read = [*fields.features, *(field for columns in fields.histories.values() for field in columns)]
        self.width = sum(self.embeddings.widths[field.name] for field in read)

    def copy_flags_to(self, model: Ranker) -> None:
        """Set the flags of a model that depend on the bottom."""
        if self.base is None:
            model.reads_history, model.reads_groups = bool(model.fields.histories), True
            return
        model.reads_history, model.order_matters = self.base.reads_history, self.base.order_matters
        model.user_order, model.reads_groups = self.base.user_order, self.base.reads_groups

    def embed(self, batch: Batch) -> Embedded:
        """Look up the vectors of the base, or of all fields."""
        if self.base is not None:
            return self.base.embed(batch)
        assert self.embeddings is not None
        embedded: Embedded = self.embeddings(batch)
        return embedded

    def forward(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B W"]:
        """Return one vector per row."""
        if self.base is not None:
            h_BH = self.base.interact(batch, embedded)
            return torch.cat([h_BH, self.base.head(h_BH)], 1)
        inputs = list(embedded.features.values())
        for history, columns in embedded.histories.items():
            segments = Segments.of(batch, history)
            inputs.extend(segments.pool(e_UD, "mean") for e_UD in columns.values())
        return torch.cat(inputs, 1)

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss of the base."""
        return 0.0 if self.base is None else self.base.aux_loss(batch, embedded)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the explanation of the base."""
        return {} if self.base is None else self.base.explain(batch)

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of a run of the base in a model whose attribute ``bottom`` this is."""
        of_base = self.base is not None and name_of(other) == name_of(self.base)
        return "bottom.base." if of_base else ""


class BottomRanker(Ranker):
    """A multi-task ranker over a bottom: ``common`` computes one vector per task, and a tower its logit.

    Subclasses set both by ``set_layers``.
    """

    reads_history = True
    history_optional = True
    renamed_parameters: ClassVar[dict[str, str]] = {"shared": "common"}

    def __init__(self, config: BottomConfig, fields: Fields, tasks: Tasks) -> None:
        super().__init__(config, fields)
        self.bottom = Bottom(config, fields)
        self.bottom.copy_flags_to(self)
        self.tasks, self.targets = tasks, tasks.targets

    def set_layers(self, common: Common, towers: Towers) -> None:
        """Set the layers that the tasks share, and the towers over them."""
        self.common, self.towers = common, towers
        self.interaction_width = towers.count * common.width

    def embed(self, batch: Batch) -> Embedded:
        """Look up the vectors of the bottom."""
        return self.bottom.embed(batch)

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the inputs of all towers, concatenated."""
        h_BKH: Tensor = self.common(self.bottom(batch, embedded))
        return h_BKH.flatten(1)

    def tower_logits(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """Return the output of every tower."""
        logits: Tensor = self.towers(h_BH.view(-1, self.towers.count, self.common.width))
        return logits

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """Return the logit of every label: the schema's, then those of ``targets``. By default one tower per label."""
        return self.tower_logits(h_BH)

    def output_biases(self) -> Sequence[Tensor]:
        """Return the biases of the towers. Those of a base do not count."""
        return self.towers.output_biases

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """Return the logit of the product of probabilities that ``rank_by`` names."""
        return self.tasks.ranking_logit(logits_BK)

    def label_loss(self, logits_BK: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of the losses of all tasks."""
        return self.tasks.loss(logits_BK, batch)

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss of the base."""
        return self.bottom.aux_loss(batch, embedded)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the explanation of the base."""
        return self.bottom.explain(batch)

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of the base below the tasks."""
        return self.bottom.warm_start_prefix(other)
