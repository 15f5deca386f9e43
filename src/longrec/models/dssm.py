r"""DSSM: Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations.

Yi et al., RecSys 2019. https://doi.org/10.1145/3298689.3346996

Two towers, one of users and one of items, meet in a cosine only, so that the vectors of all items are computed once.
The architecture is that of DSSM (Huang et al., CIKM 2013), where both towers read text:

    u = MLP_u([mean_t e_t; x_1; x_2; ...])         v = MLP_i([x_1; x_2; ...])         s(u, v) = <u, v> / (|u| |v|)

The user tower reads the pooled history and the features of the user and the context, and the item tower all features of
the item: ids, lists of ids, numbers and stored vectors. In training the targets of a batch are negatives of each other,
which costs no further vectors, and makes popular items frequent negatives. The correction takes that back:

    l_t = -log(exp(s_t / tau) / (exp(s_t / tau) + sum_j exp(s_j / tau - log q_j)))

over the targets j of other users in the batch, where q_j is how often item j is expected among the targets of the batch
(``models/core/retrieval.py``). Neither tau nor q belongs to serving, which compares u and v alone.

Departures from the paper
    - q is counted over the training window, and not estimated from the steps between two occurrences of an item;
    - nothing is subtracted from the score of the target itself, which is in its own sum with certainty;
    - a user's own targets in the batch are left out (``mask_own_targets``), and one candidate stands for all items that
      training has not seen;
    - tau is a setting and is not learned;
    - the mean of the history is normalized and dropped out, and added to the output; the sum of the embeddings of the
      ids of an item is added to the output of its tower. ``input_norm: false`` and ``residual: false`` drop these;
    - events and items read the same tables, and rewards are the weights of targets in the schema.

Shapes: I items, C candidates, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.features.fields import Fields
from longrec.features.sampling import Draw
from longrec.models.core.item_history import add_all
from longrec.models.core.pooled_history import PooledHistoryConfig, PooledHistoryRetriever
from longrec.models.core.top import Width
from longrec.nn.embedding import Embedded
from longrec.nn.mlp import MLP


class DSSMConfig(PooledHistoryConfig):
    """Settings of DSSM."""

    draw: Draw = Field(
        "in_batch",
        description="distribution of the negatives: the targets of the batch, those and uniform ones, "
        "uniform, or by popularity in training",
    )
    cosine: bool = Field(True, description="Vectors of length 1, whose inner products are cosines.")
    temperature: float = Field(0.07, gt=0, description="tau: divisor of the cosines in training")
    item_mlp: tuple[Width, ...] = Field((128,), description="Hidden units of the tower of items.")


class DSSM(PooledHistoryRetriever):
    """DSSM over the first history of the schema, and all features of users, contexts and items."""

    Config = DSSMConfig
    item_kinds = ("id", "multi_id", "numeric", "numbers", "embedding")
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"draw": "mixed", "mask_own_targets": False, "dropout": 0.0},
        {"residual": False, "cosine": False, "temperature": 1.0, "mlp": [32, 16], "item_mlp": [], "draw": "uniform"},
    )

    def __init__(self, config: DSSMConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        items = [field for field in self.read_fields.features if field.side == "item"]
        self.item_tower = MLP(len(items) * self.width, config.item_mlp, config.activation, outputs=self.width)
        self._ids = [field.name for field in items if field.kind in ("id", "multi_id")]

    def encode_items(self, embedded: Embedded) -> Float[Tensor, "C D"]:
        """Return v of every item, from its features alone."""
        v_CD: Tensor = self.item_tower(torch.cat(list(embedded.candidate.values()), 1))
        return v_CD + add_all([embedded.candidate[name] for name in self._ids]) if self.config.residual else v_CD
