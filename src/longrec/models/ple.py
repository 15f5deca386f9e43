r"""PLE: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
Recommendations.

Tang, Liu, Zhao, Gong, RecSys 2020. https://doi.org/10.1145/3383313.3412236

Where tasks conflict, sharing everything makes one better and the other worse (the seesaw). Each task has experts that
no other task reads, beside experts for all, and levels of them part step by step what is shared from what is not.

    g^k(x)     = w^k(x) S^k(x),  w^k(x) = softmax(W_g^k x)             (section 4.1, one level: CGC)
    S^k(x)     = [experts of task k; shared experts]
    g^{k,j}(x) = w^{k,j}(g^{k,j-1}(x)) S^{k,j}(x)                      (section 4.2, level j)
    y_k        = t^k(g^{k,N}(x))

Between two levels a gate of the shared experts, which sees those of all tasks, makes what the next shared experts read.
x are all fields of the impression beside the mean of each history; or, with ``base``, the last hidden layer of any
other ranker with its logit beside it, so that nothing of the base lies idle. Without ``tasks`` it learns the schema's
label alone. The loss is the weighted sum of the cross entropies, each over the rows whose label is known.

Departures from the paper
    - weights of the losses are constants: a decay over the steps (section 4.3) is left out;
    - one width for all experts of all levels;
    - batch normalisation in experts and towers, on by default, as in din;
    - a base with a loss of its own (dien) keeps it: it is added.

Letters: B rows, K tasks, N levels, H what the towers are given.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.base import BaseSection, Model, Ranker
from longrec.models.several_tasks import Bottom, Tasks, Weights
from longrec.nn import tasks
from longrec.nn.activation import Name

Width = Annotated[int, Field(ge=1)]


class PLEConfig(Strict):
    """Settings of PLE."""

    base: BaseSection | None = Field(
        None, description="A ranker under the tasks; by default all fields and the mean of each history."
    )
    embedding_dim: Width = Field(16, description="Width of fields that ask for none in the schema, without a base.")
    levels: Width = Field(2, description="Levels of experts; 1 is CGC.")
    own: Width = Field(2, description="Experts of each task at a level.")
    experts: Width = Field(2, description="Shared experts at a level.")
    expert: tuple[Width, ...] = Field((64,), min_length=1, description="Hidden units of an expert.")
    tower: tuple[Width, ...] = Field((32,), description="Hidden units of the network of each task.")
    activation: Name = Field("relu", description="Activation of all networks.")
    batch_norm: bool = Field(True, description="Batch normalisation in all networks.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of units dropped in all networks while training.")
    tasks: Weights = Field(
        {}, description="Labels besides the schema's: feedback features with the values 0 and 1, each with its weight."
    )
    label_weight: float = Field(1.0, gt=0, description="Weight of the schema's label.")
    rank_by: Weights = Field(
        {}, description="Exponents of tasks whose probabilities make the score; by default `label` alone, the schema's."
    )
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the tables at the start.")


class PLE(Ranker):
    """Experts of each task beside shared ones, level by level."""

    Config = PLEConfig
    reads_history = True
    history_optional = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "din", "attention": [8], "mlp": [16]}, "own": 1, "experts": 1, "tasks": {"bought": 0.5}},
    )

    def __init__(self, config: PLEConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.bottom = Bottom(config.base, fields, config.embedding_dim, config.init_std)
        self.bottom.lend(self)
        self.tasks = Tasks(config.tasks, config.label_weight, config.rank_by)
        self.targets, count = self.tasks.targets, len(self.tasks.names)
        form = config.activation, config.dropout, config.batch_norm
        self.shared = tasks.PLE(
            self.bottom.width, count, config.own, config.experts, config.expert, config.levels, *form
        )
        self.towers = tasks.Towers(self.shared.width, config.tower, count, *form)
        self.interaction = count * self.shared.width

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """What the tower of each task is given, side by side."""
        h_BKH: Tensor = self.shared(self.bottom(batch))
        return h_BKH.flatten(1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """The logit that rows are ranked by."""
        return self.ranked(self._towers(h_BH))

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """The logit of every task: the schema's label, then those of ``tasks``."""
        return self._towers(self.interact(batch))

    def ranked(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """The logit of the probabilities that ``rank_by`` joins."""
        return self.tasks.ranked(logits_BK)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The weighted sum of the losses of all tasks."""
        return self.tasks.loss(self.logits(batch), batch) + self.bottom.loss(batch)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """What the base tells of its histories."""
        return self.bottom.explain(batch)

    def home_of(self, other: Model) -> str:
        """A run of the base goes under the tasks."""
        return self.bottom.home_of(other)

    def _towers(self, h_BH: Tensor) -> Tensor:
        logits: Tensor = self.towers(h_BH.view(-1, len(self.tasks.names), self.shared.width))
        return logits
