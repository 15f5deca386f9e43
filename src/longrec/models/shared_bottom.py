r"""Shared bottom: Multitask Learning (a shared bottom).

Caruana, Machine Learning 1997. https://doi.org/10.1023/A:1007379606734

Several labels of the same rows are learnt by one network with an output each: what is rare in one label is learnt from
the others. All tasks share the bottom, so tasks that pull apart pull at the same weights.

    y_k = h_k(f(x))                                                    (also eq. 1 of Ma et al. 2018, see mmoe)
    L   = sum_k c_k BCE(y_k, label_k)                                  over the rows whose label_k is known

x are all fields of the impression beside the mean of each history; or, with ``base``, the last hidden layer of any
other ranker with its logit beside it, so that nothing of the base lies idle. Without ``tasks`` it learns the schema's
label alone.

Departures from the paper
    - fields are embedded, the labels binary, and h_k is a small network in place of one layer;
    - batch normalisation, on by default, as in din;
    - a base with a loss of its own (dien) keeps it: it is added.

Letters: B rows, K tasks, H what the towers are given.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from longrec.features.fields import Fields
from longrec.models.core.bottom import BottomConfig, BottomRanker
from longrec.models.core.multi_task import Tasks, TasksConfig
from longrec.nn import experts

Width = Annotated[int, Field(ge=1)]


class SharedBottomConfig(BottomConfig, TasksConfig):
    """Settings of the shared bottom."""

    mlp: tuple[Width, ...] = Field((128, 64), description="Hidden units of the network that all tasks share.")
    tower: tuple[Width, ...] = Field((32,), description="Hidden units of the network of each task.")


class SharedBottom(BottomRanker):
    """One network under all tasks."""

    Config = SharedBottomConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "din", "attention": [8], "mlp": [16]}, "mlp": [], "tasks": {"bought": 0.5}},
    )

    def __init__(self, config: SharedBottomConfig, fields: Fields) -> None:
        super().__init__(config, fields, Tasks.of(config))
        count = len(self.tasks.names)
        shared = experts.SharedBottom(self.bottom.width, count, config.mlp, config.form)
        self.set_layers(shared, experts.Towers(shared.width, config.tower, count, config.form))
