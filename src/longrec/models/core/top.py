"""Base class and settings of rankers that end with an MLP over everything that was read.

Shapes: C candidates, I width of the inputs, H units of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embedded
from longrec.nn.mlp import MLP

Width = Annotated[int, Field(ge=1)]


class EmbeddingConfig(Strict):
    """Settings of the embeddings of a model."""

    embedding_dim: Width = Field(16, description="Embedding width of fields without `dim` in the schema.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the initial embeddings.")


class TopConfig(EmbeddingConfig):
    """Settings of a ranker that ends with an MLP."""

    mlp: tuple[Width, ...] = Field((200, 80), min_length=1, description="Hidden units of the top MLP.")
    mlp_activation: ActivationName = Field("relu", description="Activation of the top MLP.")
    batch_norm: bool = Field(True, description="Batch normalization in the top MLP.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the top MLP.")


class TopRanker(Ranker):
    """A ranker whose logit is an MLP ``top`` of all that it read: a subclass defines ``read`` and calls ``set_top``."""

    top: MLP

    def set_top(self, inputs: int, config: TopConfig, last_gain: float = 1.0) -> None:
        """Build the MLP over ``inputs`` numbers per candidate.

        Args:
            last_gain: factor of the initial weights of the final layer.
        """
        self.top = MLP(
            inputs, config.mlp, config.mlp_activation, config.dropout, config.batch_norm, outputs=1, last_gain=last_gain
        )
        self.interaction_width = self.top.width

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return the inputs of the MLP, ``[C, I]`` in parts."""
        raise NotImplementedError(f"{type(self).__name__} defines neither interact nor read")

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "C H"]:
        """Return the last hidden layer of the top MLP."""
        return self.top.hidden(torch.cat(self.read(batch, embedded), 1))

    def head(self, h_CH: Float[Tensor, "C H"]) -> Float[Tensor, "C 1"]:
        """Return the logit of every candidate: the final layer."""
        assert self.top.last is not None
        logit: Tensor = self.top.last(h_CH)
        return logit

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the final layer."""
        return [self.top.output_bias]
