r"""LR: Predicting Clicks: Estimating the Click-Through Rate for New Ads.

Richardson, Dominowska, Ragno, WWW 2007. https://doi.org/10.1145/1242572.1242643

LR is logistic regression: each value of each field has one weight, and the weights of a row add up to its logit:

    logit = w_0 + sum_i w_i x_i                                                     (section 4)

A baseline for every other model: it learns the popularity of items and the activity of users, without any
interaction.

Departures from the paper
    - features are the fields of the schema, ids among them; trained in batches, not by L-BFGS;
    - the weights of a multi-value field are pooled as the schema says.

Shapes: B rows, F fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.config import Strict
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.nn.embedding import Embedded, Embeddings


class LRConfig(Strict):
    """Logistic regression has no settings."""


class LR(Ranker):
    """Logistic regression: a bias and one weight per value."""

    Config = LRConfig
    reads_groups = True

    def __init__(self, config: LRConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.first_order = Embeddings(fields, width=1, std=0.0)
        self.bias = nn.Parameter(torch.zeros(1))
        self.interaction_width = len(fields.features)

    def embed(self, batch: Batch) -> Embedded:
        """Look up the weights."""
        weights: Embedded = self.first_order(batch)
        return weights

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B F"]:
        """Return the weight of every field."""
        return torch.cat(list(embedded.features.values()), 1)

    def head(self, h_BH: Float[Tensor, "B F"]) -> Float[Tensor, "B 1"]:
        """Return the sum."""
        return self.bias + h_BH.sum(1, keepdim=True)

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the sum."""
        return [self.bias]
