r"""PLE: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
Recommendations.

Tang, Liu, Zhao, Gong, RecSys 2020. https://doi.org/10.1145/3383313.3412236

If tasks conflict, sharing everything improves one and worsens the other (the seesaw). Each task has experts of its own
beside shared ones, and several levels of them separate shared from task-specific representations step by step.

    g^k(x)     = w^k(x) S^k(x),  w^k(x) = softmax(W_g^k x)             (section 4.1, one level: CGC)
    S^k(x)     = [experts of task k; shared experts]
    g^{k,j}(x) = w^{k,j}(g^{k,j-1}(x)) S^{k,j}(x)                      (section 4.2, level j)
    y_k        = t^k(g^{k,N}(x))

Between two levels, a gate over the experts of all tasks computes the input of the next shared experts.
x are all fields of the impression and the mean of each history. With ``base``, x is the last hidden layer of any other
ranker and its logit, so that all parameters of the base are used. Without ``tasks`` the
schema's label is the only task. The loss is the weighted sum of the cross entropies, each over its labeled rows.

Departures from the paper
    - weights of the losses are constants: the decay over the steps (section 4.3) is omitted;
    - one width for all experts of all levels;
    - batch normalization in experts and towers is on by default, as in din;
    - the auxiliary loss of a base (dien) is added.

Shapes: B rows, K tasks, N levels, H width of the towers' inputs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from longrec.features.fields import Fields
from longrec.models.core.bottom import BottomConfig, BottomRanker
from longrec.models.core.multi_task import Tasks, TasksConfig
from longrec.models.core.top import Width
from longrec.nn import experts


class PLEConfig(BottomConfig, TasksConfig):
    """Settings of PLE."""

    levels: Width = Field(2, description="Levels of experts; 1 is CGC.")
    own: Width = Field(2, description="Experts of each task per level.")
    experts: Width = Field(2, description="Shared experts per level.")
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
        common = experts.PLELevels(
            self.bottom.width, count, config.own, config.experts, config.expert, config.levels, config.form
        )
        self.set_layers(common, experts.Towers(common.width, config.tower, count, config.form))
