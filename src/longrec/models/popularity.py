r"""Popularity: Counts of the training window, newer events count more (a counting rule).

Ji, Sun, Zhang, Li, SIGIR 2020. https://doi.org/10.1145/3397271.3401233

Nothing is trained, and all requests have the same scores. An item scores by its events in the training window, each
with a weight that halves in every half-life before the newest event T of the window:

    score(i) = sum over training events (i, t) of 2^(-(T - t) / half_life)                                       (eq. 1)

Without a half-life all events count alike. It is the floor of a table, and it fills the places that other sources of a
pipeline leave empty.

Departures from the paper
    - the decay is continuous, where the paper counts by month;
    - counts end with the training window, where the paper counts again before every request;
    - the events are those of the first history, without those that its filter leaves out;
    - values that are missing or were unseen in training score 0.

Shapes: R requests, N events, V rows of the item table, I items of the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch, Column, HistoryBatch
from longrec.features.duration import Duration, parse_duration
from longrec.features.fields import Fields
from longrec.models.core.kinds import FittedRetriever
from longrec.models.core.neighbor_lists import choose_item_column
from longrec.nn.embedding import RESERVED


class PopularityConfig(Strict):
    """Settings of Popularity."""

    half_life: Duration | None = Field(
        None, description="Time in which the weight of an event halves, such as 30d. 0 or null: all events count alike."
    )


class Popularity(FittedRetriever):
    """Popularity over the first history of the schema."""

    Config = PopularityConfig
    reads_groups = True
    personalized = False
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"half_life": "2h"},)

    popularity: Tensor

    def __init__(self, config: PopularityConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.history, self.column, self.rows = choose_item_column(fields, "popularity")
        self.register_buffer("popularity", torch.zeros(self.rows))
        self._seconds = parse_duration(config.half_life or 0) / 1_000

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Count the events of the training window.

        Raises:
            ConfigError: with a half-life, if events have no times.
        """
        total_V, newest = np.zeros(self.rows), -np.inf
        for chunk in chunks:
            history = chunk[self.history]
            ids = history.columns[self.column]
            assert isinstance(ids, Tensor)
            id_N, weight_N = ids.cpu().numpy().astype(np.int64), None
            if self._seconds and len(id_N):
                if history.seconds is None:
                    fault = f"half_life: {self.config.half_life}, and events of the log have no times; leave it out"
                    raise ConfigError("config", [f"model.{fault}"])
                before, newest = newest, max(newest, float(history.seconds.max()))
                total_V *= 0.5 ** ((newest - before) / self._seconds)
                weight_N = 0.5 ** ((newest - history.seconds) / self._seconds)
            total_V += np.bincount(id_N, weight_N, minlength=self.rows)
        total_V[:RESERVED] = 0
        self.popularity.copy_(torch.from_numpy(total_V))

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Float[Tensor, "R I"]:
        """Return the popularity of every item, the same for every request."""
        item_I = catalog[self.column]
        assert isinstance(item_I, Tensor)
        return self.popularity.index_select(0, item_I).unsqueeze(0).expand(batch.layout.requests, -1)
