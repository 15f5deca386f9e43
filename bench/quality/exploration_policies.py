"""Policies of ``exploration_simulation.py``: the explorers over one kind of net, which learns from what it showed.

A policy scores the candidates of a round of requests, shows the one with the largest score, sees its click, and takes
the training steps of the round on these impressions alone. All nets are ``fnn`` with ReLU layers of 64 and 32 units,
embeddings of 8 numbers, one optimizer and the same steps. They start untrained. ``count bonus`` is no explorer of this
project. It adds c / sqrt(1 + impressions of the item) to the prediction, and so shows what knowing the counts is worth.

Shapes: R requests of a round, K candidates of each, S impressions of a training step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from exploration_environments import ROUND, Environment, Floats, Ints

from longrec.exploration.age import Age
from longrec.exploration.baselines import UCB, EpsilonGreedy, Thompson, WeightGradient
from longrec.exploration.ensemble import Ensemble
from longrec.exploration.explorer import Explorer, Scores
from longrec.exploration.gate import Gate, read_item
from longrec.exploration.settings import (
    AgeSettings,
    EnsembleSettings,
    EpsilonGreedySettings,
    GradientSettings,
    ThompsonSettings,
    UCBSettings,
)
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.models.fnn import FNN
from longrec.training.optimizers import build_optimizers
from longrec.training.settings import FitConfig

STEPS, MEMBERS, DRAWS, DROPOUT = 4, 5, 5, 0.1
"""Training steps of a round, nets of an ensemble, masks of an upper confidence bound, and the rate of all masks."""
FIT = FitConfig(lr=3e-3, embedding_lr=3e-2, l2=1e-5, optimizer="adam")
MASKS: dict[str, Any] = {"dropout": DROPOUT, "draws": DRAWS}
AGE: dict[str, Any] = {**MASKS, "direction": "fgm"}
"""Of AGE, ``fgm`` is one step in the direction of the gradient."""


@dataclass(frozen=True)
class Policy:
    """A way to explore.

    Attributes:
        kind: class of its explorer. None: every candidate is as likely.
        settings: all but the strength.
        strengths: settings that are tried on the tuning seed.
        key: setting that is the strength.
        members: nets.
        shift: added to the seed of its weights and its noise.
    """

    kind: str | None
    settings: dict[str, Any]
    strengths: tuple[float, ...] = ()
    key: str = "strength"
    members: int = 1
    shift: int = 0


POLICIES: dict[str, Policy] = {
    "random": Policy(None, {}),
    "greedy": Policy("epsilon", {"epsilon": 0.0}),
    "greedy, again": Policy("epsilon", {"epsilon": 0.0}, shift=500),
    "epsilon-greedy": Policy("epsilon", {}, (0.01, 0.03, 0.1), "epsilon"),
    "thompson": Policy("thompson", MASKS, (0.3, 1.0, 3.0)),
    "age-ts": Policy("age", {**AGE, "uncertainty": "thompson"}, (0.3, 3.0, 30.0)),
    "age-ts, no gate": Policy("age", {**AGE, "uncertainty": "thompson", "gate": False}, (0.3, 3.0, 30.0)),
    "age-ucb": Policy("age", {**AGE, "uncertainty": "ucb"}, (0.3, 3.0, 30.0)),
    "ucb": Policy("ucb", MASKS, (0.3, 1.0, 3.0)),
    "gradient-ts": Policy("gradient", {"uncertainty": "thompson"}, (0.01, 0.03, 0.1)),
    "gradient-ucb": Policy("gradient", {"uncertainty": "ucb"}, (0.03, 0.1, 0.3)),
    "count bonus": Policy("count", {}, (0.1, 0.3, 1.0)),
    "ensemble-ts": Policy("ensemble", {"uncertainty": "thompson"}, (0.5, 1.0, 2.0), members=MEMBERS),
}


class Learner:
    """Nets, what explores over them, and their training.

    Args:
        strength: the tried value of the policy's strength. None for a policy without one.
    """

    def __init__(self, environment: Environment, policy: Policy, strength: float | None, seed: int) -> None:
        self.environment, self.policy, self.seed = environment, policy, seed + policy.shift
        self.nets: list[Ranker] = [
            FNN(
                environment.fields, embedding_dim=8, mlp=(64, 32), activation="relu", seed=1_000 * self.seed + number
            ).eval()
            for number in range(policy.members)
        ]
        self.optimizers = [build_optimizers(net, FIT) for net in self.nets]
        self.gate: Gate | None = None
        self.bonus = (strength or 0.0) if policy.kind == "count" else 0.0
        self.counts = np.zeros(environment.candidates.max() + 1)
        self.explorer = self._build_explorer({} if strength is None else {policy.key: strength})
        self.plain = self.explorer if policy.kind == "ensemble" else EpsilonGreedy(self.nets[0], _settings_of_greedy())

    def _build_explorer(self, strength: dict[str, float]) -> Explorer:
        settings, net = {**self.policy.settings, **strength}, self.nets[0]
        builders: dict[str, Callable[[], Explorer]] = {
            "epsilon": lambda: EpsilonGreedy(net, EpsilonGreedySettings(**settings)),
            "count": lambda: EpsilonGreedy(net, _settings_of_greedy()),
            "ucb": lambda: UCB(net, UCBSettings(**settings)),
            "thompson": lambda: Thompson(net, ThompsonSettings(**settings)),
            "gradient": lambda: WeightGradient(net, GradientSettings(**settings)),
            "ensemble": lambda: Ensemble(self.nets, EnsembleSettings(**settings)),
            "age": lambda: Age(net, AgeSettings(**settings), self._build_gate(settings.get("gate", True))),
        }
        return builders[self.policy.kind or "epsilon"]()

    def _build_gate(self, wanted: bool) -> Gate | None:
        if wanted:
            width = read_item(self.nets[0], self.environment.batch_requests(slice(0, 1))).shape[1]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.gate = Gate(width)
            self.gate_optimizer = torch.optim.Adam(self.gate.parameters(), FIT.lr)
        return self.gate

    def score(self, rows: slice) -> Scores:
        """Return the scores of the candidates of some requests, ``[R K]`` each."""
        return self.explorer.score(self.environment.batch_requests(rows), seed=self.seed * 1_000_003 + rows.start)

    def choose(self, rows: slice) -> Ints:
        """Return the index of the candidate that each request is shown, ``[R]``."""
        candidates = self.environment.candidates[rows]
        if self.policy.kind is None:
            random = np.random.default_rng([self.seed, rows.start, 3])
            return random.integers(0, candidates.shape[1], len(candidates))
        scores = self.score(rows).score.numpy().reshape(candidates.shape)
        if self.bonus:
            scores = scores + self.bonus / np.sqrt(1 + self.counts[candidates])
        chosen: Ints = scores.argmax(1)
        return chosen

    def predict(self, rows: slice) -> Floats:
        """Return the plain probability of the candidates of some requests, ``[R, K]``."""
        scores = self.plain.score(self.environment.batch_requests(rows), seed=0)
        p: Floats = scores.probability.numpy().reshape(self.environment.candidates[rows].shape)
        return p

    def learn(self, rows: Ints, shown: Ints, clicks: Floats) -> None:
        """Take the training steps of a round on its impressions, each of which is read once.

        The members of an ensemble weigh impressions by their own Poisson numbers (the online bootstrap).
        """
        np.add.at(self.counts, self.environment.candidates[rows, shown], 1)
        for number, net in enumerate(self.nets):
            random = np.random.default_rng([self.seed, int(rows[0]), 4, number])
            for step in np.array_split(random.permutation(len(rows)), STEPS):
                batch = self.environment.batch_shown(rows[step], shown[step], clicks[step])
                if len(self.nets) > 1:
                    weight = random.poisson(1, len(step)).astype(np.float32)
                    batch = replace(batch, weight=torch.from_numpy(weight))
                self._step(net, self.optimizers[number], batch)
                if self.gate is not None:
                    self.gate_optimizer.zero_grad(set_to_none=True)
                    self.gate.loss(net, batch).backward()
                    self.gate_optimizer.step()

    def _step(self, net: Ranker, optimizers: dict[str, torch.optim.Optimizer], batch: Batch) -> None:
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        net.loss(batch).backward()
        for optimizer in optimizers.values():
            optimizer.step()


def _settings_of_greedy() -> EpsilonGreedySettings:
    return EpsilonGreedySettings(epsilon=0.0)


def serve(learner: Learner, choose: Callable[[slice], Ints] | None = None) -> Ints:
    """Return the index of the candidate that each served request was shown, ``[T]``.

    A round is scored by nets that learned from the rounds before it alone.
    """
    environment, choose = learner.environment, choose or learner.choose
    shown = np.empty(environment.served, np.int64)
    for start in range(0, environment.served, ROUND):
        rows = slice(start, min(start + ROUND, environment.served))
        shown[rows] = choose(rows)
        index = np.arange(rows.start, rows.stop)
        learner.learn(index, shown[rows], environment.click(index, shown[rows]))
    return shown


def replay(learner: Learner, shown: Ints) -> None:
    """Let a net learn from impressions that were shown before, round by round."""
    for start in range(0, len(shown), ROUND):
        index = np.arange(start, min(start + ROUND, len(shown)))
        learner.learn(index, shown[index], learner.environment.click(index, shown[index]))
