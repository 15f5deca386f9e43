"""Base class of retrievers whose user tower is an MLP over the pooled history and the features of the request.

    p = mean_t e_t          x = drop(LN(p))          u = MLP([x; x_1; x_2; ...; y]) + x

e_t is the sum of the embeddings of the columns of event t, x_f the embedding of feature f of the user or the context,
and y are further numbers of a subclass. Without events p is zero. ``input_norm: false`` drops LN, ``residual: false``
the last term, and ``output_norm: true`` normalizes u.

The mean over the beginnings of a history gives the vectors after all its events in one pass (``nn/prefix.py``). The
tower runs for the targets alone, each with the features of its own request, as of its own timestamp.

Shapes: R requests, N stored positions of their histories, T targets, M of them, D width, Y further numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.item_history import ItemHistoryConfig, ItemHistoryRetriever
from longrec.models.core.top import Width
from longrec.nn.activation import ActivationName
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embedded
from longrec.nn.mlp import MLP
from longrec.nn.prefix import prefix_mean


class PooledHistoryConfig(ItemHistoryConfig):
    """Settings of a retriever over the pooled history."""

    mlp: tuple[Width, ...] = Field((128,), description="Hidden units of the tower of users.")
    activation: ActivationName = Field("relu", description="Activation of the hidden layers.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout rate of the pooled history and of the hidden layers.")
    input_norm: bool = Field(True, description="Layer normalization of the pooled history.")
    output_norm: bool = Field(False, description="Layer normalization of the vector of a user.")
    residual: bool = Field(True, description="Add the pooled history to the output of the tower.")


class PooledHistoryRetriever(ItemHistoryRetriever):
    """A retriever over the mean of the first history.

    Args:
        numbers: Y.

    Attributes:
        tower: the MLP of users.
    """

    reads_requests = True
    reads_sequences = True

    def __init__(self, config: PooledHistoryConfig, fields: Fields, numbers: int = 0) -> None:
        super().__init__(config, fields)
        requests = sum(field.side != "item" for field in self.read_fields.features)
        self.input_norm = nn.LayerNorm(self.width) if config.input_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        inputs = (1 + requests) * self.width + numbers
        self.output_norm = nn.LayerNorm(self.width) if config.output_norm else nn.Identity()
        self.tower = MLP(inputs, config.mlp, config.activation, config.dropout, outputs=self.width)
        self._numbers = numbers

    def encode(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "N D"]:
        """Return the vector after each event."""
        segments = self.segments(batch)
        requests = {name: segments.expand(x_RD) for name, x_RD in embedded.request.items()}
        return self.run_tower(prefix_mean(self.add_events(embedded), segments), requests)

    def encode_targets(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "T D"]:
        """Return the vector that predicts each target, from the features of its request."""
        assert batch.targets is not None
        mean_ND = prefix_mean(self.add_events(embedded), self.segments(batch))
        mean_TD = mean_ND.index_select(0, batch.targets.state)
        return self.run_tower(mean_TD, embedded.request, self.read_numbers(batch))

    def encode_requests(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "R 1 D"]:
        """Return the vector of each request."""
        mean_RD = self.segments(batch).pool(self.add_events(embedded), "mean")
        return self.run_tower(mean_RD, embedded.request, self.read_numbers(batch)).unsqueeze(1)

    def read_numbers(self, batch: Batch) -> Float[Tensor, "M Y"] | None:
        """Return further inputs of the tower, one row per target of a batch of sequences, else one per request.

        None: zeros, the default.
        """
        return None

    def run_tower(
        self, mean_MD: Float[Tensor, "M D"], request: Mapping[str, Tensor], y_MY: Float[Tensor, "M Y"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Return u, from the pooled history and the features of requests."""
        x_MD = self.dropout(self.input_norm(mean_MD))
        inputs = [x_MD, *request.values()]
        if self._numbers:
            inputs.append(mean_MD.new_zeros(len(mean_MD), self._numbers) if y_MY is None else y_MY)
        u_MD: Tensor = self.tower(torch.cat(inputs, 1))
        out_MD: Tensor = self.output_norm(u_MD + x_MD if self.config.residual else u_MD)
        return out_MD
