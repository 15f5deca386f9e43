"""Small random batches of every kind of field, and changes of a batch whose effect on the scores is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longrec.features.batch import Batch, HistoryBatch, Jagged, Layout
from longrec.features.fields import COMPUTED, Field, Fields

ITEM = Field("item", "id", 60, side="item")
GENRES = Field("genres", "multi_id", 12, side="item")
ACTORS = Field("actors", "multi_id", 30, pool="sum", weighted=True, side="item")
RATING = Field("rating", "id", 8, feedback=True)
GAP, SINCE, SESSION = (Field(name, "id", rows) for name, rows in COMPUTED.items())
TASTE = Field("taste", "embedding", 0, side="user", width=5)

FIELDS = Fields(
    features=(
        Field("user", "id", 40, side="user"),
        Field("age", "numeric", 0, side="user"),
        Field("hobbies", "multi_id", 9, pool="max", side="user"),
        TASTE,
        Field("hour", "id", 27),
        ITEM,
        GENRES,
        ACTORS,
        Field("price", "numeric", 0, side="item"),
    ),
    histories={"seen": (RATING, ITEM, GENRES, ACTORS, GAP), "liked": (ITEM, GAP, SINCE, SESSION)},
)
"""Fields of almost every kind, two histories, a column of the past that no candidate has."""

FEW = Fields(
    features=(Field("user", "id", 40, side="user"), TASTE, ITEM, Field("price", "numeric", 0, side="item")),
    histories={"seen": (RATING, ITEM)},
)
"""A few fields and one history, for checks that take long."""

TOKENS = Fields(
    features=(*FEW.features, Field("facts", "embedding", 0, side="item", width=4)),
    histories={
        "tokens": (
            Field("tokens.token", "embedding", 0, width=6, slots=2),
            Field("tokens.label", "id", 4, feedback=True),
            Field("tokens.version", "id", 4),
            GAP,
        )
    },
)
"""Instance tokens, which share no column with the candidate, and knowledge of the user and the item."""

CATEGORY, CODES = (
    Field("category", "id", 7, side="item"),
    (
        Field("code_1", "id", 6, side="item"),
        Field("code_2", "id", 9, side="item"),
        Field("code_3", "id", 5, side="item"),
    ),
)
PATHS = Fields(
    features=(Field("user", "id", 40, side="user"), TASTE, ITEM, CATEGORY, *CODES),
    histories={"seen": (RATING, ITEM, CATEGORY, *CODES), "liked": (ITEM, GAP)},
)
"""Items with a category and the codes of a semantic ID, for generators."""

TARGETS = ("bought", "kept")
"""Further labels of a batch, a third of them not known, for models of several tasks."""


def values(field: Field, count: int, generator: torch.Generator) -> Tensor | Jagged:
    """Return random values of a field: ids from all rows of its table, reserved ones too; knowledge with its flag."""
    if field.kind == "numeric":
        return torch.randn(count, generator=generator)
    if field.kind == "embedding":
        there = torch.rand(count, 1, generator=generator) < 0.7
        return torch.cat([there, torch.randn(count, field.width - 1, generator=generator) * there], 1)
    if field.kind == "numbers":
        return torch.randn(count, field.width, generator=generator)
    if field.kind == "id":
        return torch.randint(0, field.rows, (count,), generator=generator, dtype=torch.int32)
    lengths = torch.randint(0, 4, (count,), generator=generator)
    total = int(lengths.sum())
    ids = torch.randint(0, field.rows, (total,), generator=generator, dtype=torch.int32)
    weights = torch.rand(total, generator=generator) + 0.1 if field.weighted else None
    return Jagged(ids, offsets(lengths.tolist()), weights)


def offsets(lengths: Sequence[int]) -> Tensor:
    """Return the offsets of rows of these lengths: int64 ``[rows + 1]``."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def ragged(
    rows: int = 9, seed: int = 0, longest: int = 7, lengths: Sequence[int] | None = None, fields: Fields = FIELDS
) -> Batch:
    """Return a random batch of ``rows`` impressions of some users at some moments, some with an empty history."""
    generator = torch.Generator().manual_seed(seed)
    histories = {}
    for name, columns in fields.histories.items():
        length = lengths or [0, *torch.randint(0, longest + 1, (rows - 1,), generator=generator).tolist()]
        drawn = {field.name: values(field, sum(length), generator) for field in columns}
        histories[name] = HistoryBatch(drawn, offsets(length))
    features = {field.name: values(field, rows, generator) for field in fields.features}
    label = torch.randint(0, 2, (rows,), generator=generator).float()
    users = torch.randint(0, 1 + rows // 8, (rows,), generator=generator)
    timestamps = 1_000 * torch.randint(0, rows, (rows,), generator=generator)
    label_times = timestamps + 1_500 * torch.randint(0, 3, (rows,), generator=generator)
    targets = {}
    for name in TARGETS:
        done = torch.randint(0, 3, (rows,), generator=generator).float()
        # Whatever has the label has done all else, as a conversion takes a click.
        targets[name] = torch.where(done == 2, torch.nan, done.maximum(label))
    return Batch.single(
        rows,
        features,
        histories,
        label=label,
        users=users,
        timestamps=timestamps,
        label_time=label_times,
        task_labels=targets,
    )


def shared(candidates: int, events: int, seed: int = 0, fields: Fields = FIELDS, apart: int = 0) -> Batch:
    """Return a random batch of one user: some candidates, the first history of ``events`` events.

    Args:
        apart: each further history has this many events more than the one before.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = {name: events + apart * number for number, name in enumerate(fields.histories)}
    count = {field.name: candidates if field.side == "item" else 1 for field in fields.features}
    features = {field.name: values(field, count[field.name], generator) for field in fields.features}
    histories = {
        name: HistoryBatch({f.name: values(f, lengths[name], generator) for f in columns}, offsets([lengths[name]]))
        for name, columns in fields.histories.items()
    }
    return of_layout(Layout.shared(candidates), features, histories, fields)


def of_layout(
    layout: Layout,
    features: Mapping[str, Tensor | Jagged],
    histories: Mapping[str, HistoryBatch],
    fields: Fields = FIELDS,
    **own: Any,
) -> Batch:
    """Return a batch of a layout, with the features of items as those of candidates."""
    candidate = {field.name for field in fields.features if field.side == "item"}
    requests = {name: column for name, column in features.items() if name not in candidate}
    return Batch(layout, requests, {n: column for n, column in features.items() if n in candidate}, histories, **own)


def grouped(owner: Sequence[int], seed: int = 0, longest: int = 7, fields: Fields = FIELDS) -> Batch:
    """Return a random batch of candidates that name their request; some requests have an empty history."""
    requests, candidates = max(owner) + 1, len(owner)
    each, several = ragged(requests, seed, longest, fields=fields), ragged(candidates, seed + 1, longest, fields=fields)
    own = {field.name: several.features[field.name] for field in fields.features if field.side == "item"}
    labels = {name: getattr(several, name) for name in ("label", "users", "timestamps", "label_time", "task_labels")}
    layout = Layout.grouped(requests, np.array(owner, np.int64))
    return of_layout(layout, {**each.features, **own}, each.histories, fields, **labels)


def pick(column: Tensor | Jagged, index: Sequence[int] | Tensor) -> Tensor | Jagged:
    """Return the entries of a column at ``index``."""
    at = torch.as_tensor(index, dtype=torch.int64)
    if isinstance(column, Tensor):
        return column[at]
    spans = _spans(column.offsets, at.tolist())
    flat = torch.tensor([position for span in spans for position in span], dtype=torch.int64)
    weights = None if column.weights is None else column.weights[flat]
    return Jagged(column.values[flat], offsets([len(span) for span in spans]), weights)


def _spans(offsets: Tensor, rows: Sequence[int]) -> list[range]:
    bounds = offsets.tolist()
    return [range(bounds[row], bounds[row + 1]) for row in rows]


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return the batch of these rows of a ragged batch, in this order."""
    histories = {}
    for name, history in batch.histories.items():
        spans = _spans(history.offsets, rows)
        flat = [position for span in spans for position in span]
        columns = {column: pick(values, flat) for column, values in history.columns.items()}
        histories[name] = HistoryBatch(columns, offsets([len(span) for span in spans]))
    features = {name: pick(column, rows) for name, column in batch.features.items()}
    own = {name: getattr(batch, name) for name in ("label", "users", "timestamps", "label_time")}
    own = {name: values if values is None else values[list(rows)] for name, values in own.items()}
    targets = {name: values[list(rows)] for name, values in batch.task_labels.items()}
    return Batch.single(len(rows), features, histories, **own, task_labels=targets)


def join(batches: Sequence[Batch]) -> Batch:
    """Return the ragged batch of the rows of several ragged batches, one after the other."""
    histories = {}
    for name in batches[0].histories:
        own = [batch.histories[name] for batch in batches]
        columns = {column: _join([history.columns[column] for history in own]) for column in own[0].columns}
        histories[name] = HistoryBatch(columns, _join_offsets([history.offsets for history in own]))
    features = {name: _join([batch.features[name] for batch in batches]) for name in batches[0].features}
    own_names = [n for n in ("label", "users", "timestamps", "label_time") if getattr(batches[0], n) is not None]
    labels = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in own_names}
    targets = {name: torch.cat([batch.task_labels[name] for batch in batches]) for name in batches[0].task_labels}
    return Batch.single(sum(batch.size for batch in batches), features, histories, **labels, task_labels=targets)


def _join(columns: Sequence[Tensor | Jagged]) -> Tensor | Jagged:
    plain = [column for column in columns if isinstance(column, Tensor)]
    if plain:
        return torch.cat(plain)
    jagged = [column for column in columns if isinstance(column, Jagged)]
    weights = [column.weights for column in jagged if column.weights is not None]
    offsets = _join_offsets([column.offsets for column in jagged])
    return Jagged(torch.cat([column.values for column in jagged]), offsets, torch.cat(weights) if weights else None)


def _join_offsets(offsets: Sequence[Tensor]) -> Tensor:
    return torch.cat([offsets[0][:1], torch.cat([one.diff() for one in offsets]).cumsum(0)])


def repeated(batch: Batch, fields: Fields = FIELDS) -> Batch:
    """Return the ragged batch that says the same as a shared one."""
    rows = batch.size
    features = {
        field.name: batch.features[field.name] if field.side == "item" else pick(batch.features[field.name], [0] * rows)
        for field in fields.features
    }
    histories = {}
    for name, history in batch.histories.items():
        events = int(history.offsets[-1])
        columns = {column: pick(values, list(range(events)) * rows) for column, values in history.columns.items()}
        histories[name] = HistoryBatch(columns, offsets([events] * rows))
    return Batch.single(rows, features, histories)


def with_history(batch: Batch, name: str, columns: Mapping[str, Tensor | Jagged]) -> Batch:
    """Return the batch with some columns of one history replaced."""
    history = batch.histories[name]
    changed = replace(history, columns={**history.columns, **columns})
    return replace(batch, histories={**batch.histories, name: changed})


def with_feature(batch: Batch, name: str, column: Tensor | Jagged) -> Batch:
    """Return the batch with one feature replaced."""
    if name in batch.requests:
        return replace(batch, requests={**batch.requests, name: column})
    return replace(batch, candidates={**batch.candidates, name: column})
