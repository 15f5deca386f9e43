"""Two small retrievers and their bundles over the log of a shop, written from the interface alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shop
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longrec.config import Strict
from longrec.exporting.golden import GoldenRequest
from longrec.exporting.offline import build_golden_retrieval, build_request_batch
from longrec.exporting.write import CatalogOptions, export
from longrec.features.batch import Batch, Column, Jagged
from longrec.features.fields import Fields
from longrec.index.build import IndexSettings
from longrec.models.core.kinds import FittedRetriever, Retriever, VectorRetriever
from longrec.nn.segments import Segments
from longrec.serve.service import replay


class MeanConfig(Strict):
    width: int = 64
    interests: int = 1


class MeanRetriever(VectorRetriever):
    """The mean of the vectors of the items of a history, and of the context, against the vectors of items."""

    Config = MeanConfig
    reads_history = True

    def __init__(self, config: MeanConfig, fields: Fields, item: str = "item_id", history: str = "seen") -> None:
        super().__init__(config, fields)
        self.item, self.history, self.width, self.interests = item, history, config.width, config.interests
        rows = {field.name: field.rows for field in fields.features}
        self.tables = nn.ModuleDict({
            field.name: nn.Embedding(field.rows, config.width) for field in fields.features if field.kind == "id"
        })  # fmt: skip
        self.lists = nn.ModuleDict({
            field.name: nn.Embedding(rows[field.name], config.width)
            for field in fields.features
            if field.kind == "multi_id" and field.side == "item"
        })  # fmt: skip
        self.scale = nn.Parameter(torch.randn(config.interests, config.width))
        self.context = [f.name for f in fields.features if f.kind == "id" and f.side != "item"]
        self.own = [f.name for f in fields.features if f.kind == "id" and f.side == "item"]

    def users(self, batch: Batch) -> Tensor:
        segments = Segments.of(batch, self.history)
        mean_RD = segments.pool(self.tables[self.item](batch.histories[self.history].columns[self.item]), "mean")
        for name in self.context:
            mean_RD = mean_RD + self.tables[name](batch.requests[name])
        return mean_RD.unsqueeze(1) * self.scale

    def items(self, columns: Mapping[str, Column]) -> Tensor:
        vectors = torch.stack([self.tables[name](columns[name]) for name in self.own]).sum(0)
        for name, table in self.lists.items():
            column = columns[name]
            assert isinstance(column, Jagged)
            vectors = vectors.index_add(0, Segments.of_values(column).row, table(column.values))
        return vectors

    def loss(self, batch: Batch) -> Tensor:
        return self.users(batch).sum()


class CountRetriever(FittedRetriever):
    """How often each item was taken."""

    Config = Strict

    def __init__(self, config: Strict, fields: Fields, item: str = "film") -> None:
        super().__init__(config, fields)
        self.item = item
        rows = next(field.rows for field in fields.features if field.name == item)
        self.register_buffer("counts", torch.zeros(rows))

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Tensor:
        column = catalog[self.item]
        assert isinstance(column, Tensor)
        scores_I: Tensor = self.counts[column.long()]  # type: ignore[index]
        return scores_I.unsqueeze(0).expand(batch.layout.requests, -1)


@dataclass(frozen=True)
class RetrievalShop:
    shop: shop.Shop
    model: Retriever
    bundle: Path
    golden: list[GoldenRequest]

    def retrieve(self, row: int, k: int, exclude_seen: bool, timestamp: int | None = None) -> GoldenRequest:
        """Return the request for k items at the time of a row of the log, with the expected items and scores."""
        own = self.shop
        sample = own.sample(row, np.array([1]), timestamp)
        seen = self.find_seen_items(sample.user, sample.timestamp) if exclude_seen else None
        return build_golden_retrieval(self.model, own.fitted, own.users, own.items, sample, k, seen)

    def compute_queries(self, count: int) -> NDArray[np.float32]:
        """Return the vectors of the requests at the first rows of the log."""
        assert isinstance(self.model, VectorRetriever)
        own = self.shop
        vectors = []
        for row in range(count):
            batch = build_request_batch(own.fitted, own.users, own.items, own.sample(row, np.array([1])))
            with torch.no_grad():
                vectors.append(self.model.users(batch).numpy())
        return np.concatenate(vectors)

    def find_seen_items(self, user: int, timestamp: int) -> NDArray[Any]:
        """Return the rows of the items of earlier events by a linear search."""
        segment = self.shop.segment
        own = range(int(segment.offsets[user]), int(segment.offsets[user + 1]))
        items = [int(segment.columns["item"][row]) for row in own if segment.times[row] < timestamp]
        return np.array(items, np.int64)


def make(own: shop.Shop, model: Retriever, name: str, index: IndexSettings | None = None) -> RetrievalShop:
    """Export a retriever over the log of a shop."""
    bundle = own.log.parent / f"{name}.bundle"
    exported = RetrievalShop(own, model.eval(), bundle, [])
    rows = np.random.default_rng(6).choice(len(own.segment), 8, replace=False)
    exported.golden.extend(exported.retrieve(int(row), 3 + number, number % 3 > 0) for number, row in enumerate(rows))
    catalog = CatalogOptions(own.things, index or IndexSettings(), lambda: exported.compute_queries(30))
    export(model, own.log, bundle, exported.golden, replay, name=name, source={"run": name}, catalog=catalog)
    return exported


def vectors(interests: int = 1) -> RetrievalShop:
    """Return the retriever of vectors over the full shop. Each is exported once."""
    return _export_vectors(interests)


@functools.cache
def _export_vectors(interests: int) -> RetrievalShop:
    own = shop.full()
    torch.manual_seed(interests)
    model = MeanRetriever(MeanConfig(interests=interests), own.fitted.fields())
    return make(own, model, f"mean{interests}")


@functools.cache
def lists() -> RetrievalShop:
    """Return the retriever of three interests, whose items are in inverted lists."""
    one = _export_vectors(3)
    return make(one.shop, one.model, "lists", IndexSettings("ivf", recall_target=0.8, recall_at=5))


@functools.cache
def counts() -> RetrievalShop:
    own = shop.steps()
    model = CountRetriever(Strict(), own.fitted.fields())
    model.counts[:] = torch.tensor(np.random.default_rng(3).integers(0, 4, len(model.counts)))  # many equal scores
    return make(own, model, "count")
