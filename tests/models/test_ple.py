from __future__ import annotations

from pathlib import Path

import torch
from synthetic_runs import solves

from longrec.data.synthetic import generate_dataset
from longrec.models.ple import PLE
from longrec.testing.batches import FEW, ragged
from longrec.testing.case import Case

SMALL = {"own": 1, "experts": 1, "expert": [7], "tower": [], "batch_norm": False, "tasks": {"bought": 1.0}}


def ple(**settings: object) -> PLE:
    model = Case("ple", {**SMALL, **settings}).lively(FEW)
    assert isinstance(model, PLE)
    return model


def test_two_levels_by_hand() -> None:
    model, batch = ple(), ragged(9, fields=FEW)
    one, two = model.common.levels
    x = model.bottom(batch, model.embed(batch))

    def expert(level: torch.nn.Module, index: int, x_BI: torch.Tensor) -> torch.Tensor:
        product = level.experts.layers[0].product
        weight = product.weight
        w_OI = weight[index * 7 : index * 7 + 7] if weight.ndim == 2 else weight[index].t()
        return (x_BI @ w_OI.t() + product.bias[index * 7 : index * 7 + 7]).relu()

    first = [expert(one, index, x) for index in range(3)]
    g = []
    for task in range(2):
        w = (x @ one.gates.weight[task * 2 : task * 2 + 2].t()).softmax(1)
        g.append(w[:, :1] * first[task] + w[:, 1:] * first[2])
    w = (x @ one.shared_gate.weight.t()).softmax(1)
    g.append(w[:, :1] * first[0] + w[:, 1:2] * first[1] + w[:, 2:] * first[2])
    for task in range(2):
        w = (g[task] @ two.gates.weight[task]).softmax(1)
        h = w[:, :1] * expert(two, task, g[task]) + w[:, 1:] * expert(two, 2, g[2])
        expected = (h @ model.towers.last.weight[task]).squeeze(1) + model.towers.last.bias[task]
        torch.testing.assert_close(model.logits(batch)[:, task], expected)


def test_a_task_keeps_experts_for_itself() -> None:
    model, batch = ple(levels=1), ragged(9, fields=FEW)
    before = model.logits(batch)
    with torch.no_grad():
        model.common.levels[0].experts.layers[0].product.weight[7:14] += 1  # the expert of the second task
    moved = (model.logits(batch) - before).abs().amax(0) > 0
    assert moved.tolist() == [False, True]


def test_clicks_teach_orders(tmp_path: Path) -> None:
    assert solves(generate_dataset("rare_orders"), {"name": "ple", "tasks": {"click": 1.0}}, tmp_path)
