r"""FM: Factorization Machines.

Rendle, ICDM 2010. https://doi.org/10.1109/ICDM.2010.127

A linear model plus all pairwise interactions, where the weight of a pair is the inner product of two vectors, so
that a pair that never occurred together still has a weight.

    logit = w_0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j                      (eq. 1)

computed in O(F D) as 0.5 sum_k [(sum_i v_ik x_i)^2 - sum_i (v_ik x_i)^2]           (lemma 3.1)

Departures from the paper
    - a multi-value field is one field: its values are pooled as the schema says before they meet the others;
    - L2 belongs to the optimizer of the tables and decays only the rows of a batch.

Shapes: B rows, F fields, D embedding width, H = F + D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import find_common_width
from longrec.models.core.top import EmbeddingConfig
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.interactions import bi_interaction


class FMConfig(EmbeddingConfig):
    """Settings of FM."""


class FM(Ranker):
    """First order and all pairs."""

    Config = FMConfig
    reads_groups = True

    def __init__(self, config: FMConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        width = find_common_width(fields, config.embedding_dim, "fm")
        self.embeddings = Embeddings(fields, width, std=config.init_std)
        self.first_order = Embeddings(fields, width=1, std=0.0)
        self.bias = nn.Parameter(torch.zeros(1))
        self.interaction_width = len(fields.features) + width

    def embed_further(self, batch: Batch) -> dict[nn.Module, Embedded]:
        """Look up the first-order weights."""
        return {self.first_order: self.first_order(batch)}

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the weight of every field, and the elementwise products of all pairs."""
        w_BF = torch.cat(list(embedded.further[self.first_order].features.values()), 1)
        v_BFD = torch.stack(list(embedded.features.values()), 1)
        return torch.cat([w_BF, bi_interaction(v_BFD)], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        """Return the sum."""
        return self.bias + h_BH.sum(1, keepdim=True)

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the sum."""
        return [self.bias]
