"""Construction of batches from rows of a log, with one gather per column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.data.log import Log
from longrec.data.targets import compute_targets
from longrec.features.batch import Batch, HistoryBatch, Jagged
from longrec.features.entity_table import AsOf
from longrec.features.feature_encoders import CalendarEncoder, Lists
from longrec.features.fields import COMPUTED
from longrec.features.fitted_schema import gather_lists
from longrec.features.history_columns import HistoryEvents, build_history_columns, list_event_columns


def gather(
    log: Log, rows: NDArray[np.int64], targets: Sequence[str] = (), available_before: int | None = None
) -> Batch:
    """Return a batch of rows: features as of their timestamps, and histories strictly before them.

    Args:
        rows: row indices in the log in any order, int64 ``[B]``.
        targets: names of additional labels to compute (``data/targets.py``). A batch that is only scored needs none.
        available_before: timestamp before which the targets must be available. Default: end of the training window.
    """
    users, timestamps = log.user(rows), log.timestamps.take(rows)
    owners = {"user": users, "item": log.events.columns["item"].take(rows)}
    tables = {"user": log.users.as_of(users, timestamps), "item": log.items.as_of(owners["item"], timestamps)}
    features = {
        field.name: to_tensor(_gather_feature(log, field.name, rows, timestamps, owners, tables))
        for field in log.fields().features
    }
    histories = {name: _gather_history(log, name, rows, users) for name in log.schema.histories}
    return Batch(
        size=len(rows),
        features=features,
        histories=histories,
        label=torch.from_numpy(log.labels.take(rows)),
        rows=torch.from_numpy(rows),
        users=torch.from_numpy(users),
        timestamps=torch.from_numpy(timestamps),
        label_time=torch.from_numpy(log.label_time(rows)),
        available=None if log.available is None else torch.from_numpy(log.available.take(rows)),
        task_labels=compute_targets(log, rows, targets, available_before),
        weight=None if log.sample_weight is None else torch.from_numpy(log.sample_weight.take(rows)),
    )


def _gather_history(log: Log, name: str, rows: NDArray[np.int64], users: NDArray[np.int64]) -> HistoryBatch:
    if name in log.tokens:
        columns, offsets = log.tokens[name].columns(users, log.timestamps.take(rows))
        return HistoryBatch(
            {column: _to_tensor(values) for column, values in columns.items()}, torch.from_numpy(offsets)
        )
    if log.schema.prejoined:
        return _gather_listed_history(log, name, rows)
    at, offsets = log.select_history(name, rows)
    return gather_history(log, name, at, offsets, np.repeat(log.timestamps.take(rows), np.diff(offsets)))


def _gather_feature(
    log: Log,
    name: str,
    rows: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    owners: Mapping[str, NDArray[Any]],
    tables: Mapping[str, AsOf],
) -> NDArray[Any] | Lists:
    table = log.schema.side(name)
    if name in log.knowledge:
        return log.knowledge[name].values(owners[table], timestamps)
    encoder = log.fitted.encoders[name]
    if isinstance(encoder, CalendarEncoder):
        return encoder.encode_times(timestamps)
    if table in tables:
        return tables[table][name]
    column = log.lists[name] if name in log.lists else log.events.columns[name]
    return gather_lists(column, rows) if isinstance(column, Lists) else column.take(rows, axis=0)


def gather_history(
    log: Log, name: str, at: NDArray[np.int64], offsets: NDArray[np.int64], now: NDArray[np.int64]
) -> HistoryBatch:
    """Return a history batch of given events, with the values that were available at a timestamp.

    Args:
        name: name of the history in the schema.
        at: row indices of the events in the log, int64 ``[N]``.
        offsets: offsets of the histories, int64 ``[B + 1]``.
        now: timestamp per event, int64 ``[N]``, or one for all, ``[1]``.
    """
    columns = log.events.columns
    own = set(log.schema.histories[name].features).intersection(list_event_columns(log.fitted))
    events = HistoryEvents(
        times=log.events.times.take(at),
        item_rows=columns["item"].take(at),
        values={column: columns[column].take(at) for column in own},
        available_at={column: columns[f"known.{column}"].take(at) for column in own if f"known.{column}" in columns},
        offsets=offsets,
    )
    encoded = build_history_columns(log.fitted, name, log.items, events, now)
    return HistoryBatch({column: to_tensor(values) for column, values in encoded.items()}, torch.from_numpy(offsets))


def _gather_listed_history(log: Log, name: str, rows: NDArray[np.int64]) -> HistoryBatch:
    history = log.schema.histories[name]
    columns: dict[str, Tensor | Jagged] = {}
    offsets: NDArray[np.int64] | None = None
    for column in history.features:
        assert column not in COMPUTED
        lists = log.lists[f"{name}.{column}"]
        stop = lists.offsets.take(rows + 1)
        lengths = np.minimum(stop - lists.offsets.take(rows), history.max_length)
        own = np.concatenate([[0], np.cumsum(lengths)])
        at = np.repeat(stop - lengths - own[:-1], lengths) + np.arange(own[-1])
        columns[column] = to_tensor(lists.values.take(at))
        offsets = own
    assert offsets is not None
    return HistoryBatch(columns, torch.from_numpy(offsets))


def to_tensor(column: NDArray[Any] | Lists) -> Tensor | Jagged:
    """Return a column as a tensor of int32 ids or float32 numbers, and a list column as a jagged tensor."""
    if isinstance(column, Lists):
        weights = None if column.weights is None else torch.from_numpy(column.weights)
        return Jagged(_to_tensor(column.values), torch.from_numpy(column.offsets), weights)
    return _to_tensor(column)


def _to_tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.int32, copy=False))
