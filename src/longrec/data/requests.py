"""Conversion of log rows to the serving requests that would have been sent at their timestamp.

Export replays such requests, because online and offline scores must be equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.features.batch import Jagged
from longrec.features.feature_encoders import Lists

_ROWS = 4
"""Number of candidates of a log whose candidates are no items."""


def build_impression(log: Log, row: int, others: Iterable[int]) -> dict[str, Any]:
    """Return the data of one impression: user, timestamp, context, history and candidate items.

    Args:
        row: row index in the log.
        others: row indices in the item table of further candidates. Row 0 and duplicates are ignored.

    Returns:
        ``user`` (row of the user table), ``items`` (rows of the item table), ``timestamp``, ``events`` (encoded event
        features of the impression), ``histories`` (their encoded columns ``[T]`` as of the timestamp, tokens
        ``[T, W]``), ``candidates`` (encoded candidate features, C entries) and ``knowledge`` (as of the timestamp:
        ``[1, W]`` of the user, ``[C, W]`` of the items).
    """
    own = int(log.events.columns["item"][row])
    items = np.array([item for item in dict.fromkeys([own, *map(int, others)]) if item > 0], np.int64)
    if log.schema.item is None:
        items = np.zeros(min(_ROWS, len(log)) if log.fitted.list_features("candidate") else 1, np.int64)
    user, timestamp = log.user(np.array([row])), log.timestamps[[row]]
    batch = gather(log, np.array([row], np.int64))
    # A row has candidate features of its own item only. For the other items, those of the next rows are used.
    near = (row + np.arange(len(items), dtype=np.int64)) % len(log)
    candidate_features = gather(log, near).features if log.fitted.list_features("candidate") else {}
    plain = [n for n in log.fitted.list_features("context") if not log.schema.features[n].feedback]
    events = {n: _array(batch.features[n]) for n in plain if log.schema.features[n].kind != "calendar"}
    histories = {
        name: {column: _array(values) for column, values in history.columns.items()}
        for name, history in batch.histories.items()
    }
    return {
        "user": int(user[0]),
        "items": items,
        "timestamp": int(timestamp[0]),
        "events": {n: value if isinstance(value, Lists) else value[0] for n, value in events.items()},
        "histories": histories,
        "candidates": {n: _array(candidate_features[n]) for n in log.fitted.list_features("candidate")},
        "knowledge": {
            name: feature.values(user, timestamp)
            if log.schema.side(name) == "user"
            else feature.values(items, timestamp.repeat(len(items)))
            for name, feature in log.knowledge.items()
        },
    }


def _array(column: Tensor | Jagged) -> Any:
    if isinstance(column, Jagged):
        weights = None if column.weights is None else column.weights.numpy()
        return Lists(column.values.numpy(), column.offsets.numpy(), weights)
    return column.numpy()
