"""AGE: Adversarial Gradient Driven Exploration for Deep Click-Through Rate Prediction.

Wu, Chan, Bian, Ren, Xiang, Han, Deng, Zheng, KDD 2022. https://arxiv.org/abs/2112.11136

A candidate is scored by the prediction that the model would make after one simulated update on it. To first order that
is a step of its embeddings along the gradient of the prediction, as long as the prediction is uncertain:

    y   = f(h)                                                                      (eq. 2)
    g   = grad_h f(h) / |grad_h f(h)|                                               (eq. 8; ``pgd``: eq. 14)
    u   = sqrt(1/N sum_i (f(h | M_i) - f(h))^2)         ``ucb``                     (eq. 12)
    u   = f(h | M) - f(h), with its sign                ``thompson``                (eq. 13)
    gate = 1 if y > f_dgu(h_item) else 0                                            (eq. 15)
    y_e = f(h + gate lambda u g)                                                    (eq. 16)

A flat prediction is not explored, however uncertain it is. Rank by y_e; bill and calibrate by y.

Departures from the paper
    - h is the candidate's id embeddings by default, since the history is shared by all candidates of a request;
      ``all`` adds the features of user and context. Histories and numbers are never perturbed;
    - ``ucb`` takes the root of the variance, which has the unit of ``thompson``; ``statistic: var`` is eq. 12 itself;
    - a mask drops hidden units, not single weights, and by default one mask holds for all candidates of a request;
    - T = 5 and a = 2 r / T in ``pgd``, which the paper does not give;
    - of several tasks only the explored one is read.

Shapes: C candidates, D width of the perturbed embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.errors import ConfigError
from longrec.exploration.click_function import ClickFunction
from longrec.exploration.directions import find_fgm_direction, find_pgd_direction
from longrec.exploration.explorer import Explorer, Scores
from longrec.exploration.gate import Gate
from longrec.exploration.settings import AgeSettings
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker


class Age(Explorer):
    """AGE over a trained ranker.

    Args:
        gate: the fitted gate, see ``fit_gate``. None without one.

    Raises:
        ConfigError: if the settings want a gate and there is none, or no feature of the item has embeddings.
    """

    settings: AgeSettings
    differentiates = True

    def __init__(self, model: Ranker, settings: AgeSettings, gate: Gate | None = None) -> None:
        super().__init__(model, settings)
        if settings.gate and gate is None:
            raise ConfigError("explore", ["gate: none is fitted; pass one of fit_gate, or set gate to false"])
        if not any(field.rows and field.side == "item" for field in model.fields.features):
            raise ConfigError("explore", ["schema: no id feature has side: item, whose embeddings age perturbs"])
        self.gate = gate if settings.gate else None
        self.set_mask_noise(settings, settings.draws if settings.uncertainty == "ucb" else 1)

    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return y and y_e of every candidate."""
        clicks = self.read(batch, self.settings.scope)
        y_C = torch.sigmoid(clicks.logit(clicks.vectors))
        step_CD = self.perturb(clicks, y_C, noise)
        return Scores(y_C, torch.sigmoid(clicks.logit(clicks.vectors + step_CD)))

    def perturb(
        self, clicks: ClickFunction, y_C: Float[Tensor, " C"], noise: Mapping[str, Tensor]
    ) -> Float[Tensor, "C D"]:
        """Return the perturbation of every candidate, ``gate lambda u g``."""
        size_C = self.settings.strength * self.measure_uncertainty(clicks, y_C, noise)
        if self.gate is not None:
            size_C = size_C * self.open_gate(clicks, y_C)
        if self.settings.direction == "fgm":
            g_CD = find_fgm_direction(clicks.gradient, clicks.vectors)
        else:
            g_CD = find_pgd_direction(clicks.gradient, clicks.vectors, size_C.abs(), self.settings.steps)
        return size_C.unsqueeze(1) * g_CD

    def measure_uncertainty(
        self, clicks: ClickFunction, y_C: Float[Tensor, " C"], noise: Mapping[str, Tensor]
    ) -> Float[Tensor, " C"]:
        """Return the uncertainty of every candidate, signed for ``thompson``."""
        away_NC = clicks.masked(self.list_masks(noise)) - y_C
        if self.settings.uncertainty == "thompson":
            return away_NC[0]
        variance_C = away_NC.square().mean(0)
        return variance_C if self.settings.statistic == "var" else variance_C.sqrt()

    def open_gate(self, clicks: ClickFunction, y_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """Return 1 for every candidate that this user likes more than the average user, else 0."""
        assert self.gate is not None
        h_CD = torch.cat(list(clicks.embedded.candidate.values()), 1)
        open_C: Tensor = y_C > torch.sigmoid(self.gate(h_CD))
        return open_C.to(y_C.dtype)
