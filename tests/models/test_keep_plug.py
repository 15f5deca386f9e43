from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from longrec.errors import ConfigError, RunError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.models.keep import KEEP
from longrec.models.keep_plug import KEEPPlug, mlps, plug, without
from longrec.nn.mlp import Layer
from longrec.testing.batches import FIELDS, ITEM, ragged, shared, with_feature
from longrec.training.optimizers import build_optimizers
from longrec.training.settings import FitConfig
from longrec.training.warm_start import inherit, move_optimizer_state

ITEM_TASTE = Field("item_taste", "embedding", 0, side="item", width=4)
WITH_ITEM = Fields((*FIELDS.features, ITEM_TASTE), FIELDS.histories)
BARE = without(FIELDS, ["taste"])
BASES: list[dict[str, Any]] = [
    {"name": "din"},
    {"name": "din", "batch_norm": False},
    {"name": "deepfm"},
    {"name": "wide_deep", "batch_norm": False},
    {"name": "dcn"},
    {"name": "pooling", "batch_norm": False},
]


def ranker(section: dict[str, Any], fields: Fields = BARE) -> Ranker:
    """A ranker that was trained a little."""
    torch.manual_seed(1)
    model = build(section, fields)
    assert isinstance(model, Ranker)
    train(model, 3)
    return model


def train(model: Ranker, steps: int, fields: Fields | None = None) -> dict[str, torch.optim.Optimizer]:
    optimizers = build_optimizers(model, FitConfig(lr=0.01))
    for seed in range(steps):
        step(model, optimizers, ragged(64, seed=seed, fields=fields or model.fields))
    return optimizers


def step(model: Ranker, optimizers: dict[str, torch.optim.Optimizer], batch: Batch) -> None:
    model.train()
    model.loss(batch).backward()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()


def plugged(settings: dict[str, Any] | None = None, fields: Fields = FIELDS) -> KEEPPlug:
    torch.manual_seed(2)
    model = build({"name": "keep_plug", **(settings or {})}, fields)
    assert isinstance(model, KEEPPlug)
    return model


@pytest.mark.parametrize("section", BASES, ids=str)
@pytest.mark.parametrize("settings", [{}, {"gate": "glu", "norm": "none", "layers": [1, 0]}, {"linear": True}], ids=str)
def test_1_zero_init_plug_changes_no_score_by_a_bit(section: dict[str, Any], settings: dict[str, Any]) -> None:
    model = ranker(section).eval()
    with_plug = plug(model, FIELDS, settings)
    assert not with_plug.training
    for batch in (ragged(9), ragged(700), shared(6, 5)):
        assert torch.equal(with_plug(batch), model(batch))
    assert not torch.equal(plug(model, FIELDS, {"zero_init": False})(ragged(9)), model(ragged(9)))


def test_1_zero_init_plug_keeps_the_optimizer_state_of_old_weights() -> None:
    """And so the next step moves every old weight as it would have without the plug (but for the knowledge's share)."""
    model = ranker({"name": "din", "dropout": 0.0})
    before = train(model, 3)
    with_plug = plug(model, FIELDS, {"drop": 0.0})
    after = build_optimizers(with_plug, FitConfig(lr=0.01))
    move_optimizer_state(with_plug, after, model, before)
    names = {id(parameter): name for name, parameter in with_plug.named_parameters()}
    seen = set()
    for kind, optimizer in after.items():
        for parameter, state in optimizer.state.items():
            old = before[kind].state[model.get_parameter(names[id(parameter)].removeprefix("base."))]
            assert state.keys() == old.keys()
            assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(old[key])) for key in state)
            seen.add(names[id(parameter)])
    assert seen == {f"base.{name}" for name, _ in model.named_parameters()}
    batch = ragged(64, seed=9)
    step(model, before, batch)
    step(with_plug, after, batch)
    for name, parameter in model.named_parameters():
        assert torch.equal(with_plug.base.get_parameter(name), parameter), name


def test_2_checkpoint_of_the_unplugged_model_loads_strictly_except_p() -> None:
    model = ranker({"name": "din"})
    with_plug = plugged({"base": {"name": "din"}})
    start = {name: tensor.clone() for name, tensor in with_plug.state_dict().items()}
    inherit(with_plug, model, "here")
    for name, tensor in with_plug.state_dict().items():
        if name.startswith("base."):
            assert torch.equal(tensor, model.state_dict()[name.removeprefix("base.")])
        else:
            assert name.split(".")[0] in ("plugs", "defaults")
            assert torch.equal(tensor, start[name])
    with pytest.raises(RunError, match=r"here: a din whose weights do not fit this keep_plug: .*top.*is 50"):
        inherit(plugged({"base": {"name": "din"}}), ranker({"name": "din", "mlp": [50, 80]}), "here")
    with pytest.raises(RunError, match="is unexpected"):
        inherit(plugged({"base": {"name": "deepfm"}}), model, "here")
    with pytest.raises(RunError, match=r"base\S* is missing"):
        inherit(plugged({"base": {"name": "din", "mlp": [200, 80, 10]}}), model, "here")


def test_2_a_plugged_model_starts_from_a_plugged_one() -> None:
    one, other = plugged({"base": {"name": "deepfm"}}), plugged({"base": {"name": "deepfm"}})
    train(one, 2)
    inherit(other, one, "here")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_3_no_gradient_into_the_extractor() -> None:
    """Knowledge is an input: stage 2 leaves the extractor as it is, to the bit."""
    torch.manual_seed(0)
    extractor = build({"name": "keep", "user": [4]}, BARE)
    assert isinstance(extractor, KEEP)
    before = {name: tensor.clone() for name, tensor in extractor.eval().state_dict().items()}
    batch = ragged(64, fields=BARE)
    with torch.inference_mode():
        knowledge = torch.cat([torch.ones(64, 1), extractor.user_knowledge(batch)], 1)
    batch = with_feature(batch, "taste", knowledge)
    model, kept = plugged({"zero_init": False}), knowledge.clone()
    optimizers = build_optimizers(model, FitConfig(lr=0.1))
    step(model, optimizers, batch)
    assert all(parameter.grad is None for parameter in extractor.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.state_dict().items())
    assert torch.equal(knowledge, kept)
    assert not knowledge.requires_grad
    own = {id(parameter) for parameter in model.parameters()}
    assert not own & {id(parameter) for parameter in extractor.parameters()}


def with_taste(batch: Batch, there: bool, vectors: Tensor) -> Batch:
    flag = torch.full((len(vectors), 1), float(there))
    return with_feature(batch, "taste", torch.cat([flag, vectors], 1))


def test_8_missing_knowledge_reads_the_learned_default() -> None:
    model, batch = plugged({"zero_init": False, "drop": 0.5}).eval(), ragged(8)
    one, other = torch.randn(8, 4), torch.randn(8, 4)
    missing = model(with_taste(batch, False, one))
    assert torch.equal(model(with_taste(batch, False, other)), missing)  # whatever lies where nothing is
    as_default = model.defaults[0].detach().expand(8, 4)
    assert torch.equal(model(with_taste(batch, True, as_default)), missing)
    assert not torch.equal(model(with_taste(batch, True, one)), missing)
    assert missing.isfinite().all()
    model.loss(with_taste(batch, True, one)).backward()
    assert torch.equal(model.defaults[0].grad, torch.zeros(4))
    model.loss(with_taste(batch, False, one)).backward()
    assert model.defaults[0].grad.abs().sum() > 0


def test_8_missing_knowledge_is_met_while_training() -> None:
    """Some knowledge is dropped at random in training, and none in evaluation."""
    model, batch = plugged({"drop": 0.05}), ragged(4_000)
    there = with_taste(batch, True, torch.full((4_000, 4), 7.0))
    dropped = (model.train().gather_knowledge(there) != 7).all(1).float().mean()
    assert 0.03 < dropped < 0.07
    assert (model.eval().gather_knowledge(there) == 7).all()


def test_8_missing_knowledge_of_one_side_leaves_the_other() -> None:
    model = plugged({"zero_init": False}, WITH_ITEM).eval()
    batch = ragged(5, fields=WITH_ITEM)
    item = torch.cat([torch.ones(5, 1), torch.randn(5, 3)], 1)
    batch = with_feature(with_taste(batch, False, torch.zeros(5, 4)), "item_taste", item)
    gather_knowledge = model.gather_knowledge(batch)
    assert torch.equal(gather_knowledge[:, 4:], item[:, 1:])
    assert torch.equal(gather_knowledge[:, :4], model.defaults[0].detach().expand(5, 4))


def test_10_scale_of_the_knowledge_does_not_matter_to_p() -> None:
    model, batch = plugged({"zero_init": False}).eval(), ragged(8)
    vectors = torch.randn(8, 4)
    once, loud = model(with_taste(batch, True, vectors)), model(with_taste(batch, True, 1_000 * vectors))
    torch.testing.assert_close(once, loud, rtol=1e-3, atol=1e-3)
    plain = plugged({"zero_init": False, "norm": "none"}).eval()
    far = plain(with_taste(batch, True, vectors)) - plain(with_taste(batch, True, 1_000 * vectors))
    assert far.abs().max() > 1


def test_10_scale_is_watched() -> None:
    """||P(K)|| / ||a|| by hand, layer by layer; zero before anything was learned."""
    batch = ragged(50)
    assert plugged().eval().shares(batch).tolist() == [0.0]
    model = plugged({"zero_init": False, "layers": [1, 0], "base": {"name": "dcn"}}).eval()
    inputs: list[Tensor] = []
    layers = [layer for mlp in mlps(model.base) for layer in mlp.layers]
    hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in layers]
    model(batch)
    for hook in hooks:
        hook.remove()
    expected = [
        model.plugs[index](model.gather_knowledge(batch)).norm() / layers[at].linear(inputs[at]).norm()
        for index, at in enumerate((1, 0))
    ]
    actual = model.shares(batch)
    # The order of the layers asked for, whatever the order they are run in.
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_12_concat_equivalence(batch_norm: bool) -> None:
    """A linear P is the second part of a wider first layer over [x; K]."""
    base = {"name": "pooling", "batch_norm": batch_norm}
    model = plugged({"base": base, "linear": True, "norm": "none", "zero_init": False}, WITH_ITEM).eval()
    batch, seen = ragged(9, fields=WITH_ITEM), []
    (mlp,) = mlps(model.base)
    first = mlp.layers[0]
    assert isinstance(first, Layer)
    hook = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    actual = model(batch)
    hook.remove()
    whole = torch.cat([first.linear.weight, model.plugs[0].last.weight], 1)
    h = linear(torch.cat([seen[0], model.gather_knowledge(batch)], 1), whole, first.linear.bias)
    h = h if first.norm is None else first.norm(h)
    h = mlp.layers[1](h.relu())
    torch.testing.assert_close(actual, mlp.last(h).squeeze(1), rtol=1e-5, atol=1e-6)


def test_12_concat_equivalence_holds_for_the_gradient_of_the_knowledge_weights() -> None:
    base = {"name": "pooling", "batch_norm": False}
    model = plugged({"base": base, "linear": True, "norm": "none", "drop": 0.0})
    batch, seen = ragged(9), []
    (mlp,) = mlps(model.base)
    hook = mlp.layers[0].linear.register_forward_hook(lambda *args: seen.append(args[2]))
    logits = model(batch)
    hook.remove()
    (g,) = torch.autograd.grad(model.loss(batch), [model.plugs[0].last.weight])
    x = seen[0] + model.plugs[0](model.gather_knowledge(batch))
    h = x.detach().requires_grad_()
    again = mlp.last(mlp.layers[1](h.relu())).squeeze(1)
    torch.testing.assert_close(again, logits)
    assert batch.label is not None
    nn.functional.binary_cross_entropy_with_logits(again, batch.label).backward()
    assert h.grad is not None
    torch.testing.assert_close(g, h.grad.t() @ model.gather_knowledge(batch), rtol=1e-4, atol=1e-6)


def test_the_layers_are_left_as_they_were() -> None:
    model = plugged({"zero_init": False}).eval()
    bare = model.base(ragged(9))
    model(ragged(9))
    assert torch.equal(model.base(ragged(9)), bare)
    broken = replace(ragged(9), histories={})
    with pytest.raises(KeyError):
        model(broken)
    assert torch.equal(model.base(ragged(9)), bare)


def test_it_says_of_itself_what_its_base_says() -> None:
    din, lr_like = plugged(), plugged({"base": {"name": "deepfm"}})
    assert din.reads_history
    assert not lr_like.reads_history
    assert din.interaction_width == din.base.interaction_width
    batch = ragged(9)
    assert torch.equal(din.explain(batch)["seen"], din.base.explain(batch)["seen"])
    assert [field.name for field in din.base.fields.features] == [field.name for field in BARE.features]


def test_what_cannot_be_plugged_is_refused_with_what_to_do() -> None:
    user = Field("user", "id", 9, side="user")
    with pytest.raises(
        ConfigError, match="keep_plug plugs in embedding features, and the schema has none; add a feature"
    ):
        plugged({"base": {"name": "deepfm"}}, Fields((user, ITEM), {}))
    with pytest.raises(ConfigError, match="fm has no MLP that knowledge could be plugged into"):
        plugged({"base": {"name": "fm"}})
    with pytest.raises(ConfigError, match=r"model.layers: \[0, 7\]; din has 2 hidden layers, 0 to 1"):
        plugged({"layers": [0, 7]})
    with pytest.raises(ConfigError, match="model.layers"):
        plugged({"layers": [0, 0]})
    with pytest.raises(ConfigError, match="'price' is no embedding feature; those are: taste"):
        plugged({"knowledge": ["price"]})
    with pytest.raises(ConfigError, match="name each feature once"):
        plugged({"knowledge": []})
    with pytest.raises(RunError, match="a ranker of other fields"):
        plug(ranker({"name": "deepfm"}, FIELDS), WITH_ITEM)


def test_only_the_named_knowledge_is_taken_from_the_base() -> None:
    model = plugged({"knowledge": ["item_taste"], "base": {"name": "deepfm"}}, WITH_ITEM)
    assert [field.name for field in model.base.fields.features] == [field.name for field in FIELDS.features]
    assert len(model.defaults) == 1
