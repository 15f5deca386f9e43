r"""DeepFM: DeepFM: A Factorization-Machine based Neural Network for CTR Prediction.

Guo, Tang, Ye, Li, He, IJCAI 2017. https://arxiv.org/abs/1703.04247

A factorization machine and an MLP in parallel over the same embeddings: low-order interactions by formula, high-order
ones learned, without pre-training and without hand-made features.

    logit = y_FM + y_DNN                                                            (eq. 1)
    y_FM  = w_0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j                      (eq. 2)
    y_DNN = MLP([v_1; ...; v_F])                                                    (eq. 3, 4)

Departures from the paper
    - the MLP is 128-64 with batch normalization and dropout 0.2 by default (the paper: 400-400-400, dropout 0.5), a
      size for logs of a million rows;
    - a numeric field enters as its value times a vector, in both parts;
    - one bias in all.

Shapes: B rows, F fields, D embedding width, H width of both inputs of the logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import find_common_width
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.interactions import bi_interaction
from longrec.nn.mlp import MLP


class DeepFMConfig(EmbeddingConfig):
    """Settings of DeepFM."""

    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units of the MLP.")
    activation: ActivationName = Field("relu", description="Activation of the MLP.")
    batch_norm: bool = Field(True, description="Batch normalization in the MLP.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout rate of the MLP.")


class DeepFM(Ranker):
    """FM and MLP over one set of tables."""

    Config = DeepFMConfig
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"batch_norm": False, "dropout": 0.0, "activation": "dice"},)

    def __init__(self, config: DeepFMConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        width = find_common_width(fields, config.embedding_dim, "deepfm")
        self.embeddings = Embeddings(fields, width, std=config.init_std)
        self.first_order = Embeddings(fields, width=1, std=0.0)
        self.bias = nn.Parameter(torch.zeros(1))
        inputs = width * len(fields.features)
        self.deep = MLP(
            inputs, config.mlp, config.activation, config.dropout, config.batch_norm, outputs=1, last_bias=False
        )
        self.interaction_width = len(fields.features) + width + self.deep.width

    def embed_further(self, batch: Batch) -> dict[nn.Module, Embedded]:
        """Look up the first-order weights."""
        return {self.first_order: self.first_order(batch)}

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the first-order weights, the elementwise products of all pairs, and the last hidden layer."""
        w_BF = torch.cat(list(embedded.further[self.first_order].features.values()), 1)
        v_BFD = torch.stack(list(embedded.features.values()), 1)
        return torch.cat([w_BF, bi_interaction(v_BFD), self.deep.hidden(v_BFD.flatten(1))], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        """Return the sum of both components."""
        assert self.deep.last is not None
        fm = self.interaction_width - self.deep.width
        return self.bias + h_BH[:, :fm].sum(1, keepdim=True) + self.deep.last(h_BH[:, fm:])

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the sum."""
        return [self.bias]
