"""Rocket Launching: who learns from what, by gradients; the light net alone is what is scored and exported."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.models.core import artifact
from longrec.models.core.hints import compute_hint
from longrec.models.core.registry import build
from longrec.models.din import DIN
from longrec.models.rocket_launching import RocketLaunching
from longrec.testing.batches import FEW, FIELDS, ragged, take

NETS: dict[str, Any] = {
    "light": {"name": "din", "mlp": [8], "attention": [4], "batch_norm": False},
    "booster": {"name": "din", "mlp": [32, 8], "attention": [16], "batch_norm": False},
}


def rocket(settings: dict[str, Any], seed: int = 0) -> RocketLaunching:
    torch.manual_seed(seed)
    model = build({"name": "rocket_launching", **NETS, **settings}, FEW)
    assert isinstance(model, RocketLaunching)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def gradients(model: RocketLaunching, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    model.loss(batch).backward()
    return {name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None}


def of_hint(settings: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
    """The gradient of the hint alone: that of the loss with it, less that without."""
    on, off = (gradients(rocket({**settings, "hint_weight": weight}), batch) for weight in (0.7, 0.0))
    zero = torch.zeros(())
    return {name: on[name] - off.get(name, zero) for name in on}


@pytest.mark.parametrize("hint", ["logits", "probabilities", "distillation"])
def test_a_the_hint_trains_light_net_and_shared_tables_and_no_booster(hint: str) -> None:
    moved = of_hint({"hint": hint}, ragged(20, fields=FEW))
    assert all(float(g.abs().max()) < 1e-6 for name, g in moved.items() if name.startswith("booster."))
    assert moved["base.embeddings.table_item"].abs().max() > 1e-5
    assert moved["base.top.last.weight"].abs().max() > 1e-5


def test_a_without_the_block_the_hint_trains_the_booster() -> None:
    moved = of_hint({"gradient_block": False}, ragged(20, fields=FEW))
    assert moved["booster.top.last.weight"].abs().max() > 1e-5


def test_a_detached_the_light_net_trains_no_shared_table() -> None:
    batch = ragged(20, fields=FEW)
    moved = of_hint({"detach_shared": True}, batch)
    assert moved["base.embeddings.table_item"].abs().max() < 1e-6
    assert moved["base.top.last.weight"].abs().max() > 1e-5
    model = rocket({"detach_shared": True, "hint_weight": 0.0})
    alone = F.binary_cross_entropy_with_logits(model.booster(batch), batch.label)  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(alone, model.base.embeddings.table("item"))
    got = gradients(model, batch)["base.embeddings.table_item"]
    torch.testing.assert_close(got, expected.to_dense(), rtol=1e-4, atol=1e-6)


def test_b_without_a_hint_it_is_two_nets_on_one_set_of_tables() -> None:
    batch = ragged(20, fields=FEW)
    model = rocket({"hint_weight": 0.0})
    both = sum(F.binary_cross_entropy_with_logits(net(batch), batch.label) for net in (model.base, model.booster))  # type: ignore[arg-type]
    torch.testing.assert_close(model.loss(batch), both)
    apart = [
        torch.autograd.grad(F.binary_cross_entropy_with_logits(net(batch), batch.label), net.embeddings.table("item"))[
            0
        ]  # type: ignore[arg-type]
        for net in (model.base, model.booster)
    ]
    got = gradients(model, batch)["base.embeddings.table_item"]
    torch.testing.assert_close(got, sum(g.to_dense() for g in apart), rtol=1e-4, atol=1e-6)


def test_one_set_of_tables_is_in_the_model_once() -> None:
    model = rocket({})
    assert model.booster.embeddings.table("item") is model.base.embeddings.table("item")
    assert not any(name.startswith("booster.embeddings") for name in model.state_dict())
    assert len({id(table) for table in model.embedding_parameters()}) == len(model.embedding_parameters())
    apart = rocket({"share": False})
    assert any(name.startswith("booster.embeddings") for name in apart.state_dict())
    count = [sum(p.numel() for p in one.parameters()) for one in (model, apart)]
    assert count[1] - count[0] == sum(p.numel() for p in model.base.embeddings.parameters())


def test_a_booster_may_read_histories_that_the_light_net_does_not() -> None:
    """It shares the tables of both, and owns those of columns that only histories have."""
    model = rocket({"light": {"name": "deepfm", "mlp": [4]}})
    own = [name for name in model.state_dict() if name.startswith("booster.embeddings")]
    assert own == ["booster.embeddings.table_rating"]
    moved = gradients(model, ragged(20, fields=FEW))
    assert moved["booster.embeddings.table_rating"].abs().sum() > 0
    assert not model.reads_history


def test_c_what_is_served_is_the_light_net(tmp_path: Any) -> None:
    model, batch = rocket({}).eval(), ragged(20, fields=FEW)
    light = model.served()
    assert isinstance(light, DIN)
    artifact.save(light, tmp_path)
    again = artifact.load(tmp_path).eval()
    assert isinstance(again, DIN)
    with torch.no_grad():
        assert torch.equal(again(batch), model(batch))
        assert not torch.allclose(model.booster(batch), model(batch))
    torch.manual_seed(0)
    plain = build(NETS["light"], FEW)
    assert again.state_dict().keys() == plain.state_dict().keys()


def test_d_the_hint_of_copies_is_zero() -> None:
    same = NETS["light"]
    model, batch = rocket({"booster": same, "hint_weight": 5.0}), ragged(20, fields=FEW)
    tables = {name: table for name, table in model.base.state_dict().items() if not name.startswith("embeddings.")}
    model.booster.load_state_dict(tables)
    alone = F.binary_cross_entropy_with_logits(model.base(batch), batch.label)  # type: ignore[arg-type]
    torch.testing.assert_close(model.loss(batch), 2 * alone)


def test_e_the_loss_does_not_depend_on_the_order_of_rows() -> None:
    model, batch = rocket({}), ragged(20, fields=FEW)
    torch.testing.assert_close(model.loss(take(batch, list(range(19, -1, -1)))), model.loss(batch))


def test_the_three_hints_by_hand() -> None:
    light, z = torch.tensor([0.0, 1.0]), torch.tensor([math.log(3), 1.0])
    assert compute_hint("logits", light, z).tolist() == pytest.approx([math.log(3) ** 2, 0])
    assert compute_hint("probabilities", light, z).tolist() == pytest.approx([0.25**2, 0])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert compute_hint("distillation", light, z).tolist() == pytest.approx([divergence, 0], abs=1e-6)
    hot = compute_hint("distillation", 2 * light, 2 * z, temperature=2.0)
    assert hot.tolist() == pytest.approx([4 * divergence, 0], abs=1e-6)
    # The squared difference does not vanish where sigmoids are saturated.
    far = torch.tensor([20.0]), torch.tensor([10.0])
    assert compute_hint("probabilities", *far) < 1e-8
    assert compute_hint("logits", *far) == 100


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"booster": {"name": "din", "embedding_dim": 8}}, "have another width than the light net's"),
        ({"light": {"name": "lr"}}, "model.light.name: lr has no tables in embeddings to share"),
        ({"light": {"name": "mmoe", "tasks": {"like": 1}}}, "learns like beside the label"),
        ({"light": {"name": "rocket_launching"}}, "no model can be built on it"),
        ({"share": False, "detach_shared": True}, "detach_shared: needs share: true"),
    ],
)
def test_what_does_not_go_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        build({"name": "rocket_launching", **NETS, **settings}, FIELDS)
