"""Schema and batches for the figures and counts of the model pages: a shop of items and clicks."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch, Jagged, Layout
from longrec.features.fields import COMPUTED, Field, Fields
from longrec.models.core.base import Model
from longrec.models.core.catalog import is_model
from longrec.models.core.kinds import FittedRetriever, Retriever
from longrec.models.core.registry import build, find

CANDIDATES, EVENTS, ROWS, POSITIONS = 19, 23, 19, 83
"""Numbers that are unlikely to occur elsewhere in a model, so that a shape identifies what it counts."""

GAP, SINCE, SESSION = (Field(name, "id", rows) for name, rows in COMPUTED.items())
ITEM, CATEGORY = Field("item", "id", 1_000, side="item"), Field("category", "id", 50, side="item")
ACTION = Field("action", "id", 6, feedback=True)
TOKENS = (Field("tokens.token", "embedding", 0, width=64), Field("tokens.label", "id", 4, feedback=True), GAP)
SHOP = Fields(
    features=(
        Field("user", "id", 500, side="user"),
        Field("age", "numeric", 0, side="user"),
        Field("hour", "id", 26),
        ITEM,
        CATEGORY,
        Field("price", "numeric", 0, side="item"),
    ),
    histories={"clicks": (ITEM, CATEGORY, ACTION, GAP)},
)
CODES = tuple(Field(f"code_{level}", "id", 66, side="item") for level in (1, 2, 3))
"""Codes of the semantic IDs of items, for generators."""
KNOWLEDGE = (
    Field("about_user", "embedding", 0, side="user", width=33),
    Field("about_item", "embedding", 0, side="item", width=33),
)


def schemas(name: str) -> list[Fields]:
    """Return schemas for a model, the plainest first: with sessions, with knowledge of users and items, with two
    histories, with codes of items.

    A model that reads tokens (its file imports ``TokenInput``) gets a history of them too.
    """
    sessions = replace(SHOP, histories={"clicks": (*SHOP.histories["clicks"], SINCE, SESSION)})
    with_knowledge = replace(SHOP, features=(*SHOP.features, *KNOWLEDGE))
    several = replace(with_knowledge, histories={**sessions.histories, "carted": SHOP.histories["clicks"]})
    clicks = (*SHOP.histories["clicks"], *CODES)
    with_codes = replace(SHOP, features=(*SHOP.features, *CODES), histories={"clicks": clicks})
    choices = [SHOP, sessions, with_knowledge, several, with_codes]
    if _reads_tokens(name):
        return [replace(fields, histories={**fields.histories, "tokens": TOKENS}) for fields in choices]
    return choices


def small(name: str, width: int = 16) -> tuple[Model, Fields]:
    """Return a model with its default settings, in evaluation mode, and the plainest schema it accepts.

    Args:
        width: of all embeddings.

    Raises:
        ConfigError: no schema fits. The error is that of the plainest schema.
    """
    first = None
    for fields in schemas(name):
        wide = replace(
            fields,
            features=tuple(replace(field, dim=width) for field in fields.features),
            histories={
                key: tuple(replace(field, dim=width) for field in columns) for key, columns in fields.histories.items()
            },
        )
        torch.manual_seed(0)
        settings = {"name": name, **extra_settings(name), **_widths(find(name).Config, width)}
        try:
            model = build(settings, wide).eval()
            if isinstance(model, FittedRetriever):
                model.fit_statistics([some_rows(wide, [EVENTS] * 40).histories])
            return model, wide
        except ConfigError as error:
            first = first or error
    assert first is not None
    raise first


def extra_settings(name: str) -> dict[str, Any]:
    """Return the settings that a model needs to show its own computation: a second label for multi-task models."""
    tasks = find(name).Config.model_fields.get("tasks")
    return {"tasks": {"bought": 1.0}} if tasks is not None and tasks.default == {} else {}


def _widths(config: type[Strict], width: int) -> dict[str, Any]:
    """Return the setting of the width of all embeddings, for a model and the models inside it."""
    widths: dict[str, Any] = {"embedding_dim": width} if "embedding_dim" in config.model_fields else {}
    for name, setting in config.model_fields.items():
        base = setting.default
        if isinstance(base, dict) and is_model(str(base.get("name"))):
            widths[name] = {**base, **_widths(find(base["name"]).Config, width)}
    return widths


def _reads_tokens(name: str) -> bool:
    spec = importlib.util.find_spec(name if "." in name else f"longrec.models.{name}")
    if spec is None or spec.origin is None:
        return False
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    return "TokenInput" in imported


def score(model: Model, batch: Batch) -> Tensor:
    """Return the logits of candidates, or the scores of a retriever, whose catalog they are."""
    if isinstance(model, Retriever):
        return model.score_catalog(batch, batch.candidates)
    out: Tensor = model(batch)
    return out


def with_one_item(batch: Batch, fields: Fields) -> Batch:
    """Return the requests of a batch, with the item of its first candidate alone as the catalog of a retriever."""
    first, items = torch.zeros(1, dtype=torch.int64), {field.name for field in fields.features if field.side == "item"}
    columns = {
        name: column[:1] if isinstance(column, Tensor) else column.select_rows(first)
        for name, column in batch.features.items()
        if name in items
    }
    requests = {name: column for name, column in batch.features.items() if name not in items}
    return Batch(Layout.catalog(batch.layout.requests, 1), requests, columns, batch.histories)


def one_request(fields: Fields, candidates: int = CANDIDATES, events: int = EVENTS) -> Batch:
    """Return one user with some candidates, each history of ``events`` events."""
    generator = torch.Generator().manual_seed(1)
    features = {f.name: _values(f, candidates if f.side == "item" else 1, generator) for f in fields.features}
    histories = {
        name: HistoryBatch({f.name: _values(f, events, generator) for f in columns}, _offsets([events]))
        for name, columns in fields.histories.items()
    }
    items = {field.name for field in fields.features if field.side == "item"}
    requests = {name: column for name, column in features.items() if name not in items}
    return Batch(Layout.shared(candidates), requests, {n: features[n] for n in features if n in items}, histories)


def some_rows(fields: Fields, lengths: Sequence[int]) -> Batch:
    """Return one row per length, of three users, as in training."""
    generator, rows = torch.Generator().manual_seed(1), len(lengths)
    features = {f.name: _values(f, rows, generator) for f in fields.features}
    histories = {
        name: HistoryBatch({f.name: _values(f, sum(lengths), generator) for f in columns}, _offsets(lengths))
        for name, columns in fields.histories.items()
    }
    timestamps = torch.arange(rows) * 1_000
    users = torch.arange(rows) * 3 // rows
    label = torch.randint(0, 2, (rows,), generator=generator).float()
    return Batch.single(
        rows, features, histories, label=label, users=users, timestamps=timestamps, label_time=timestamps + 500
    )


def ragged_rows(fields: Fields) -> Batch:
    """Return ``ROWS`` rows whose histories hold ``POSITIONS`` events together."""
    lengths = [POSITIONS // ROWS] * ROWS
    lengths[0] += POSITIONS - sum(lengths)
    return some_rows(fields, lengths)


def _values(field: Field, count: int, generator: torch.Generator) -> Tensor | Jagged:
    if field.kind == "numeric":
        return torch.randn(count, generator=generator)
    if field.kind in ("embedding", "numbers"):
        numbers = torch.randn(count, field.width, generator=generator)
        if field.kind == "embedding":
            numbers[:, 0] = 1
        return numbers
    ids = torch.randint(2, max(field.rows - 1, 3), (count,), generator=generator, dtype=torch.int32)
    return ids if field.kind == "id" else Jagged(ids, torch.arange(count + 1))


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
