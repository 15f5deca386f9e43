r"""ESMM: Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion Rate.

Ma, Zhao, Huang, Wang, Hu, Zhu, Gai, SIGIR 2018. https://arxiv.org/abs/1804.07931

A conversion follows a click. A conversion model trained on clicks alone has few rows, with another distribution than
those it scores. ESMM trains it over all impressions, as the factor between the click and the conversion, and shares its
embeddings with the click model, which has far more data.

    pCTCVR = pCTR * pCVR                                               (eq. 1)
    pCTR = sigmoid(h_ctr(x)),  pCVR = sigmoid(h_cvr(x))                (figure 2)
    L = BCE(pCTR, click) + BCE(pCTCVR, click and conversion)           (eq. 3, over all impressions)

The schema's label is the conversion. ``click`` names the feedback feature of the click. Rows without a click have the
label 0. The logit of the product is computed as it stands,
``-log(e^-a + e^-b + e^(-a-b))`` of the logits a and b, which is exact for small probabilities. x are all fields of the
impression and the mean of each history. With ``base``, x is the last hidden layer of any other ranker and its logit, so
that all parameters of the base are used.

Departures from the paper
    - rows are ranked by pCTCVR, or by pCTR or pCVR as set by ``rank_by``;
    - without ``click`` only the product of both is learned, and the factors are not identified;
    - with ``base`` the two networks share more than embeddings;
    - batch normalization, on by default, as in din;
    - the auxiliary loss of a base (dien) is added.

Shapes: B rows, K labels (the conversion, and the click where it is named), H units of both last hidden layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.bottom import BottomConfig, BottomRanker
from longrec.models.core.multi_task import Tasks, join_logits
from longrec.models.core.top import Width
from longrec.nn.experts import MLPs, Towers

_NEVER = 1e-3
"""Initial share of clicks without a conversion if the training rows have none."""


class ESMMConfig(BottomConfig):
    """Settings of ESMM."""

    click: str | None = Field(None, description="Feedback feature of the click, with the values 0 and 1.")
    click_weight: float = Field(1.0, gt=0, description="Weight of the click in the loss.")
    label_weight: float = Field(1.0, gt=0, description="Weight of the schema's label, the conversion, in the loss.")
    rank_by: Literal["ctcvr", "ctr", "cvr"] = Field("ctcvr", description="Probability that rows are ranked by.")
    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units of each of both networks.")


class ESMM(BottomRanker):
    """The click, and the conversion after it, over all impressions."""

    Config = ESMMConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "din", "attention": [8], "mlp": [16]}, "click": "bought", "mlp": [16]},
    )

    def __init__(self, config: ESMMConfig, fields: Fields) -> None:
        click = {config.click: config.click_weight} if config.click else {}
        super().__init__(config, fields, Tasks(click, config.label_weight))
        if config.click is None and config.rank_by != "ctcvr":
            do = "name the feedback feature of the click in model.click"
            raise ConfigError("config", [f"model.rank_by: without a click {config.rank_by} is not identified; {do}"])
        networks = MLPs(self.bottom.width, config.mlp, 2, config.form)
        self.set_layers(networks, Towers(networks.width, (), 2))

    def factors(self, batch: Batch) -> Float[Tensor, "B 2"]:
        """Return the logits of pCTR and pCVR."""
        return self.tower_logits(self.represent(batch))

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """Return the logit of pCTCVR, and that of pCTR if there is a click."""
        a_B, b_B = self.tower_logits(h_BH).float().unbind(1)
        both_B = -torch.logsumexp(torch.stack([-a_B, -b_B, -a_B - b_B]), 0)
        return torch.stack([both_B, a_B] if self.targets else [both_B], 1)

    def start_at_rates(self, rates: Sequence[float]) -> None:
        """Set the biases to the rates of clicks and of conversions per click. Without a click both are equal."""
        ctcvr = rates[0]
        ctr = max(rates[1], ctcvr) if self.targets else math.sqrt(ctcvr)
        super().start_at_rates([ctr, min(ctcvr / ctr, 1 - _NEVER)])

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of equation 3. A row without a click has no conversion, whatever its label."""
        if self.targets and batch.label is not None and self.targets[0] in batch.task_labels:
            label_B = batch.label.masked_fill(batch.task_labels[self.targets[0]] == 0, 0)
            batch = replace(batch, label=label_B)
        return super().loss(batch)

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """Return the logit of pCTCVR, pCTR, or pCVR, their quotient."""
        return join_logits(
            logits_BK, {"ctcvr": {0: 1.0}, "ctr": {1: 1.0}, "cvr": {0: 1.0, 1: -1.0}}[self.config.rank_by]
        )
