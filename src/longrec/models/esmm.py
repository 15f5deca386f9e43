r"""ESMM: Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion Rate.

Ma, Zhao, Huang, Wang, Hu, Zhu, Gai, SIGIR 2018. https://arxiv.org/abs/1804.07931

A conversion takes a click first. A network of conversions trained on clicks alone sees few rows, and not those it will
be asked about. ESMM never trains it by itself: it is what the click has to be multiplied with to make the conversion,
over all impressions, and it shares its embeddings with the click, which has far more to learn them from.

    pCTCVR = pCTR * pCVR                                               (eq. 1)
    pCTR = sigmoid(h_ctr(x)),  pCVR = sigmoid(h_cvr(x))                (figure 2)
    L = BCE(pCTR, click) + BCE(pCTCVR, click and conversion)           (eq. 3, over all impressions)

The schema's label is the conversion, 0 where there was no click; ``click`` names the feedback feature that tells the
click. Its logit is computed as it stands, ``-log(e^-a + e^-b + e^(-a-b))`` of the logits a and b, and loses nothing
where both are small. x are all fields of the impression beside the mean of each history; or, with ``base``, the last
hidden layer of any other ranker with its logit beside it, so that nothing of the base lies idle.

Departures from the paper
    - a row is ranked by pCTCVR, or by pCTR or pCVR where ``rank_by`` says so;
    - without ``click`` the label alone teaches the product of both, and nothing says which factor is which;
    - with ``base`` the two share more than embeddings;
    - batch normalisation, on by default, as in din;
    - a base with a loss of its own (dien) keeps it: it is added.

Letters: B rows, K labels (the conversion, and the click where it is named), H units of both last hidden layers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.base import BaseSection, Model, Ranker
from longrec.models.several_tasks import Bottom, Tasks, joined
from longrec.nn.activation import Name
from longrec.nn.tasks import MLPs, Towers

Width = Annotated[int, Field(ge=1)]


class ESMMConfig(Strict):
    """Settings of ESMM."""

    base: BaseSection | None = Field(
        None, description="A ranker under both networks; by default all fields and the mean of each history."
    )
    embedding_dim: Width = Field(16, description="Width of fields that ask for none in the schema, without a base.")
    click: str | None = Field(None, description="Feedback feature with the values 0 and 1 that tells the click.")
    click_weight: float = Field(1.0, gt=0, description="Weight of the click in the loss.")
    label_weight: float = Field(1.0, gt=0, description="Weight of the schema's label, the conversion, in the loss.")
    rank_by: Literal["ctcvr", "ctr", "cvr"] = Field("ctcvr", description="Probability that rows are ranked by.")
    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units of each of both networks.")
    activation: Name = Field("relu", description="Activation of both networks.")
    batch_norm: bool = Field(True, description="Batch normalisation in both networks.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of units dropped in both networks while training.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the tables at the start.")


class ESMM(Ranker):
    """The click, and the conversion after it, over all impressions."""

    Config = ESMMConfig
    reads_history = True
    history_optional = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "din", "attention": [8], "mlp": [16]}, "click": "bought", "mlp": [16]},
    )

    def __init__(self, config: ESMMConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if config.click is None and config.rank_by != "ctcvr":
            do = "name the feedback feature that tells the click in model.click"
            raise ConfigError("config", [f"model.rank_by: without a click nothing tells {config.rank_by} apart; {do}"])
        self.bottom = Bottom(config.base, fields, config.embedding_dim, config.init_std)
        self.bottom.lend(self)
        self.tasks = Tasks({config.click: config.click_weight} if config.click else {}, config.label_weight)
        self.targets = self.tasks.targets
        form = config.activation, config.dropout, config.batch_norm
        self.networks = MLPs(self.bottom.width, config.mlp, 2, *form)
        self.last = Towers(self.networks.width, (), 2)
        self.interaction = 2 * self.networks.width

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """The last hidden layer of the click's network, then that of the conversion's."""
        h_B2H: Tensor = self.networks(self.bottom(batch))
        return h_B2H.flatten(1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """The logit that rows are ranked by."""
        return self.ranked(self._labels(h_BH))

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """The logit of pCTCVR, and that of pCTR where there is a click."""
        return self._labels(self.interact(batch))

    def ranked(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """The logit of pCTCVR, pCTR, or pCVR, their quotient."""
        return joined(logits_BK, {"ctcvr": {0: 1.0}, "ctr": {1: 1.0}, "cvr": {0: 1.0, 1: -1.0}}[self.config.rank_by])

    def factors(self, batch: Batch) -> Float[Tensor, "B 2"]:
        """The logits of pCTR and pCVR."""
        return self._factors(self.interact(batch))

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Equation 3."""
        return self.tasks.loss(self.logits(batch), batch) + self.bottom.loss(batch)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """What the base tells of its histories."""
        return self.bottom.explain(batch)

    def home_of(self, other: Model) -> str:
        """A run of the base goes under both networks."""
        return self.bottom.home_of(other)

    def _factors(self, h_BH: Tensor) -> Tensor:
        logits: Tensor = self.last(h_BH.view(-1, 2, self.networks.width))
        return logits

    def _labels(self, h_BH: Tensor) -> Tensor:
        a_B, b_B = self._factors(h_BH).float().unbind(1)
        both_B = -torch.logsumexp(torch.stack([-a_B, -b_B, -a_B - b_B]), 0)
        return torch.stack([both_B, a_B] if self.targets else [both_B], 1)
