from __future__ import annotations

from pathlib import Path

import torch
from synthetic_runs import solves

from longrec.data.synthetic import generate_dataset
from longrec.models.mmoe import MMoE
from longrec.testing.batches import FEW, ragged
from longrec.testing.case import Case

SMALL = {"experts": 3, "expert": [7], "tower": [], "batch_norm": False}


def mmoe(**settings: object) -> MMoE:
    model = Case("mmoe", {**SMALL, **settings}).lively(FEW)
    assert isinstance(model, MMoE)
    return model


def test_equations_6_to_8() -> None:
    model, batch = mmoe(tasks={"bought": 1.0}), ragged(9, fields=FEW)
    x = model.bottom(batch, model.embed(batch))
    product, gates, last = model.common.experts.layers[0].product, model.common.gates.linear, model.towers.last
    assert gates is not None
    f_BEH = torch.stack(
        [(x @ product.weight[i : i + 7].t() + product.bias[i : i + 7]).relu() for i in range(0, 21, 7)], 1
    )
    for task in range(2):
        g_BE = (x @ gates.weight[task * 3 : task * 3 + 3].t()).softmax(1)
        f_BH = (g_BE.unsqueeze(2) * f_BEH).sum(1)
        expected = (f_BH @ last.weight[task]).squeeze(1) + last.bias[task]
        torch.testing.assert_close(model.logits(batch)[:, task], expected)


def test_one_expert_equals_a_shared_bottom() -> None:
    model, batch = mmoe(tasks={"bought": 1.0}, experts=1), ragged(9, fields=FEW)
    other = Case("shared_bottom", {"mlp": [7], "tower": [], "batch_norm": False, "tasks": {"bought": 1.0}}).build(
        fields=FEW
    )
    product = model.common.experts.layers[0].product
    names = {"common.experts.layers.0.product.": "common.bottom.layers.0.linear."}
    state = {next((k.replace(a, b) for a, b in names.items() if a in k), k): v for k, v in model.state_dict().items()}
    other.load_state_dict(state)
    assert product.weight.shape == (7, model.bottom.width)
    torch.testing.assert_close(other.eval().logits(batch), model.logits(batch))


def test_tasks_may_use_different_experts() -> None:
    model, batch = mmoe(tasks={"bought": 1.0}), ragged(9, fields=FEW)
    h_BKH = model.represent(batch).view(9, 2, 7)
    assert not torch.allclose(h_BKH[:, 0], h_BKH[:, 1])


def test_clicks_teach_orders(tmp_path: Path) -> None:
    assert solves(generate_dataset("rare_orders"), {"name": "mmoe", "tasks": {"click": 1.0}}, tmp_path)
