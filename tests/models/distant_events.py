"""A log whose label depends on events long ago, and the AUC of a model on it.

Three quarters of the events of a user, the oldest ones, are of the items of one of two kinds, which is the taste of the
user. The others are noise. A candidate of this kind is clicked with a probability of 0.9, another one with 0.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.metrics import auc
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build

_KINDS, _ITEMS = 2, 4
_ITEM = Field("item", "id", 2 + (_KINDS + 1) * _ITEMS, side="item")
FIELDS = Fields((_ITEM,), {"seen": (_ITEM,)})


def draw(rows: int, seed: int, events: int = 200, newest: int | None = None) -> Batch:
    """Return a batch of users with some events each.

    Args:
        newest: the number of newest events that the batch holds. None: all.
    """
    random = np.random.default_rng(seed)
    taste, kind = random.integers(_KINDS, size=(2, rows))
    early = events * 3 // 4
    old = taste[:, None] * _ITEMS + random.integers(_ITEMS, size=(rows, early))
    noise = _KINDS * _ITEMS + random.integers(_ITEMS, size=(rows, events - early))
    read = newest or events
    seen = 2 + np.concatenate([old, noise], 1)[:, events - read :]
    item = 2 + kind * _ITEMS + random.integers(_ITEMS, size=rows)
    label = random.random(rows) < np.where(taste == kind, 0.9, 0.1)
    history = HistoryBatch({"item": torch.from_numpy(seen.astype(np.int32).ravel())}, torch.arange(rows + 1) * read)
    features = {"item": torch.from_numpy(item.astype(np.int32))}
    return Batch.single(rows, features, {"seen": history}, label=torch.from_numpy(label.astype(np.float32)))


def measure_auc(
    settings: dict[str, Any], events: int = 200, newest: int | None = None, users: int = 128, steps: int = 25
) -> float:
    """Return the AUC of a model on other users, after some steps on some users each."""
    torch.manual_seed(0)
    model = build(settings, FIELDS)
    assert isinstance(model, Ranker)
    tables = {id(table) for table in model.embedding_parameters()}
    dense = torch.optim.Adam([p for p in model.parameters() if id(p) not in tables], lr=0.02)
    sparse = torch.optim.SparseAdam(model.embedding_parameters(), lr=0.05)
    for step in range(steps):
        model.loss(draw(users, step, events, newest)).backward()  # type: ignore[no-untyped-call]
        for optimizer in (dense, sparse):
            optimizer.step()
            optimizer.zero_grad()
    test = draw(1000, 12345, events, newest)
    with torch.no_grad():
        score = model.eval()(test)
    assert test.label is not None
    return auc(test.label.numpy(), score.numpy())
