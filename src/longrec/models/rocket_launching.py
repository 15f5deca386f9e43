r"""Rocket Launching: Rocket Launching: A Universal and Efficient Framework for Training Well-performing Light Net.

Zhou, Fan, Cui, Bian, Zhu, Gai, AAAI 2018. https://arxiv.org/abs/1708.04106

A light net, which is served, and a booster net, which is not, are trained together on shared embeddings. The light net
follows the logits of the booster during the whole training, not only those of a finished teacher:

    L = H(y, p(x)) + H(y, q(x)) + lambda h(l(x), z(x))                              (eq. 2)
    p = sigmoid(l), q = sigmoid(z),  l, z the logits of light net and booster
    h = (l - z)^2                               ``hint: logits``, the paper's choice          (eq. 3, SNN-MIMIC)
    h = (p - q)^2                               ``hint: probabilities``                        (MSE of softmax)
    h = T^2 H(sigmoid(z / T), sigmoid(l / T))   ``hint: distillation``                         (Hinton et al.)

Gradient block (section 3): z is a constant in the hint, so the booster learns from labels alone. The hint trains the
light net and the shared embeddings. Only the light net is exported.

Departures from the paper
    - light net and booster are any two rankers with embeddings of the same widths; tables of both are shared,
      and a table that only one of them has is its own;
    - one binary label: a softmax over two classes is a sigmoid;
    - ``detach_shared: true`` is the variant of EasyRec: the light net, by its label and by the hint, does not train
      the shared tables;
    - the booster's logits in the hint are those of its label loss, with its dropout;
    - lambda multiplies a mean over rows. The paper's 0.03 is for sums over the classes of images.

Shapes: C candidates, H as in the light net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.hints import Hint, compute_hint
from longrec.models.core.kinds import Ranker
from longrec.models.core.losses import compute_mean_loss
from longrec.models.core.over import Over
from longrec.models.core.registry import BaseSection, build_base, name_of
from longrec.models.core.rules import find_sharing_faults
from longrec.nn.embedding import Embedded, Embeddings


class RocketLaunchingConfig(Strict):
    """Settings of Rocket Launching."""

    rules = (find_sharing_faults,)

    light: BaseSection = Field({"name": "din"}, description="Model section of the light net, which is served.")
    booster: BaseSection = Field(
        {"name": "din", "attention": [160, 80], "mlp": [800, 320, 80]},
        description="Model section of the booster net, which only trains the light net.",
    )
    hint: Hint = Field("logits", description="Distance of the light net from the booster.")
    hint_weight: float = Field(0.1, ge=0, description="Weight lambda of the hint.")
    temperature: float = Field(2.0, gt=0, description="Temperature of hint: distillation.")
    gradient_block: bool = Field(True, description="The hint does not train the booster.")
    share: bool = Field(True, description="Light net and booster share their embedding tables.")
    detach_shared: bool = Field(False, description="The light net does not train the shared tables.")


class RocketLaunching(Over):
    """A light net that is trained beside a booster. Its scores, its explanation and its export are the light net's."""

    Config = RocketLaunchingConfig
    history_optional = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"light": {"name": "deepfm"}, "booster": {"name": "pooling"}, "hint": "probabilities", "hint_weight": 1.0},
        {
            "light": {"name": "deepfm", "mlp": [8]},
            "booster": {"name": "dcn", "mlp": [32]},
            "hint": "distillation",
            "detach_shared": True,
            "gradient_block": False,
        },
        {"light": {"name": "fm"}, "booster": {"name": "dcn"}, "share": False},
    )

    def __init__(self, config: RocketLaunchingConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.set_base(config.light, fields, "model.light")
        self.booster = build_base(config.booster, fields, "model.booster")
        if self.booster.user_order is not None or self.base.user_order is not None:
            raise ConfigError("config", ["model.light.name: batches in user order cannot be shared with a booster"])
        self.reads_groups &= self.booster.reads_groups
        if config.share:
            _share(self.base, self.booster)

    def served(self) -> Model:
        """Return the light net."""
        return self.base

    def start_at_rates(self, rates: Sequence[float]) -> None:
        """Set the output biases of both nets."""
        self.base.start_at_rates(rates)
        self.booster.start_at_rates(rates)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of equation 2, plus the auxiliary losses of both nets."""
        config = self.config
        embedded = self.embed(batch)
        of_booster = self._embed_booster(batch, embedded)
        if config.detach_shared:
            embedded = embedded.detach()
        light_C1 = self.base.head(self.base.interact(batch, embedded))
        booster_C1 = self.booster.head(self.booster.interact(batch, of_booster))
        loss = self.base.label_loss(light_C1, batch) + self.booster.label_loss(booster_C1, batch)
        loss = loss + self.base.aux_loss(batch, embedded) + self.booster.aux_loss(batch, of_booster)
        if not config.hint_weight:
            return loss
        target_C1 = booster_C1.detach() if config.gradient_block else booster_C1
        hint_C = compute_hint(config.hint, light_C1[:, 0], target_C1[:, 0], config.temperature)
        every_C = torch.ones_like(hint_C, dtype=torch.bool)
        return loss + config.hint_weight * compute_mean_loss(hint_C, batch, every_C)

    def _embed_booster(self, batch: Batch, embedded: Embedded) -> Embedded:
        """Return the vectors of the booster: those of the light net if both read the same fields of the same tables."""
        light, booster = self.base, self.booster
        plain = not isinstance(light, Over) and not isinstance(booster, Over)
        if self.config.share and plain and light.embeddings.fields == booster.embeddings.fields:
            return replace(embedded, further=booster.embed_further(batch))
        return booster.embed(batch)


def _share(light: Ranker, booster: Ranker) -> None:
    """Let the booster look up in the tables of the light net.

    Raises:
        ConfigError: if one of them has no attribute ``embeddings``, or their widths differ.
    """
    nets = {"model.light": light, "model.booster": booster}
    tables = [getattr(net.innermost if isinstance(net, Over) else net, "embeddings", None) for net in nets.values()]
    own, borrowed = (one if isinstance(one, Embeddings) else None for one in tables)
    faults = [
        f"{where}.name: {name_of(net)} has no tables in embeddings to share; take another ranker, or set share: false"
        for (where, net), one in zip(nets.items(), (own, borrowed))
        if one is None
    ]
    if own is not None and borrowed is not None:
        try:
            borrowed.borrow(own)
        except ValueError as error:
            do = "give both one embedding_dim, or set share: false"
            faults.append(f"model.booster: its tables of {error} have another width than the light net's; {do}")
    if faults:
        raise ConfigError("config", faults)
