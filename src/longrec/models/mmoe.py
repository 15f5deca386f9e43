r"""MMoE: Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts.

Ma, Zhao, Yi, Chen, Hong, Chi, KDD 2018. https://doi.org/10.1145/3219819.3220007

Tasks share experts rather than one bottom, and each task mixes them by a gate of its own: tasks that go together use
the same experts, tasks that do not use others.

    y_k    = h^k(f^k(x))                                               (eq. 6)
    f^k(x) = sum_i g^k(x)_i f_i(x)                                     (eq. 7)
    g^k(x) = softmax(W_gk x)                                           (eq. 8)

x are all fields of the impression beside the mean of each history; or, with ``base``, the last hidden layer of any
other ranker with its logit beside it, so that nothing of the base lies idle. Without ``tasks`` it learns the schema's
label alone. The loss is the weighted sum of the cross entropies, each over the rows whose label is known.

Departures from the paper
    - four experts by default, of one layer as in the paper; one expert has no gate and is a shared bottom;
    - batch normalisation in experts and towers, on by default, as in din;
    - a base with a loss of its own (dien) keeps it: it is added.

Letters: B rows, K tasks, E experts, H what the towers are given.
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


class MMoEConfig(Strict):
    """Settings of MMoE."""

    base: BaseSection | None = Field(
        None, description="A ranker under the tasks; by default all fields and the mean of each history."
    )
    embedding_dim: Width = Field(16, description="Width of fields that ask for none in the schema, without a base.")
    experts: Width = Field(4, description="How many experts.")
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


class MMoE(Ranker):
    """Experts behind a gate a task."""

    Config = MMoEConfig
    reads_history = True
    history_optional = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            **{"base": {"name": "din", "attention": [8], "mlp": [16]}, "experts": 3, "expert": [12, 8], "tower": []},
            **{"tasks": {"bought": 0.5, "kept": 2.0}, "activation": "dice", "batch_norm": False, "dropout": 0.1},
        },
    )

    def __init__(self, config: MMoEConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.bottom = Bottom(config.base, fields, config.embedding_dim, config.init_std)
        self.bottom.lend(self)
        self.tasks = Tasks(config.tasks, config.label_weight, config.rank_by)
        self.targets, count = self.tasks.targets, len(self.tasks.names)
        form = config.activation, config.dropout, config.batch_norm
        self.shared = tasks.MMoE(self.bottom.width, count, config.experts, config.expert, *form)
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
