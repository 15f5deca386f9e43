r"""Shared bottom: Multitask Learning (a shared bottom).

Caruana, Machine Learning 1997. https://doi.org/10.1023/A:1007379606734

One network learns several labels of the same rows, with one output per label, so that a rare label benefits from the
others. All tasks share the bottom, so conflicting tasks compete for the same weights.

    y_k = h_k(f(x))                                                    (also eq. 1 of Ma et al. 2018, see mmoe)
    L   = sum_k c_k BCE(y_k, label_k)                                  over the labeled rows of task k

x are all fields of the impression and the mean of each history. With ``base``, x is the last hidden layer of any other
ranker and its logit, so that all parameters of the base are used. Without ``tasks`` the
schema's label is the only task.

Departures from the paper
    - fields are embedded, labels are binary, and h_k is a small network in place of one layer;
    - batch normalization, on by default, as in din;
    - the auxiliary loss of a base (dien) is added.

Shapes: B rows, K tasks, H width of the towers' inputs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from longrec.features.fields import Fields
from longrec.models.core.bottom import BottomConfig, BottomRanker
from longrec.models.core.multi_task import Tasks, TasksConfig
from longrec.models.core.top import Width
from longrec.nn import experts


class SharedBottomConfig(BottomConfig, TasksConfig):
    """Settings of the shared bottom."""

    mlp: tuple[Width, ...] = Field((128, 64), description="Hidden units of the network that all tasks share.")
    tower: tuple[Width, ...] = Field((32,), description="Hidden units of the network of each task.")


class SharedBottom(BottomRanker):
    """One network below all tasks."""

    Config = SharedBottomConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "din", "attention": [8], "mlp": [16]}, "mlp": [], "tasks": {"bought": 0.5}},
    )

    def __init__(self, config: SharedBottomConfig, fields: Fields) -> None:
        super().__init__(config, fields, Tasks.of(config))
        count = len(self.tasks.names)
        common = experts.SharedBottom(self.bottom.width, count, config.mlp, config.form)
        self.set_layers(common, experts.Towers(common.width, config.tower, count, config.form))
