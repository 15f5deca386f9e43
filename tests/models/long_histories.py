"""A log whose label depends on the old events of long histories, in memory, and the AUC of models trained on it.

The history of a row has 500 events. The label is likely 1 if the candidate's category is among the oldest 450. The
newest 50 have categories that no candidate has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.metrics import auc
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.training.sparse_optimizers import LazyAdam

EVENTS, RECENT = 500, 50
_CATEGORIES, _COMMON, _OWN, _EACH = 12, 2, 6, 20  # of candidates, of no candidate, of a user, events of each of these
_ITEMS = 5  # per category
FIELDS = Fields(
    (
        Field("item", "id", 2 + _ITEMS * (_CATEGORIES + _COMMON), dim=8, side="item"),
        Field("category", "id", 2 + _CATEGORIES + _COMMON, dim=8, side="item"),
    ),
    {},
)
FIELDS = Fields(FIELDS.features, {"seen": FIELDS.features})


def draw_batch(rows: int, seed: int, last: int = EVENTS) -> Batch:
    """Return rows with the last events of their histories."""
    random = np.random.default_rng(seed)
    category = random.integers(_CATEGORIES, _CATEGORIES + _COMMON, (rows, EVENTS))
    order = random.permuted(np.tile(np.arange(_CATEGORIES), (rows, 1)), axis=1)
    at = random.permuted(np.tile(np.arange(EVENTS - RECENT), (rows, 1)), axis=1)[:, : _OWN * _EACH]
    np.put_along_axis(category, at, np.repeat(order[:, :_OWN], _EACH, 1), 1)
    seen = random.random(rows) < 0.5
    wanted = np.where(seen, order[:, 0], order[:, _OWN])
    label = torch.from_numpy((random.random(rows) < np.where(seen, 0.9, 0.1)).astype(np.float32))

    def columns_of(category: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        item = category * _ITEMS + random.integers(0, _ITEMS, category.shape)
        return {name: torch.from_numpy(2 + ids.ravel()).int() for name, ids in (("item", item), ("category", category))}

    history = HistoryBatch(columns_of(category[:, -last:]), torch.arange(rows + 1) * last)
    return Batch.single(rows, columns_of(wanted), {"seen": history}, label=label)


def train_on_old_events(section: Mapping[str, Any], last: int = EVENTS, steps: int = 120) -> float:
    """Return the AUC of a model on new rows, after some steps of 64 rows."""
    torch.manual_seed(0)
    model = build(section, FIELDS)
    assert isinstance(model, Ranker)
    tables = {id(table) for table in model.embedding_parameters()}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    optimizers = [LazyAdam(model.embedding_parameters(), lr=0.03), torch.optim.Adam(dense, lr=0.01)]
    for step in range(steps):
        model.loss(draw_batch(64, step, last)).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    batches = [draw_batch(250, 10_000 + number, last) for number in range(4)]
    with torch.no_grad():
        scores = torch.cat([model(batch) for batch in batches])
    labels = torch.cat([batch.label for batch in batches if batch.label is not None])
    return float(auc(labels.numpy(), scores.numpy()))
