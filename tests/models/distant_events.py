"""A log whose label depends on events long ago, and the AUC of a model on it.

Each user has 200 events. The first ones are of the items of one of two kinds, which is the taste of the user. All later
ones are noise. A candidate of the user's taste is clicked with a probability of 0.9, another one with 0.1.
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

EVENTS = 200
SHORT = 20
"""Events that a model of short histories reads."""
_KINDS, _ITEMS, _EARLY = 2, 4, 150
ITEM = Field("item", "id", 2 + (_KINDS + 1) * _ITEMS, side="item")
FIELDS = Fields((ITEM,), {"seen": (ITEM,)})


def draw(rows: int, seed: int, events: int = EVENTS) -> Batch:
    """Return a batch of users, with their last ``events`` events."""
    draw = np.random.default_rng(seed)
    taste, kind = draw.integers(_KINDS, size=(2, rows))
    early = taste[:, None] * _ITEMS + draw.integers(_ITEMS, size=(rows, _EARLY))
    late = _KINDS * _ITEMS + draw.integers(_ITEMS, size=(rows, EVENTS - _EARLY))
    seen = 2 + np.concatenate([early, late], 1)[:, EVENTS - events :]
    item = 2 + kind * _ITEMS + draw.integers(_ITEMS, size=rows)
    label = draw.random(rows) < np.where(taste == kind, 0.9, 0.1)
    history = HistoryBatch({"item": torch.from_numpy(seen.astype(np.int32).ravel())}, torch.arange(rows + 1) * events)
    return Batch.single(
        rows,
        {"item": torch.from_numpy(item.astype(np.int32))},
        {"seen": history},
        label=torch.from_numpy(label.astype(np.float32)),
    )


def measure_auc(settings: dict[str, Any], events: int = EVENTS, steps: int = 25, seed: int = 0) -> float:
    """Return the AUC of a model on other users, after some steps on 128 users each."""
    torch.manual_seed(seed)
    model = build(settings, FIELDS)
    assert isinstance(model, Ranker)
    tables = {id(table) for table in model.embedding_parameters()}
    dense = torch.optim.Adam([p for p in model.parameters() if id(p) not in tables], lr=0.02)
    sparse = torch.optim.SparseAdam(model.embedding_parameters(), lr=0.05)
    for step in range(steps):
        model.loss(draw(128, step, events)).backward()
        for optimizer in (dense, sparse):
            optimizer.step()
            optimizer.zero_grad()
    test = draw(1000, 12345, events)
    with torch.no_grad():
        score = model.eval()(test)
    assert test.label is not None
    return auc(test.label.numpy(), score.numpy())
