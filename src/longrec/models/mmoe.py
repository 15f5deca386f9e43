r"""MMoE: Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts.

Ma, Zhao, Yi, Chen, Hong, Chi, KDD 2018. https://doi.org/10.1145/3219819.3220007

Tasks share several experts instead of one shared bottom, and each task mixes them by its own gate: related tasks use
the same experts, unrelated tasks use others.

    y_k    = h^k(f^k(x))                                               (eq. 6)
    f^k(x) = sum_i g^k(x)_i f_i(x)                                     (eq. 7)
    g^k(x) = softmax(W_gk x)                                           (eq. 8)

x is the concatenation of all fields of the impression and the mean of each history. With ``base``, x is the last hidden
layer of another ranker, concatenated with that ranker's logit. The logit is one more input, so that the ranker's output
layer is trained too. Without ``tasks`` the schema's label is the only task. The loss is the weighted sum of the cross
entropies, each over its labeled rows.

Departures from the paper
    - four experts by default, of one layer as in the paper; one expert has no gate and is a shared bottom;
    - batch normalization in experts and towers is on by default, as in din;
    - the auxiliary loss of a base (dien) is added.

Shapes: B rows, K tasks, E experts, H width of the towers' inputs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from longrec.features.fields import Fields
from longrec.models.core.bottom import BottomConfig, BottomRanker
from longrec.models.core.multi_task import Tasks, TasksConfig
from longrec.models.core.top import Width
from longrec.nn import experts


class MMoEConfig(BottomConfig, TasksConfig):
    """Settings of MMoE."""

    experts: Width = Field(4, description="Number of experts.")
    expert: tuple[Width, ...] = Field((64,), min_length=1, description="Hidden units of an expert.")
    tower: tuple[Width, ...] = Field((32,), description="Hidden units of the network of each task.")


class MMoE(BottomRanker):
    """Experts with one gate per task."""

    Config = MMoEConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            **{"base": {"name": "din", "attention": [8], "mlp": [16]}, "experts": 3, "expert": [12, 8], "tower": []},
            **{"tasks": {"bought": 0.5, "kept": 2.0}, "activation": "dice", "batch_norm": False, "dropout": 0.1},
        },
    )

    def __init__(self, config: MMoEConfig, fields: Fields) -> None:
        super().__init__(config, fields, Tasks.of(config))
        count = len(self.tasks.names)
        common = experts.MMoELayer(self.bottom.width, count, config.experts, config.expert, config.form)
        self.set_layers(common, experts.Towers(common.width, config.tower, count, config.form))
