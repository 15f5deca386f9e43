"""Nearest neighbors of items, by the cosine of their users (Sarwar et al., WWW 2001), and popularity: floors of tables.

    score(i) = sum of cos(h, i) over the distinct items h of the history

where cos(h, i) is 0 unless i is among the ``neighbors`` items of h with the largest cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.features.batch import Batch, Column, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.kinds import FittedRetriever


class KNNConfig(Strict):
    """Settings of the nearest neighbors."""

    neighbors: int = Field(200, ge=0, description="Neighbors of an item. 0: popularity instead of neighbors.")


class ItemKNN(FittedRetriever):
    """Nearest neighbors of the items of a history, or popularity."""

    Config = KNNConfig
    reads_history = True

    def __init__(self, config: KNNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.history = next(iter(fields.histories))
        self.column = fields.target_columns(self.history)[0]
        rows = self.column.rows
        self.register_buffer("popularity", torch.zeros(rows))
        self.register_buffer("cosine", torch.zeros(rows if config.neighbors else 0, rows))

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Count items, and pairs of items of one user."""
        height = self.column.rows
        pairs = np.zeros((height, height), np.float32) if self.config.neighbors else None
        count = np.zeros(height)
        for chunk in chunks:
            history = chunk[self.history]
            ids = history.columns[self.column.name].numpy()  # type: ignore[union-attr]
            count += np.bincount(ids, minlength=height)
            for own in np.split(ids, history.offsets.numpy()[1:-1]) if pairs is not None else ():
                distinct = np.unique(own)
                pairs[np.ix_(distinct, distinct)] += 1  # type: ignore[index]
        count[:2] = 0
        self.popularity.copy_(torch.from_numpy(count))
        if pairs is None:
            return
        users = np.sqrt(np.maximum(np.diagonal(pairs), 1))
        np.fill_diagonal(pairs, 0)
        pairs[:2], pairs[:, :2] = 0, 0
        cosine = torch.from_numpy(pairs / np.outer(users, users))
        kept = cosine.topk(min(self.config.neighbors, height), 1)
        self.cosine.zero_().scatter_(1, kept.indices, kept.values)

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Tensor:
        """Return the sum of the cosines, or the popularity."""
        ids: Any = catalog[self.column.name]
        history = batch.histories[self.history]
        requests = len(history.offsets) - 1
        if not self.config.neighbors:
            return self.popularity[ids.long()].expand(requests, -1)
        events: Any = history.columns[self.column.name]
        owner = torch.repeat_interleave(torch.arange(requests), history.offsets.diff())
        seen = torch.zeros(requests, self.column.rows)
        seen[owner, events.long()] = 1
        rows, columns = seen.nonzero(as_tuple=True)
        offsets = torch.searchsorted(rows, torch.arange(requests))
        scores = torch.nn.functional.embedding_bag(columns, self.cosine, offsets, mode="sum")
        return scores[:, ids.long()]
