"""Retrievers with features of requests: trained on sequences, they find what user and context decide together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec.data.log import Log
from longrec.data.next_item_loader import NextItemLoader
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.features.schema import Schema
from longrec.models.core.kinds import VectorRetriever
from longrec.models.core.registry import build
from longrec.training.full_ranking import rank_targets
from longrec.training.settings import EvaluateConfig
from longrec.training.sparse_optimizers import LazyAdam

SIZE = 3
"""Number of items that a kind of user takes on one device."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Return a log in which the user's kind and the device of the request decide among 2 x 2 blocks of items."""
    folder, random, count = tmp_path_factory.mktemp("blocks"), np.random.default_rng(0), 900
    user, device = random.integers(0, 70, count), random.integers(0, 2, count)
    item = (2 * (user % 2) + device) * SIZE + random.integers(0, SIZE, count)
    columns = {"user": user, "item": item, "at": np.arange(count), "device": device, "size": item % SIZE + 0.5}
    pq.write_table(pa.table(columns), folder / "log.parquet")
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "at", "unit": "step"},
        "features": {
            "item": {"kind": "id"},
            "device": {"kind": "id", "side": "context"},
            "size": {"kind": "numeric", "side": "item"},
        },
        "histories": {"seen": {"features": ["item"], "max_length": 20}},
    }
    config = DataConfig(log=str(folder / "log.parquet"), folder=str(folder / "prepared"))  # type: ignore[arg-type]
    return Log.open(prepare(config, Schema.model_validate(schema)))


@pytest.mark.parametrize("name", ["youtube_dnn", "dssm"])
def test_the_best_possible_ranking_is_learned(log: Log, name: str) -> None:
    """The items of the block are the first three. Without the device half of the targets would be among them."""
    torch.manual_seed(0)
    model = build({"name": name, "embedding_dim": 8, "dropout": 0.0, "negatives": 20, "mlp": [16]}, log.fields())
    assert isinstance(model, VectorRetriever)
    loader = NextItemLoader(log, log.rows_of("train"), 200, "seen", model.sampling, sequences=model.reads_sequences)
    assert not loader.by_request
    tables = model.embedding_parameters()
    dense = [one for one in model.parameters() if all(one is not table for table in tables)]
    optimizers = [LazyAdam(tables, lr=0.03), torch.optim.AdamW(dense, lr=0.03)]
    for epoch in range(12):
        for batch in loader.epoch(epoch):
            model.train().loss(batch).backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    ranks = rank_targets(model, log, log.rows_of("test"), EvaluateConfig(seen="keep"))
    assert (ranks < SIZE).mean() > 0.95
