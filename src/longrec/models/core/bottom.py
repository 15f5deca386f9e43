"""Shared bottom of multi-task models, another ranker or all fields, and the base class of rankers over it.

Shapes: B rows, K tasks, W width of the bottom, H width of the towers' inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import BaseSection, Model, Ranker, build_base, name_of
from longrec.models.core.multi_task import Tasks
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embeddings
from longrec.nn.experts import Form, MLPs, MMoELayer, PLELevels, SharedBottom, Towers
from longrec.nn.segments import Segments

Width = Annotated[int, Field(ge=1)]
Shared = SharedBottom | MMoELayer | PLELevels | MLPs
"""Layers that map ``[B, W]`` to ``[B, K, H]``."""


class BottomConfig(Strict):
    """Settings of a model over a shared bottom."""

    base: BaseSection | None = Field(
        None, description="Ranker below the tasks; by default all fields and the mean of each history."
    )
    embedding_dim: Width = Field(16, description="Embedding width of fields without `dim`, without a base.")
    activation: ActivationName = Field("relu", description="Activation of all networks.")
    batch_norm: bool = Field(True, description="Batch normalization in all networks.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of all networks.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the initial embeddings.")

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
            model.reads_history = bool(model.fields.histories)
            return
        model.reads_history, model.order_matters = self.base.reads_history, self.base.order_matters
        model.user_order = self.base.user_order

    def forward(self, batch: Batch) -> Float[Tensor, "B W"]:
        """Return one vector per row."""
        if self.base is not None:
            h_BH = self.base.interact(batch)
            return torch.cat([h_BH, self.base.head(h_BH).unsqueeze(1)], 1)
        assert self.embeddings is not None
        embedded = self.embeddings(batch)
        inputs = list(embedded.features.values())
        for history, columns in embedded.histories.items():
            segments = Segments.of(batch.histories[history], batch.size)
            inputs.extend(segments.pool(e_UD, "mean") for e_UD in columns.values())
        return torch.cat(inputs, 1)

    def aux_loss(self, batch: Batch) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss of the base."""
        return 0.0 if self.base is None else self.base.aux_loss(batch)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the explanation of the base."""
        return {} if self.base is None else self.base.explain(batch)

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of a run of the base in a model whose attribute ``bottom`` this is."""
        of_base = self.base is not None and name_of(other) == name_of(self.base)
        return "bottom.base." if of_base else ""


class BottomRanker(Ranker):
    """A multi-task ranker over a bottom: ``shared`` computes one vector per task, and a tower its logit.

    Subclasses set both by ``set_layers``.
    """

    reads_history = True
    history_optional = True

    def __init__(self, config: BottomConfig, fields: Fields, tasks: Tasks) -> None:
        super().__init__(config, fields)
        self.bottom = Bottom(config, fields)
        self.bottom.copy_flags_to(self)
        self.tasks, self.targets = tasks, tasks.targets

    def set_layers(self, shared: Shared, towers: Towers) -> None:
        """Set the layers that the tasks share, and the towers over them."""
        self.shared, self.towers = shared, towers
        self.interaction_width = towers.count * shared.width

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """Return the inputs of all towers, concatenated."""
        h_BKH: Tensor = self.shared(self.bottom(batch))
        return h_BKH.flatten(1)

    def tower_logits(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """Return the output of every tower."""
        logits: Tensor = self.towers(h_BH.view(-1, self.towers.count, self.shared.width))
        return logits

    def labels(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """Return the logit of every label. By default one tower per label."""
        return self.tower_logits(h_BH)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """Return the logit for ranking."""
        return self.ranking_logit(self.labels(h_BH))

    def output_biases(self) -> Sequence[Tensor]:
        """Return the biases of the towers. Those of a base do not count."""
        return self.towers.output_biases

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """Return the logit of every label: the schema's, then those of ``targets``."""
        return self.labels(self.interact(batch))

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """Return the logit of the product of probabilities that ``rank_by`` names."""
        return self.tasks.ranking_logit(logits_BK)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of the losses of all tasks."""
        return self.tasks.loss(self.logits(batch), batch) + self.aux_loss(batch)

    def aux_loss(self, batch: Batch) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss of the base."""
        return self.bottom.aux_loss(batch)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the explanation of the base."""
        return self.bottom.explain(batch)

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of the base below the tasks."""
        return self.bottom.warm_start_prefix(other)
