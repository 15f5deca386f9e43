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

from pydantic import Field

from longrec.features.fields import Fields
from longrec.models.core.bottom import BottomConfig, BottomRanker
from longrec.models.core.multi_task import Tasks, TasksConfig
from longrec.nn import experts

Width = Annotated[int, Field(ge=1)]


class PLEConfig(BottomConfig, TasksConfig):
    """Settings of PLE."""

    levels: Width = Field(2, description="Levels of experts; 1 is CGC.")
    own: Width = Field(2, description="Experts of each task at a level.")
    experts: Width = Field(2, description="Shared experts at a level.")
    expert: tuple[Width, ...] = Field((64,), min_length=1, description="Hidden units of an expert.")
    tower: tuple[Width, ...] = Field((32,), description="Hidden units of the network of each task.")


class PLE(BottomRanker):
    """Experts of each task beside shared ones, level by level."""

    Config = PLEConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "din", "attention": [8], "mlp": [16]}, "own": 1, "experts": 1, "tasks": {"bought": 0.5}},
    )

    def __init__(self, config: PLEConfig, fields: Fields) -> None:
        super().__init__(config, fields, Tasks.of(config))
        count = len(self.tasks.names)
        shared = experts.PLE(
            self.bottom.width, count, config.own, config.experts, config.expert, config.levels, config.form
        )
        self.set_layers(shared, experts.Towers(shared.width, config.tower, count, config.form))
