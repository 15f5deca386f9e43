from __future__ import annotations

from pathlib import Path

import torch
from synthetic_runs import aucs_of, run_in, solves

from longrec.data.synthetic import generate_dataset
from longrec.models.shared_bottom import SharedBottom
from longrec.nn.mlp import MLP
from longrec.testing.batches import FEW, ragged
from longrec.testing.case import Case


def test_each_label_has_a_tower_over_one_bottom() -> None:
    settings = {"tasks": {"bought": 1.0}, "batch_norm": False, "mlp": [12], "tower": [6]}
    model, batch = Case("shared_bottom", settings).lively(FEW), ragged(9, fields=FEW)
    assert isinstance(model, SharedBottom)
    assert isinstance(model.common.bottom, MLP)
    f_BH = model.common.bottom(model.bottom(batch, model.embed(batch)))
    hidden, last = model.towers.layers[0].product, model.towers.last
    for task in range(2):
        h = (f_BH @ hidden.weight[task] + hidden.bias[task * 6 : task * 6 + 6]).relu()
        expected = (h @ last.weight[task]).squeeze(1) + last.bias[task]
        torch.testing.assert_close(model.logits(batch)[:, task], expected)
    assert torch.equal(model(batch), model.logits(batch)[:, 0])


def test_all_tasks_move_the_bottom_and_each_its_own_tower() -> None:
    model = Case("shared_bottom", {"tasks": {"bought": 1.0}, "batch_norm": False}).lively(FEW)
    assert isinstance(model, SharedBottom)
    model.logits(ragged(9, fields=FEW))[:, 1].sum().backward()
    grad = model.towers.layers[0].product.weight.grad
    assert not grad[0].any()
    assert grad[1].any()
    assert model.common.bottom.layers[0].linear.weight.grad.any()


def test_a_rare_label_is_learned_from_another(tmp_path: Path) -> None:
    dataset, both = generate_dataset("rare_orders"), {"name": "shared_bottom", "tasks": {"click": 1.0}}
    assert both in dataset.must
    assert solves(dataset, both, tmp_path, "both")
    assert {"name": "shared_bottom"} in dataset.must_not
    actual, bayes_auc = aucs_of(dataset, run_in(dataset, {"name": "shared_bottom"}, tmp_path, "alone"))
    assert actual < dataset.required_auc(bayes_auc) - 0.05
