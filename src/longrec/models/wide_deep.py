r"""Wide & Deep: Wide & Deep Learning for Recommender Systems.

Cheng et al., DLRS 2016. https://arxiv.org/abs/1606.07792

A linear model over raw and crossed features, for memorization, trained jointly with an MLP over embeddings, for
generalization.

    logit = w_wide^T [x; phi(x)] + w_deep^T a^(L) + b                               (eq. 3)
    phi_k(x) = prod_i x_i^c_ki,  c_ki in {0, 1}                                     (eq. 1)

Departures from the paper
    - the wide component is trained by the lazy optimizer of the tables, not by FTRL with L1; ``wide_parameters()``
      returns its parameters, for an optimizer of their own;
    - crosses are of two id fields and hashed; values that collide share a weight;
    - the deep component is 128-64 by default (the paper: 1024-512-256) and normalized.

Shapes: B rows, F fields, D embedding width, H width of both components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field as Column
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import RESERVED, Embedded, Embeddings
from longrec.nn.mlp import MLP

_PRIME, _A, _B = 2**31 - 1, 1_103_515_245, 214_013_741


class WideDeepConfig(EmbeddingConfig):
    """Settings of Wide & Deep."""

    crosses: tuple[tuple[str, str], ...] = Field((), description="Pairs of id features to cross in the wide component.")
    cross_buckets: int = Field(
        100_000,
        ge=1,
        le=2**31 - 3,
        json_schema_extra={"x-rows": True},
        description="Weights of each cross; pairs are hashed into them.",
    )
    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units of the deep component.")
    activation: ActivationName = Field("relu", description="Activation of the deep component.")
    batch_norm: bool = Field(True, description="Batch normalization in the deep component.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout rate of the deep component.")


class WideDeep(Ranker):
    """A linear component with crosses and a deep component, trained with one loss."""

    Config = WideDeepConfig
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"batch_norm": False, "activation": "prelu", "dropout": 0.0},)

    def __init__(self, config: WideDeepConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        _check(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, std=config.init_std)
        self.wide = Embeddings(fields, width=1, std=0.0)
        rows = RESERVED + config.cross_buckets
        crossed = tuple(Column(f"{a} x {b}", "id", rows, side="item") for a, b in config.crosses)
        self.crosses = Embeddings(Fields(crossed, {}), width=1, std=0.0)
        self.bias = nn.Parameter(torch.zeros(1))
        inputs = sum(self.embeddings.widths.values())
        self.deep = MLP(
            inputs, config.mlp, config.activation, config.dropout, config.batch_norm, outputs=1, last_bias=False
        )
        self.interaction_width = len(fields.features) + len(config.crosses) + self.deep.width

    def wide_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the linear component. No other component uses them."""
        return [*self.wide.parameters(), *self.crosses.parameters(), self.bias]

    def embed_further(self, batch: Batch) -> dict[nn.Module, Embedded]:
        """Look up the weights of fields and crosses."""
        return {self.wide: self.wide(batch), self.crosses: self.crosses(self._cross(batch))}

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the weight of every field and cross, and the last hidden layer."""
        v_BD = torch.cat(list(embedded.features.values()), 1)
        wide = [weight for tables in (self.wide, self.crosses) for weight in embedded.further[tables].features.values()]
        return torch.cat([*wide, self.deep.hidden(v_BD)], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        """Return the sum of both components."""
        assert self.deep.last is not None
        wide = self.interaction_width - self.deep.width
        return self.bias + h_BH[:, :wide].sum(1, keepdim=True) + self.deep.last(h_BH[:, wide:])

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the sum."""
        return [self.bias]

    def _cross(self, batch: Batch) -> Batch:
        """Return the batch whose features are the crosses."""
        ids = {}
        for a, b in self.config.crosses:
            # Both are id features, so both are tensors: checked at construction.
            one, two = cast(Tensor, batch.per_candidate(a)), cast(Tensor, batch.per_candidate(b))
            ids[f"{a} x {b}"] = RESERVED + cross(one, two, self.config.cross_buckets)
        return Batch.single(batch.size, ids)


def cross(a: Tensor, b: Tensor, buckets: int) -> Tensor:
    """Return the bucket of each pair of ids, int64: ``((A a + B b) mod p) mod buckets``, the same in every process.

    Universal hashing (Carter and Wegman 1979): a pair collides with another with probability 1 / buckets.
    """
    return (a.long() * _A + b.long() * _B) % _PRIME % buckets


def _check(config: WideDeepConfig, fields: Fields) -> None:
    kinds = {field.name: field.kind for field in fields.features}
    faults = []
    for pair in config.crosses:
        for name in pair:
            if kinds.get(name) != "id":
                choices = ", ".join(name for name, kind in kinds.items() if kind == "id")
                faults.append(f"model.crosses: {name!r} is not an id feature; id features: {choices}")
    if len(set(config.crosses)) != len(config.crosses):
        faults.append("model.crosses: names a pair twice")
    if faults:
        raise ConfigError("schema", faults)
