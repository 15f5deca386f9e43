"""What stands under the tasks of a model: another ranker, or all fields; and the ranker that stands on it.

Letters: B rows, K tasks, W width of the bottom, H what the towers are given.
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
from longrec.nn.activation import Name
from longrec.nn.embedding import Embeddings
from longrec.nn.experts import PLE, Form, MLPs, MMoE, SharedBottom, Towers
from longrec.nn.segments import Segments

Width = Annotated[int, Field(ge=1)]
Shared = SharedBottom | MMoE | PLE | MLPs
"""What makes ``[B, K, H]`` of ``[B, W]``."""


class BottomConfig(Strict):
    """Settings of a model over a bottom."""

    base: BaseSection | None = Field(
        None, description="A ranker under the tasks; by default all fields and the mean of each history."
    )
    embedding_dim: Width = Field(16, description="Width of fields that ask for none in the schema, without a base.")
    activation: Name = Field("relu", description="Activation of all networks.")
    batch_norm: bool = Field(True, description="Batch normalisation in all networks.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of units dropped in all networks while training.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the tables at the start.")

    @property
    def form(self) -> Form:
        """What all networks are like."""
        return Form(self.activation, self.dropout, self.batch_norm)


class Bottom(nn.Module):
    """What the tasks share before anything of theirs: a ranker's last hidden layer with its logit beside it, or all
    fields beside the mean of each history.

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
            self.width = self.base.interaction + 1
            return
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        read = [*fields.features, *(field for columns in fields.histories.values() for field in columns)]
        self.width = sum(self.embeddings.widths[field.name] for field in read)

    def copy_flags_to(self, model: Ranker) -> None:
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
        inputs = list(embedded.features.values())
        for history, columns in embedded.histories.items():
            segments = Segments.of(batch.histories[history], batch.size)
            inputs.extend(segments.pool(e_UD, "mean") for e_UD in columns.values())
        return torch.cat(inputs, 1)

    def aux_loss(self, batch: Batch) -> Float[Tensor, ""] | float:
        """What the base learns beside its label."""
        return 0.0 if self.base is None else self.base.aux_loss(batch)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """What the base tells of its histories."""
        return {} if self.base is None else self.base.explain(batch)

    def warm_start_prefix(self, other: Model) -> str:
        """Where the weights of a run of the base belong in a model that calls this its ``bottom``."""
        of_base = self.base is not None and name_of(other) == name_of(self.base)
        return "bottom.base." if of_base else ""


class BottomRanker(Ranker):
    """A ranker of several tasks over a bottom: ``shared`` makes one vector a task of it, and a tower a logit of that.

    What derives from it gives both by ``set_layers``.
    """

    reads_history = True
    history_optional = True

    def __init__(self, config: BottomConfig, fields: Fields, tasks: Tasks) -> None:
        super().__init__(config, fields)
        self.bottom = Bottom(config, fields)
        self.bottom.copy_flags_to(self)
        self.tasks, self.targets = tasks, tasks.targets

    def set_layers(self, shared: Shared, towers: Towers) -> None:
        """Put on the bottom what the tasks share, and on that the towers."""
        self.shared, self.towers = shared, towers
        self.interaction = towers.count * shared.width

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """What the tower of each task is given, side by side."""
        h_BKH: Tensor = self.shared(self.bottom(batch))
        return h_BKH.flatten(1)

    def tower_logits(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """What the tower of each task makes of its part of ``interact``."""
        logits: Tensor = self.towers(h_BH.view(-1, self.towers.count, self.shared.width))
        return logits

    def labels(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """The logit of every label, of what ``interact`` returned: as a rule a tower each."""
        return self.tower_logits(h_BH)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """The logit that rows are ranked by."""
        return self.ranking_logit(self.labels(h_BH))

    def output_biases(self) -> Sequence[Tensor]:
        """Those of the towers; a base below has no say."""
        return self.towers.output_biases

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """The logit of every label: the schema's, then those of ``targets``."""
        return self.labels(self.interact(batch))

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """The logit of the probabilities that ``rank_by`` joins."""
        return self.tasks.ranking_logit(logits_BK)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The weighted sum of the losses of all tasks."""
        return self.tasks.loss(self.logits(batch), batch) + self.aux_loss(batch)

    def aux_loss(self, batch: Batch) -> Float[Tensor, ""] | float:
        """That of the base."""
        return self.bottom.aux_loss(batch)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """What the base tells of its histories."""
        return self.bottom.explain(batch)

    def warm_start_prefix(self, other: Model) -> str:
        """A run of the base goes under the tasks."""
        return self.bottom.warm_start_prefix(other)
