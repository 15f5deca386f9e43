r"""ItemKNN: Nearest neighbors of items by the cosine of their users (a counting rule).

Sarwar, Karypis, Konstan, Riedl, WWW 2001. https://doi.org/10.1145/371920.372071

Nothing is trained. Two items are alike if the same users took both. An item scores by its similarity with the distinct
items h of the history, and every h counts for its nearest neighbors alone:

    n(a, b) = number of users whose training history has both a and b, n(a) = n(a, a)
    sim(h, i) = n(h, i) / (n(h)^(1 - alpha) n(i)^alpha)                                                          (eq. 1)
    score(i) = sum over h of sim(h, i) if i is among the ``neighbors`` items with the largest sim(h, .), else 0  (eq. 2)

alpha = 0.5 is the cosine of the paper. A larger alpha damps popular items, a smaller one favors them.

``neighbors`` and ``alpha`` are each a value or several. All combinations are compared on the rows of validation, and
the best one is saved.

Departures from the paper
    - a user has an item or not, without ratings, so that the cosine is one of sets;
    - alpha, as in Deshpande and Karypis (ACM TOIS 2004), whose conditional probability is alpha = 0 with a damped n(i);
    - a score is a sum and not a weighted mean, since there are no ratings to predict;
    - of a training history longer than ``longest`` its newest distinct items count, because pairs grow with the square;
    - values that are missing or were unseen in training are never counted, and score 0.

Shapes: R requests, N events, V rows of the item table, Z pairs of items with a count, I items of the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

from longrec.config import Strict
from longrec.features.batch import Batch, Column
from longrec.features.fields import Fields
from longrec.models.core.neighbor_lists import NeighborRetriever
from longrec.models.core.rules import expand_value
from longrec.models.core.top import Width
from longrec.models.core.user_counts import UserCounts
from longrec.nn.segments import Segments

Counts = Annotated[tuple[Width, ...], BeforeValidator(expand_value)]
Exponents = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(expand_value)]


class ItemKNNConfig(Strict):
    """Settings of ItemKNN. The first two are each a value, or a list of values to choose from."""

    neighbors: Counts = Field((200,), min_length=1, description="Neighbors of an item.")
    alpha: Exponents = Field((0.5,), min_length=1, description="Exponent of the popularity that divides a count.")
    longest: Width = Field(1_000, description="Newest distinct items of a training history that are counted.")


class ItemKNN(NeighborRetriever):
    """ItemKNN over the first history of the schema."""

    Config = ItemKNNConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"neighbors": [3, 20], "alpha": [0.5, 0.9], "longest": 5},)
    setting_names = ("neighbors", "alpha")

    def __init__(self, config: ItemKNNConfig, fields: Fields) -> None:
        super().__init__(config, fields, "item_knn")

    def make_counts(self) -> UserCounts:
        """Return counts of the users of items and of pairs of items."""
        return UserCounts(self.rows, self.config.longest)

    def use_counts(self, settings: Mapping[str, Any], counts: UserCounts) -> None:
        """Set the lists to the nearest neighbors by these settings."""
        neighbors, alpha = settings["neighbors"], settings["alpha"]
        key_Z, count_Z = counts.sum()
        from_Z, to_Z = key_Z // self.rows, key_Z % self.rows
        users_V = np.maximum(counts.users, 1)
        weight_Z = count_Z / (users_V[from_Z] ** (1 - alpha) * users_V[to_Z] ** alpha)
        order = np.lexsort((to_Z, -weight_Z, from_Z))
        first_V = np.concatenate([[0], np.cumsum(np.bincount(from_Z, minlength=self.rows))])
        near = np.sort(order[np.arange(len(order)) - first_V[from_Z] < neighbors])  # keys ascend again
        self.use_neighbors(key_Z[near], weight_Z[near])

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Float[Tensor, "R I"]:
        """Return the score of every item for every request. 0 without a common user, and without events."""
        segments = Segments.of(batch, self.history).requests
        id_N, item_I = batch.histories[self.history].columns[self.column], catalog[self.column]
        assert isinstance(id_N, Tensor)
        assert isinstance(item_I, Tensor)
        # The events of one item share its weight, so that an item counts once.
        cell_N, requests = self.find_cells(id_N, segments)
        count = self.weights.new_zeros(requests * self.rows).index_add(0, cell_N, torch.ones_like(cell_N).float())
        weight_N = 1 / count.index_select(0, cell_N)
        return self.score_neighbors(id_N, weight_N, segments).index_select(1, item_I)
