r"""CoVisit: Item-to-item counts of a window, weighted by distance (a counting rule).

Sarwar, Karypis, Konstan, Riedl, WWW 2001. https://doi.org/10.1145/371920.372071

Nothing is trained. Pairs of items that follow each other in a history are counted, and an item scores by its counts
with the newest events of a request:

    C[a, b] = sum over training histories, positions s < t <= s + w with items a, b, of 1 / (t - s)              (eq. 1)
    score(i) = sum_k decay^k (C[h_k, i] + back C[i, h_k]) / popularity(i)^alpha                                  (eq. 2)

h_0 is the newest event of the request, h_1 the one before. ``back`` is the weight of pairs in the other order. With
alpha = 0 popular items win, with alpha = 1 a count is relative to the popularity of the item.

The window w, ``back``, ``alpha`` and ``decay`` are each a value or several. All combinations are compared on the rows
of validation, and the best one is saved. On short histories the rule is ahead of many trained models.

Departures from the paper
    - the paper compares items by the cosine or the correlation of their users; here the order and the distance count,
      as in session-based nearest neighbors;
    - counts are exact, without a limit on the neighbors of an item;
    - events whose weight decay^k is below 1e-7 are left out, since sums in float32 are not more exact;
    - values that are missing or were unseen in training are never counted, score 0, and count as events of a distance.

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
from longrec.models.core.pair_counts import PairCounts
from longrec.models.core.rules import expand_value
from longrec.models.core.top import Width
from longrec.nn.segments import Segments

Windows = Annotated[tuple[Width, ...], BeforeValidator(expand_value)]
Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(expand_value)]
Decays = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(expand_value)]


class CoVisitConfig(Strict):
    """Settings of CoVisit. Each is a value, or a list of values to choose from."""

    window: Windows = Field((5, 20), min_length=1, description="Maximum distance of two events of a pair.")
    back: Weights = Field((0.5, 1.0), min_length=1, description="Weight of pairs in the other order.")
    alpha: Weights = Field((0.3, 0.5), min_length=1, description="Exponent of the popularity that divides a count.")
    decay: Decays = Field((0.6, 0.8), min_length=1, description="Factor of an event for each newer one.")


class CoVisit(NeighborRetriever):
    """CoVisit over the first history of the schema."""

    Config = CoVisitConfig
    reads_history = True
    reads_groups = True
    order_matters = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"window": 2, "back": 0.0, "alpha": 1.0, "decay": 0.9},)
    setting_names = ("window", "back", "alpha", "decay")

    popularity: Tensor

    def __init__(self, config: CoVisitConfig, fields: Fields) -> None:
        super().__init__(config, fields, "covisit")
        self.register_buffer("popularity", torch.ones(self.rows))

    def make_counts(self) -> PairCounts:
        """Return counts of the pairs up to the largest window."""
        return PairCounts(self.rows, max(self.config.window))

    def use_counts(self, settings: Mapping[str, Any], counts: PairCounts) -> None:
        """Set the buffers to the counts by these settings."""
        key_Z, weight_Z = counts.sum(settings["window"], settings["back"])
        item_Z = key_Z % self.rows
        popularity_V = np.maximum(counts.popularity, 1)
        weight_Z = weight_Z / popularity_V[item_Z] ** settings["alpha"]
        self.use_neighbors(key_Z, weight_Z)
        self.popularity = torch.from_numpy(popularity_V.astype(np.float32)).to(self.offsets.device)

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Float[Tensor, "R I"]:
        """Return the score of every item for every request. 0 without a count, and for requests without events."""
        segments = Segments.of(batch, self.history).requests
        id_N, item_I = batch.histories[self.history].columns[self.column], catalog[self.column]
        assert isinstance(id_N, Tensor)
        assert isinstance(item_I, Tensor)
        weight_N = self.settings[3] ** segments.count_newer().float()
        return self.score_neighbors(id_N, weight_N, segments).index_select(1, item_I)
