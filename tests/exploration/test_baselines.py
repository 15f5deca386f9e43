"""Baselines of exploration: epsilon-greedy, Monte Carlo dropout, ensembles, norms of gradients, and the noise."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from longrec.errors import ConfigError
from longrec.exploration.baselines import UCB, EpsilonGreedy, Thompson, WeightGradient
from longrec.exploration.ensemble import Ensemble
from longrec.exploration.noise import Noise, draw_noise
from longrec.exploration.settings import (
    EnsembleSettings,
    EpsilonGreedySettings,
    GradientSettings,
    ThompsonSettings,
    UCBSettings,
)
from longrec.models.core.kinds import Ranker
from longrec.testing.batches import FEW, grouped, ragged, shared

Build = Callable[[str], Ranker]


def test_epsilon_greedy_orders_a_share_of_the_requests_at_random(ranker: Build) -> None:
    explorer, batch = EpsilonGreedy(ranker("din"), EpsilonGreedySettings(epsilon=0.3)), ragged(400, fields=FEW)
    scores = explorer.score(batch, 1)
    explored = scores.score != scores.probability
    assert 0.2 < explored.float().mean() < 0.4
    request = explorer.score(shared(50, 7, fields=FEW), 3)
    assert len(set((request.score != request.probability).tolist())) == 1  # a request explores as a whole
    never = EpsilonGreedy(ranker("din"), EpsilonGreedySettings(epsilon=0.0)).score(batch, 1)
    assert torch.equal(never.score, never.probability)


def test_masks_move_thompson_both_ways_and_the_upper_bound_up(ranker: Build) -> None:
    batch = ragged(60, fields=FEW)
    thompson = Thompson(ranker("pooling"), ThompsonSettings(dropout=0.3)).score(batch, 1)
    away = thompson.score - thompson.probability
    assert (away > 0).any()
    assert (away < 0).any()
    assert ((thompson.score > 0) & (thompson.score < 1)).all()
    upper = UCB(ranker("pooling"), UCBSettings(dropout=0.3, draws=4)).score(batch, 1)
    assert (upper.score > upper.probability).all()


def test_one_mask_for_a_request_or_one_per_candidate(ranker: Build) -> None:
    batch = shared(2, 7, fields=FEW)
    same = copy.copy(batch)
    ids = batch.candidates["item"]
    assert isinstance(ids, torch.Tensor)
    twice = {name: torch.stack([column[0], column[0]]) for name, column in batch.candidates.items()}  # type: ignore[index]
    object.__setattr__(same, "candidates", twice)
    for masks, equal in (("request", True), ("candidate", False)):
        one, other = Thompson(ranker("din"), ThompsonSettings(dropout=0.3, masks=masks)).score(same, 1).score
        assert bool(one == other) is equal


def test_an_ensemble_ranks_by_a_member_or_by_its_deviation(ranker: Build) -> None:
    models = [copy.deepcopy(ranker("din")) for _ in range(3)]
    for number, model in enumerate(models):
        with torch.no_grad():
            model.output_biases()[0].add_(number)
    batch = grouped([0, 0, 1, 2, 2, 3, 4], fields=FEW)
    with torch.no_grad():
        p = torch.stack([torch.sigmoid(model(batch)) for model in models])
    chosen = Ensemble(models, EnsembleSettings()).score(batch, 1)
    torch.testing.assert_close(chosen.probability, p.mean(0))
    distance = (chosen.score - p).abs()
    assert (distance.min(0).values < 1e-6).all()
    member = distance.argmin(0)
    assert member[0] == member[1]
    assert len(set(member.tolist())) > 1
    upper = Ensemble(models, EnsembleSettings(uncertainty="ucb", strength=2.0)).score(batch, 1)
    torch.testing.assert_close(upper.score, p.mean(0) + 2 * p.std(0, correction=0))
    with pytest.raises(ConfigError, match="at least 2 trained runs, got 1"):
        Ensemble(models[:1], EnsembleSettings())


@pytest.mark.parametrize("name", ["din", "mmoe", "dcn_v2"])
def test_the_norm_is_that_of_the_gradient_of_the_final_layer(ranker: Build, name: str) -> None:
    model, batch = ranker(name), ragged(5, fields=FEW)
    explorer = WeightGradient(model, GradientSettings(uncertainty="ucb"))
    scores = explorer.score(batch, 1)
    last = [parameter for parameter in explorer.last.parameters()]
    p = torch.sigmoid(model.logits(batch)[:, 0])
    for row in range(5):
        gradients = torch.autograd.grad(p[row], last, retain_graph=True)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        torch.testing.assert_close(scores.score[row] - scores.probability[row], norm, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())
    drawn = WeightGradient(model, GradientSettings()).score(batch, 1)
    assert not torch.equal(drawn.score, scores.score)


def test_a_model_without_a_final_layer_has_no_such_norm(ranker: Build) -> None:
    with pytest.raises(ConfigError, match="LR ends without a linear layer"):
        WeightGradient(ranker("lr"), GradientSettings())


def test_noise_has_its_distribution_and_repeats_by_its_seed() -> None:
    noise = [
        Noise("masks", "request", 40_000, "mask", 0.2),
        Noise("normal", "candidate", 1, "normal"),
        Noise("order", "candidate", 1, "uniform"),
    ]
    drawn = draw_noise(noise, 5, 40_000)
    assert {name: array.shape for name, array in drawn.items()} == {
        "masks": (1, 40_000), "normal": (40_000, 1), "order": (40_000, 1)
    }  # fmt: skip
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in drawn.values())
    assert set(np.unique(drawn["masks"]).tolist()) == {0.0, 1.25}
    assert abs(drawn["masks"].mean() - 1) < 0.01
    assert abs(drawn["normal"].mean()) < 0.02
    assert abs(drawn["normal"].std() - 1) < 0.02
    assert abs(drawn["order"].mean() - 0.5) < 0.01
    again = draw_noise(noise, 5, 40_000)
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
    # The first numbers of a seed, which no later version may change: records of requests hold seeds.
    assert draw_noise([noise[2]], 1, 2)["order"][:, 0].tolist() == pytest.approx([0.911193311, 0.0748755112])
