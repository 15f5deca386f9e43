"""Construction of batches from rows of a log, with one gather per column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.data.log import Log
from longrec.data.targets import compute_targets
from longrec.features.batch import Batch, Column, HistoryBatch, Jagged, Layout
from longrec.features.entity_table import AsOf
from longrec.features.feature_encoders import CalendarEncoder, Lists
from longrec.features.fields import COMPUTED
from longrec.features.fitted_schema import gather_lists
from longrec.features.history_columns import HistoryEvents, build_history_columns, list_event_columns


def gather(
    log: Log,
    rows: NDArray[np.int64],
    targets: Sequence[str] = (),
    available_before: int | None = None,
    group: bool = False,
) -> Batch:
    """Return a batch of rows: features as of their timestamps, and histories strictly before them.

    Args:
        rows: row indices in the log in any order, int64 ``[C]``.
        targets: names of additional labels to compute (``data/targets.py``). A batch that is only scored needs none.
        available_before: timestamp before which the targets must be available. Default: end of the training window.
        group: let adjacent rows of one request share its features and histories. Rows are of one request if they have
            the same user, timestamp (and order, if the schema declares one) and context features.
    """
    every = _Rows.of(log, rows)
    layout, requests = Layout.single(len(rows)), every
    if group and not log.schema.prejoined:  # a prejoined row has lists of its own
        first = _starts_request(log, every)
        layout, requests = Layout.grouped(int(first.sum()), np.cumsum(first) - 1), _Rows.of(log, rows[first])
    fields = log.fields().features
    return Batch(
        layout=layout,
        requests={f.name: to_tensor(_gather_feature(log, f.name, requests)) for f in fields if f.side != "item"},
        candidates={f.name: to_tensor(_gather_feature(log, f.name, every)) for f in fields if f.side == "item"},
        histories={name: _gather_history(log, name, requests) for name in log.schema.histories},
        label=torch.from_numpy(log.labels.take(rows)),
        rows=torch.from_numpy(rows),
        users=torch.from_numpy(every.users),
        timestamps=torch.from_numpy(every.timestamps),
        label_time=torch.from_numpy(log.label_time(rows)),
        available=None if log.available is None else torch.from_numpy(log.available.take(rows)),
        task_labels=compute_targets(log, rows, targets, available_before),
        weight=None if log.sample_weight is None else torch.from_numpy(log.sample_weight.take(rows)),
    )


def gather_requests(log: Log, rows: NDArray[np.int64]) -> dict[str, Column]:
    """Return the features of users and contexts as of the timestamps of rows, without histories."""
    requests = _Rows.of(log, rows)
    fields = log.fields().features
    return {f.name: to_tensor(_gather_feature(log, f.name, requests)) for f in fields if f.side != "item"}


@dataclass(frozen=True)
class _Rows:
    """Rows of a log, with their users, items and timestamps, and the entities as of these timestamps."""

    rows: NDArray[np.int64]
    users: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    owners: Mapping[str, NDArray[Any]]
    tables: Mapping[str, AsOf]

    @classmethod
    def of(cls, log: Log, rows: NDArray[np.int64]) -> _Rows:
        users, timestamps = log.user(rows), log.timestamps.take(rows)
        items = log.events.columns["item"].take(rows)
        tables = {"user": log.users.as_of(users, timestamps), "item": log.items.as_of(items, timestamps)}
        return cls(rows, users, timestamps, {"user": users, "item": items}, tables)


def _starts_request(log: Log, every: _Rows) -> NDArray[np.bool_]:
    """Return whether each row belongs to another request than the row before it."""
    first = np.ones(len(every.rows), bool)
    first[1:] = (np.diff(every.users) != 0) | (np.diff(every.timestamps) != 0)
    if log.order is not None:
        first[1:] |= log.order.differs(every.rows)
    for field in log.fields().features:
        # User features and knowledge follow from user and timestamp.
        if field.side == "context" and not isinstance(log.fitted.encoders[field.name], CalendarEncoder):
            first[1:] |= _differs(_gather_feature(log, field.name, every))
    return first


def _differs(column: NDArray[Any] | Lists) -> NDArray[np.bool_]:
    """Return whether each entry but the first differs from the one before it."""
    if not isinstance(column, Lists):
        differs = column[1:] != column[:-1]
        return differs if differs.ndim == 1 else differs.any(1)
    lengths, offsets = np.diff(column.offsets), column.offsets
    differs = lengths[1:] != lengths[:-1]
    entry = np.repeat(np.arange(len(lengths)), lengths)[offsets[1] :]
    at = np.arange(offsets[1], offsets[-1])
    before = np.maximum(at - lengths[entry - 1], 0)
    for values in (column.values, column.weights):
        if values is not None:
            differs |= np.bincount(entry - 1, values[at] != values[before], len(differs)) > 0
    return differs


def _gather_history(log: Log, name: str, of: _Rows) -> HistoryBatch:
    if name in log.tokens:
        columns, offsets = log.tokens[name].columns(of.users, of.timestamps)
        return HistoryBatch(
            {column: _to_tensor(values) for column, values in columns.items()}, torch.from_numpy(offsets), offsets
        )
    if log.schema.prejoined:
        return _gather_listed_history(log, name, of.rows)
    at, offsets = log.select_history(name, of.rows)
    return gather_history(log, name, at, offsets, np.repeat(of.timestamps, np.diff(offsets)))


def _gather_feature(log: Log, name: str, of: _Rows) -> NDArray[Any] | Lists:
    table = log.schema.side(name)
    if name in log.knowledge:
        return log.knowledge[name].values(of.owners[table], of.timestamps)
    encoder = log.fitted.encoders[name]
    if isinstance(encoder, CalendarEncoder):
        return encoder.encode_times(of.timestamps)
    if table in of.tables:
        return of.tables[table][name]
    column = log.lists[name] if name in log.lists else log.events.columns[name]
    return gather_lists(column, of.rows) if isinstance(column, Lists) else column.take(of.rows, axis=0)


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
    return HistoryBatch({c: to_tensor(values) for c, values in encoded.items()}, torch.from_numpy(offsets), offsets)


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
    return HistoryBatch(columns, torch.from_numpy(offsets), offsets)


def to_tensor(column: NDArray[Any] | Lists) -> Tensor | Jagged:
    """Return a column as a tensor of int32 ids or float32 numbers, and a list column as a jagged tensor."""
    if isinstance(column, Lists):
        weights = None if column.weights is None else torch.from_numpy(column.weights)
        return Jagged(_to_tensor(column.values), torch.from_numpy(column.offsets), weights)
    return _to_tensor(column)


def _to_tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.int32, copy=False))
