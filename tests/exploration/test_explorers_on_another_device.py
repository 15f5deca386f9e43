"""Explorers on a pretend device: the scores of the CPU, and no wait for the device."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from longrec.exploration.age import Age
from longrec.exploration.baselines import UCB, EpsilonGreedy, Thompson, WeightGradient
from longrec.exploration.ensemble import Ensemble
from longrec.exploration.explorer import Explorer
from longrec.exploration.gate import Gate, read_item
from longrec.exploration.noise import draw_noise
from longrec.exploration.settings import (
    AgeSettings,
    EnsembleSettings,
    EpsilonGreedySettings,
    GradientSettings,
    ThompsonSettings,
    UCBSettings,
)
from longrec.models.core.kinds import Ranker
from longrec.testing.batches import FEW, ragged, shared
from longrec.testing.pretend_device import DEVICE, PretendDevice, move_model


def build_age(model: Ranker) -> Explorer:
    gate = Gate(read_item(model, shared(3, 3, fields=FEW)).shape[1], 4)
    return Age(model, AgeSettings(scope="all", steps=2, strength=0.3, dropout=0.3), gate)


EXPLORERS: dict[str, Callable[[Ranker], Explorer]] = {
    "age": build_age,
    "ucb": lambda model: UCB(model, UCBSettings(draws=2, dropout=0.3)),
    "thompson": lambda model: Thompson(model, ThompsonSettings(dropout=0.3)),
    "epsilon": lambda model: EpsilonGreedy(model, EpsilonGreedySettings(epsilon=0.5)),
    "gradient": lambda model: WeightGradient(model, GradientSettings()),
    "ensemble": lambda model: Ensemble([model, model], EnsembleSettings()),
}


@pytest.mark.parametrize("explorer", EXPLORERS)
@pytest.mark.parametrize("model", ["dien"])
def test_an_explorer_has_the_scores_of_the_cpu_and_does_not_wait(
    ranker: Callable[[str], Ranker], model: str, explorer: str
) -> None:
    here, batch = EXPLORERS[explorer](ranker(model)), ragged(12, fields=FEW)
    drawn = draw_noise(here.noise, 3, batch.size, batch.layout.requests)
    noise = {name: torch.from_numpy(array) for name, array in drawn.items()}
    expected, far = here(batch, noise), copy.deepcopy(here)
    with PretendDevice() as device:
        move_model(far)
        moved = batch.to(DEVICE, non_blocking=True)
        far_noise = {name: array.to(DEVICE, non_blocking=True) for name, array in noise.items()}
        device.waits.clear()
        scores = far(moved, far_noise)
        assert not device.waits
        torch.testing.assert_close(scores.probability.cpu(), expected.probability)
        torch.testing.assert_close(scores.score.cpu(), expected.score)
