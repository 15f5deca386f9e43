"""Batches of only users or only items as of a timestamp, without impressions, for models that encode one side.

Features of the other side, of the context and of the candidate are missing values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from longrec.data.gather import gather_history, to_tensor
from longrec.data.log import Log
from longrec.errors import DataError
from longrec.features.batch import Batch, HistoryBatch, Jagged
from longrec.features.entity_table import AsOf
from longrec.features.feature_encoders import CalendarEncoder, Lists
from longrec.features.fields import Field


def build_user_batch(log: Log, users: NDArray[np.int64], timestamp: int) -> Batch:
    """Return a batch of users with their histories strictly before a timestamp.

    Args:
        users: row indices in the user table of the log, int64 ``[B]``.
        timestamp: timestamp of all rows of the batch.

    Raises:
        DataError: a prejoined log, which has histories only at its own rows.
    """
    if log.schema.prejoined:
        message = "histories that are columns of the log"
        raise DataError(str(log.folder), message, "an event log, whose histories can be read at any timestamp")
    timestamps = np.full(len(users), timestamp, np.int64)
    histories = {}
    for name in log.schema.histories:
        if name in log.tokens:
            columns, offsets = log.tokens[name].columns(users, timestamps)
            plain = {column: to_tensor(values) for column, values in columns.items()}
            histories[name] = HistoryBatch(plain, torch.from_numpy(offsets))
        else:
            at, offsets = log.select_history_at(name, users, timestamps)
            histories[name] = gather_history(log, name, at, offsets, np.repeat(timestamps, np.diff(offsets)))
    return _batch(log, "user", users, timestamps, histories)


def build_item_batch(log: Log, items: NDArray[np.int64], timestamp: int) -> Batch:
    """Return a batch of items as of a timestamp, without a user.

    Args:
        items: row indices in the item table of the log, int64 ``[B]``.
        timestamp: timestamp of all rows of the batch.
    """
    histories = {}
    for name, columns in log.fields().histories.items():
        none = {field.name: _no_events(field) for field in columns}
        histories[name] = HistoryBatch(none, torch.zeros(len(items) + 1, dtype=torch.int64))
    return _batch(log, "item", items, np.full(len(items), timestamp, np.int64), histories)


def _no_events(field: Field) -> torch.Tensor | Jagged:
    """Return an empty history column."""
    if field.kind == "multi_id":
        weights = torch.zeros(0) if field.weighted else None
        return Jagged(torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), weights)
    if field.kind == "embedding":
        return torch.zeros(0, field.width)
    return torch.zeros(0, dtype=torch.int32)


def _batch(
    log: Log, side: str, rows: NDArray[np.int64], timestamps: NDArray[np.int64], histories: dict[str, HistoryBatch]
) -> Batch:
    features, table = {}, (log.users if side == "user" else log.items).as_of(rows, timestamps)
    for field in log.fields().features:
        features[field.name] = to_tensor(_feature(log, field.name, side, rows, timestamps, table))
    return Batch.single(len(rows), features, histories)


def _feature(
    log: Log, name: str, side: str, rows: NDArray[np.int64], timestamps: NDArray[np.int64], table: AsOf
) -> NDArray[Any] | Lists:
    own = log.schema.side(name) == side
    if name in log.knowledge:
        return log.knowledge[name].values(rows if own else np.zeros_like(rows), timestamps)
    if own:
        return table[name]
    encoder = log.fitted.encoders[name]
    if isinstance(encoder, CalendarEncoder):
        return encoder.encode_times(timestamps)
    feature = log.schema.features[name]
    if feature.kind == "multi_id":
        weights = np.zeros(0, np.float32) if feature.weighted else None
        return Lists(np.zeros(0, np.int32), np.zeros(len(rows) + 1, np.int64), weights)
    return np.repeat(encoder.encode(pa.nulls(1), name), len(rows), axis=0)
