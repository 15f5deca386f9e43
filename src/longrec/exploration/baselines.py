"""Baselines of exploration, with the interface of AGE.

    epsilon_greedy   with probability epsilon a request gets a random order
    ucb              y + c sqrt(1/N sum_i (f(h | M_i) - y)^2), masks of Monte Carlo dropout (Gal and Ghahramani 2016)
    thompson         y + c (f(h | M) - y), one mask: for c = 1 one draw of the posterior
    gradient         y + c |grad_w y| (times Gaussian noise for ``thompson``), w the final linear layer with its bias:
                     the norm that neural UCB and Thompson sampling weigh by a matrix (Zhou et al. 2020)

Shapes: C candidates, N masks, I inputs of the final layer, O its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.exploration.click_function import ClickFunction
from longrec.exploration.explorer import Explorer, Scores
from longrec.exploration.noise import Noise
from longrec.exploration.settings import EpsilonGreedySettings, GradientSettings, ThompsonSettings, UCBSettings
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.models.core.over import Over
from longrec.nn.experts import Towers
from longrec.nn.mlp import MLP


class EpsilonGreedy(Explorer):
    """A share of the requests gets a random order, all others the model's."""

    settings: EpsilonGreedySettings
    noise = Noise("chance", "request", 1, "uniform"), Noise("order", "candidate", 1, "uniform")

    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return the probability, or a random number in the requests that explore."""
        clicks = self.read(batch)
        y_C = torch.sigmoid(clicks.logit(clicks.vectors))
        explores = noise["chance"].squeeze(1) < self.settings.epsilon
        return Scores(y_C, torch.where(explores, noise["order"].squeeze(1), y_C))


class UCB(Explorer):
    """Upper confidence bound by Monte Carlo dropout."""

    settings: UCBSettings

    def __init__(self, model: Ranker, settings: UCBSettings) -> None:
        super().__init__(model, settings)
        self.set_mask_noise(settings, settings.draws)

    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return the probability plus the deviation of the masked ones from it."""
        clicks = self.read(batch)
        y_C = torch.sigmoid(clicks.logit(clicks.vectors))
        away_NC = clicks.masked(self.list_masks(noise)) - y_C
        return Scores(y_C, y_C + self.settings.strength * away_NC.square().mean(0).sqrt())


class Thompson(Explorer):
    """Thompson sampling by Monte Carlo dropout."""

    settings: ThompsonSettings

    def __init__(self, model: Ranker, settings: ThompsonSettings) -> None:
        super().__init__(model, settings)
        self.set_mask_noise(settings, 1)

    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return the probability under one mask."""
        clicks = self.read(batch)
        y_C = torch.sigmoid(clicks.logit(clicks.vectors))
        (masked_C,) = clicks.masked(self.list_masks(noise))
        return Scores(y_C, y_C + self.settings.strength * (masked_C - y_C))


class WeightGradient(Explorer):
    """Uncertainty as the norm of the gradient of the probability with respect to the final linear layer.

    Raises:
        ConfigError: if the model ends without a linear layer.
    """

    settings: GradientSettings
    differentiates = True

    def __init__(self, model: Ranker, settings: GradientSettings) -> None:
        super().__init__(model, settings)
        if settings.uncertainty == "thompson":
            self.noise = (Noise("normal", "candidate", 1, "normal"),)
        self.last = find_last_layer(self.model)

    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return the probability plus the norm, or Gaussian noise of that deviation."""
        clicks = self.read(batch)
        y_C, norm_C = self.measure_norm(clicks)
        if self.settings.uncertainty == "thompson":
            norm_C = norm_C * noise["normal"].squeeze(1)
        return Scores(y_C, y_C + self.settings.strength * norm_C)

    def measure_norm(self, clicks: ClickFunction) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Return the probability of every candidate, and the norm of its gradient.

        The gradient of a linear layer is the outer product of that of its output and its input, so that the norm of
        each candidate is a product of two norms (Goodfellow 2015), and no gradient of weights is computed.
        """
        seen: list[Tensor] = []
        with torch.enable_grad():

            def add_zeros(_layer: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
                seen.extend([inputs[0], torch.zeros_like(out, requires_grad=True)])
                return out + seen[1]

            handle = self.last.register_forward_hook(add_zeros)
            try:
                logit_C = clicks.logit(clicks.vectors)
            finally:
                handle.remove()
            x, zeros = seen
            (g,) = torch.autograd.grad(logit_C.sum(), zeros)
        y_C = torch.sigmoid(logit_C.detach())
        # [C, I], or [C, K, I] of towers, of which the explored one alone has a gradient
        g_CK = g.reshape(g.shape[0], -1)
        x_CK = x.detach().square().sum(-1).reshape(g.shape[0], -1) + (0.0 if self.last.bias is None else 1.0)
        return y_C, y_C * (1 - y_C) * (g_CK.square() * x_CK).sum(1).sqrt()


def find_last_layer(model: Ranker) -> Any:
    """Return the final linear layer of a ranker.

    Raises:
        ConfigError: if it ends without one.
    """
    children = dict(model.named_children())
    last = children.get("last")
    if isinstance(last, nn.Linear):
        return last
    for child in reversed(children.values()):
        if isinstance(child, MLP | Towers) and child.last is not None:
            return child.last
    if isinstance(model, Over):
        return find_last_layer(model.base)
    name = type(model).__name__
    raise ConfigError("explore", [f"model: {name} ends without a linear layer; explore it by masks"])
