"""A log of long histories: a user likes the categories that occur in 500 events, few of them in the last 50."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.metrics import auc
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.testing.batches import offsets
from longrec.training.sparse_optimizers import LazyAdam

_CATEGORIES, _LIKED, _NOW = 40, 20, 4
_EVENTS, _RECENT = 500, 50
_CATEGORY = Field("category", "id", 2 + _CATEGORIES, side="item")
_SMALL = {"mlp": [32], "embedding_dim": 8, "init_std": 0.3}
_ROWS = 100


def auc_of(settings: Mapping[str, Any], last: int = _EVENTS, users: int = 1_500, epochs: int = 2) -> float:
    """Train a model on the ``last`` events of each history, and return its AUC on 600 new users."""
    torch.manual_seed(0)
    model = build({**_SMALL, **settings}, Fields((_CATEGORY,), {"seen": (_CATEGORY,)}))
    assert isinstance(model, Ranker)
    train, test = _draw(users, 1), _draw(600, 2)
    tables = {id(table) for table in model.embedding_parameters()}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    optimizers = [LazyAdam(model.embedding_parameters(), lr=0.01), torch.optim.Adam(dense, lr=0.01)]
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(users)
        for rows in np.split(order, users // _ROWS):
            model.loss(_batch(train, rows, last)).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(_batch(test, rows, last)) for rows in np.split(np.arange(600), 600 // _ROWS)])
    return auc(test[2], scores.numpy())


_Rows = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]


def _draw(users: int, seed: int) -> _Rows:
    """One row per user: the candidate, the history and whether the candidate's category occurs in it."""
    random = np.random.default_rng(seed)
    liked = random.permuted(np.tile(np.arange(_CATEGORIES), (users, 1)), axis=1)[:, :_LIKED]
    number = random.integers(0, _LIKED, (users, _EVENTS))
    number[:, -_RECENT:] = random.integers(0, _NOW, (users, _RECENT))
    history = np.take_along_axis(liked, number, 1)
    candidate = random.integers(0, _CATEGORIES, users)
    label = (history == candidate[:, None]).any(1)
    return (candidate + 2).astype(np.int32), (history + 2).astype(np.int32), label.astype(np.float32)


def _batch(drawn: _Rows, rows: NDArray[np.int64], last: int) -> Batch:
    candidate, history, label = (column[rows] for column in drawn)
    events = torch.from_numpy(history[:, -last:].reshape(-1))
    return Batch.single(
        len(rows),
        {"category": torch.from_numpy(candidate)},
        {"seen": HistoryBatch({"category": events}, offsets([last] * len(rows)))},
        label=torch.from_numpy(label),
    )
