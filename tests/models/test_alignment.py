"""RFT and DPO: the losses by hand, what each of them trains, weights of rewards, and settings that do not fit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.models.alignment import Alignment, compute_reward_weights
from longrec.models.core.registry import build
from longrec.testing.batches import PATHS
from longrec.testing.case import backpropagate
from longrec.testing.devices import compare_gradients, step_far
from longrec.testing.target_batches import with_targets, with_weights

BASE: dict[str, Any] = {
    **{"name": "unirec", "attributes": ["category"], "embedding_dim": 8, "heads": 2, "layers": 1, "hidden": 6},
    **{"experts": 2, "dropout": 0.0, "tasks": ["user"]},
}
PLAIN: dict[str, Any] = {**BASE, "head": "linear", "pairs": [], "self_attention": True}
PAIRS = torch.tensor([[0, 0, 3, 5], [6, 7, 8, 7]])


def make(base: dict[str, Any] = BASE, moved: float = 0.3, **settings: Any) -> Alignment:
    """A model whose generator has moved away from its reference."""
    torch.manual_seed(0)
    model = build({"name": "alignment", "base": base, **settings}, PATHS)
    assert isinstance(model, Alignment)
    with torch.no_grad():
        for parameter in model.base.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        model.receive_base()
        for parameter in model.base.parameters():
            parameter.add_(torch.randn_like(parameter) * moved)
    return model


def pairs_of(model: Alignment, rewards: Tensor | None = None) -> Batch:
    """Nine targets. The last three are the less preferred items of four pairs, and have no weight."""
    batch = with_targets(model.sampling, 9, fields=PATHS, per_position=False)
    assert batch.targets is not None
    columns = {
        name: column.clamp(min=1) if name.startswith("code") and isinstance(column, Tensor) else column
        for name, column in batch.candidates.items()
    }
    weight = torch.tensor([1.0, 2, 1, 1, 0.5, 0, 0, 0, 0])
    return replace(
        batch, candidates=columns, targets=replace(batch.targets, weight=weight, pairs=PAIRS, reward=rewards)
    )


@pytest.mark.parametrize("base", [BASE, PLAIN])
@pytest.mark.parametrize("scope", ["head", "backbone"])
def test_the_equations(base: dict[str, Any], scope: str) -> None:
    model = make(base, dpo_scope=scope, rewards={"label": 1.0}, dpo_weight=0.2, beta=0.3)
    reward = torch.tensor([1.0, 4, 2, math.nan, 1, 9, math.nan, math.nan, math.nan])
    batch = pairs_of(model, reward)
    with torch.no_grad():
        actual = float(model.train().loss(batch))
        log, reference = (one.log_probabilities(batch).sum(1) for one in (model.base, model.reference))
    counted = [1.0, 4, 2, 1]
    mean = sum(counted) / 4
    sigma = math.sqrt(sum((r - mean) ** 2 for r in counted) / 4)
    rft = 0.0
    for i, alpha in enumerate([1, 2, 1, 1, 0.5]):
        r = float(reward[i])
        advantage = 0.0 if math.isnan(r) else min(max((r - mean) / (sigma + 1e-6), -2), 2)
        rft -= (1 + 0.5 * advantage) * alpha * float(log[i])
    dpo = 0.0
    for i, j in PAIRS.t().tolist():
        difference = float(log[i] - reference[i] - log[j] + reference[j])
        dpo += math.log(1 + math.exp(-0.3 * difference)) / 4
    assert actual == pytest.approx(rft / 5.5 + 0.2 * dpo, rel=1e-5)


def test_the_loss_of_pairs_is_log_2_when_pi_is_the_reference() -> None:
    """Test 9 of the notes, first half."""
    for scope in ("head", "backbone"):
        model = make(moved=0.0, dpo_scope=scope, dpo_weight=1.0)
        batch = pairs_of(model)
        with torch.no_grad():
            assert float(model.loss(batch) - model.base.loss(batch)) == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("base", [BASE, PLAIN])
@pytest.mark.parametrize("scope", ["head", "backbone"])
def test_the_loss_of_pairs_trains_the_last_head(base: dict[str, Any], scope: str) -> None:
    """Test 9 of the notes: no gradient for heads of attributes and early codes, with ``head`` for the backbone too."""
    model = make(base, dpo_scope=scope, dpo_weight=1.0).train()
    model.loss(with_weights(pairs_of(model), torch.zeros(9))).backward()  # type: ignore[no-untyped-call]
    moved = set()
    for name, parameter in model.base.named_parameters():
        gradient = parameter.grad
        dense = None if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        if dense is not None and dense.abs().sum() > 0:
            moved.add(name)
    heads = "heads.steps" if base is BASE else "plain_heads"
    last = {name for name in moved if name.startswith(f"{heads}.3.")}
    assert last
    assert not {name for name in moved if name.startswith(heads)} - last
    assert (moved == last) == (scope == "head")
    assert all(parameter.grad is None for parameter in model.reference.parameters())


def test_equal_rewards_are_next_token_training() -> None:
    """Test 11 of the notes: the same loss to the bit, the same gradients, and no division by zero."""
    model = make(rewards={"label": 1.0}).train()
    batch = with_targets(model.sampling, 9, fields=PATHS, per_position=False)
    assert batch.targets is not None
    for weight in (torch.ones(9), torch.arange(9) % 3 + 0.5):
        expected = model.base.loss(with_weights(batch, weight))
        for value in (0.1, 3.7, 0.0):
            targets = replace(batch.targets, reward=torch.full((9,), value), weight=weight)
            assert model.loss(replace(batch, targets=targets)).equal(expected)
        nothing = replace(batch.targets, reward=torch.full((9,), math.nan), weight=weight)
        assert model.loss(replace(batch, targets=nothing)).equal(expected)
    none = replace(batch.targets, reward=torch.ones(9), weight=torch.zeros(9))
    assert model.loss(replace(batch, targets=none)) == 0


@pytest.mark.parametrize(("reward_weight", "clip"), [(0.5, 2.0), (1.0, 1.0), (0.1, 10.0)])
def test_weights_stay_positive(reward_weight: float, clip: float) -> None:
    """Test 11 of the notes: no weight is negative, and their sum is above 0, however uneven rewards are."""
    torch.manual_seed(0)
    for reward in (torch.randn(64), torch.zeros(64).index_fill(0, torch.tensor([3]), -1e6), torch.randn(64) ** 9):
        weight = compute_reward_weights(reward, torch.ones(64, dtype=torch.bool), reward_weight, clip)
        assert weight.min() >= 0
        assert weight.sum() > 0
        assert weight[reward.argmax()] == weight.max()
        assert weight[reward.argmin()] == weight.min() < weight.max()


def test_a_pair_with_an_item_without_codes_is_left_out() -> None:
    model = make(dpo_weight=1.0)
    batch = pairs_of(model)
    assert batch.targets is not None
    code = batch.candidates["code_2"]
    assert isinstance(code, Tensor)
    missing = code.index_fill(0, batch.targets.item[[6]], 0)
    one = replace(batch, candidates={**batch.candidates, "code_2": missing})
    rest = replace(batch, targets=replace(batch.targets, pairs=PAIRS[:, 1:]))
    with torch.no_grad():
        difference = [model.loss(x) - model.base.loss(x) for x in (one, rest)]
    assert float(difference[0]) == pytest.approx(float(difference[1]), rel=1e-4)


def test_a_step_with_pairs_on_another_device() -> None:
    """It has the loss and gradients of the CPU, and never waits for the device."""
    for scope in ("head", "backbone"):
        model = make(dpo_scope=scope, rewards={"label": 1.0}).train()
        batch = pairs_of(model, torch.arange(9.0))
        there = copy.deepcopy(model)
        expected = backpropagate(model, batch)
        loss, waits = step_far(there, batch)
        torch.testing.assert_close(loss, expected)
        compare_gradients(model, there, "pairs")
        assert not waits


def test_the_reference_stays() -> None:
    model = make(base={**BASE, "dropout": 0.5}).train()
    assert not any(module.training for module in model.reference.modules())
    assert not any(parameter.requires_grad for parameter in model.reference.parameters())
    assert model.served() is model.base
    assert {id(table) for table in model.embedding_parameters()} == {id(t) for t in model.base.embedding_parameters()}


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError) as caught:
        build({"name": "alignment", "reward_weight": 1.0, "clip": 1.5, "levels": [], "base": {"name": "sasrec"}}, PATHS)
    text = str(caught.value)
    assert "reward_weight, clip: 1 x 1.5 is more than 1" in text
    assert "levels: is required" in text
    with pytest.raises(ConfigError, match="model.base.name: sasrec is no generator"):
        build({"name": "alignment", "base": {"name": "sasrec"}}, PATHS)
    with pytest.raises(ConfigError, match="nothing is learned"):
        build({"name": "alignment", "dpo_weight": 0, "levels": ["label", "label"]}, PATHS)
