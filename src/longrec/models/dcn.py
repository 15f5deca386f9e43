r"""DCN: Deep & Cross Network for Ad Click Predictions.

Wang, Fu, Fu, Wang, ADKDD 2017. https://arxiv.org/abs/1708.05123

A cross network in parallel to a deep network. Each cross layer adds one degree of feature interaction at the cost of
2 D parameters.

    x_{l+1} = x_0 (x_l^T w_l) + b_l + x_l                                           (eq. 3)
    logit = w^T [x_L; h_L]                                                          (eq. 5)

Departures from the paper
    - fields without a width of their own have one common width, not 6 n^(1/4);
    - a numeric field enters as its value times a vector;
    - two deep layers of 128 and 64 and three cross layers by default (the paper's best on Criteo: two of 1024, six).

Shapes: B rows, D width of all embeddings together, H width of both outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName
from longrec.nn.cross import CrossNetwork
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP


class DCNConfig(EmbeddingConfig):
    """Settings of DCN."""

    cross_layers: int = Field(3, ge=1, description="Layers of the cross network.")
    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units of the deep network.")
    activation: ActivationName = Field("relu", description="Activation of the deep network.")
    batch_norm: bool = Field(True, description="Batch normalization in the deep network.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the deep network.")


class DCN(Ranker):
    """Cross network and deep network in parallel."""

    Config = DCNConfig
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"cross_layers": 1, "batch_norm": False, "dropout": 0.1},)

    def __init__(self, config: DCNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, std=config.init_std)
        width = sum(self.embeddings.widths.values())
        self.cross = CrossNetwork(width, config.cross_layers)
        self.deep = MLP(width, config.mlp, config.activation, config.dropout, config.batch_norm)
        self.interaction_width = width + self.deep.outputs
        self.last = Linear(self.interaction_width, 1)

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the outputs of the cross network and the deep network."""
        x_BD = torch.cat(list(embedded.features.values()), 1)
        return torch.cat([self.cross(x_BD), self.deep(x_BD)], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        """Return the logit of each row (equation 5)."""
        logit: Tensor = self.last(h_BH)
        return logit

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the final layer."""
        return [self.last.bias]
