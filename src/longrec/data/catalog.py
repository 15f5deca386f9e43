"""Catalog of a log: all items, their features without a request, and when each item first occurred."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.gather import to_tensor
from longrec.data.log import Log
from longrec.data.splits import TRAIN
from longrec.errors import ConfigError
from longrec.features.batch import Column
from longrec.features.feature_encoders import Lists
from longrec.features.history_columns import NEVER


def build_catalog(log: Log, items: NDArray[np.int64], timestamp: int) -> dict[str, Column]:
    """Return the features of items as valid strictly before a timestamp, one entry per item.

    Args:
        items: rows of the item table, int64 ``[I]``.
    """
    table = log.items.as_of(items, timestamp)
    columns: dict[str, Column] = {}
    for field in log.fields().features:
        if field.side != "item":
            continue
        values: NDArray[Any] | Lists
        if field.name in log.knowledge:
            values = log.knowledge[field.name].values(items, np.full(len(items), timestamp, np.int64))
        else:
            values = table[field.name]
        columns[field.name] = to_tensor(values)
    return columns


def check_catalog(log: Log) -> None:
    """Refuse features of the candidate, which an item has only in a row of the log.

    Raises:
        ConfigError: a feature of the side ``candidate``, or no feature of the item.
    """
    own = [name for name in log.schema.features if log.schema.side(name) == "candidate"]
    faults = [
        f"data.schema.features.{name}: belongs to the candidate of a row, and an item of the catalog has none; drop it "
        "for a retriever"
        for name in own
    ]
    if not any(field.side == "item" for field in log.fields().features):
        faults.append("data.schema.features: a retriever needs a feature of the item, such as its id")
    if faults:
        raise ConfigError("config", faults)


def count_items(log: Log, rows: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[Any]:
    """Return the number of these rows per row of the item table, int64, or the sum of their weights."""
    return np.bincount(log.events.columns["item"].take(rows), weights, minlength=len(log.items))


def list_training_items(log: Log) -> NDArray[np.int64]:
    """Return the rows of the items that occur in the training split, int64, ascending."""
    counts = count_items(log, np.flatnonzero(np.asarray(log.splits) == TRAIN))
    counts[0] = 0
    return np.flatnonzero(counts)


def list_negatives(log: Log) -> NDArray[np.int64]:
    """Return the rows of the items that a loss compares targets with, int64, ascending.

    They are the items of training, and row 0 for all items that training does not have. Without row 0 the vector of
    those is never compared with a target. It stays zero, and in a loss whose scores are log-odds a zero is far above
    the score of a usual item: the items that training knows nothing about would lead every ranking.
    """
    return np.append(0, list_training_items(log))


def compute_first_timestamps(log: Log) -> NDArray[np.int64]:
    """Return when the first event of each item was available, int64 by row of the item table. NEVER without events."""
    first = np.full(len(log.items), NEVER, np.int64)
    items, times = log.events.columns["item"], log.events.times if log.available is None else log.available
    for at in range(0, len(log), 1 << 20):
        chunk = slice(at, at + (1 << 20))
        np.minimum.at(first, items[chunk], times[chunk])
    return first
