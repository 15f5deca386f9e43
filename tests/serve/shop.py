"""Small shops with every kind of feature: a prepared log, a model, and its bundle, each built once.

The log is written here column by column, without the data package, so that serving is compared with an independent
implementation.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longrec.config import Strict
from longrec.exporting.bundle import Bundle
from longrec.exporting.golden import GoldenRequest, Sample
from longrec.exporting.offline import build_golden_request
from longrec.exporting.write import CatalogOptions, export
from longrec.features.batch import Batch, Jagged
from longrec.features.encoder_fitter import EncoderFitter
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import Lists, flatten
from longrec.features.fitted_schema import FittedSchema, concat_lists
from longrec.features.history_columns import HistoryEvents, build_history_columns, compute_filter_delay, match_condition
from longrec.features.schema import Schema
from longrec.features.vocabulary import Keys
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.nn.embedding import Embeddings
from longrec.nn.segments import Segments
from longrec.serve.service import replay
from longrec.store.segment import Segment

FULL: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "auto"},
    "label": {"column": "rating", "at_least": 4},
    "label_delay": "2s",
    "features": {
        "user_id": {"kind": "id"},
        "age": {"kind": "numeric", "side": "user", "scale": "standard"},
        "hobbies": {"kind": "multi_id", "side": "user", "separator": "|"},
        "item_id": {"kind": "id"},
        "price": {"kind": "bucketized", "side": "item", "quantiles": 4},
        "genres": {"kind": "multi_id", "side": "item", "pool": "sum"},
        "actors": {"kind": "multi_id", "side": "item", "hash": 40, "weights": "fame"},
        "device": {"kind": "id"},
        "shown": {"kind": "numeric", "scale": "log"},
        "shown_cut": {"kind": "bucketized", "column": "shown", "log_square": True},
        "campaign": {"kind": "id", "hash": 50},
        "tags": {"kind": "multi_id", "side": "context", "weights": "tag_weights", "pool": "max"},
        "hour": {"kind": "calendar", "component": "hour_of_week", "utc_offset": 1.5},
        "rating": {"kind": "id", "feedback": True},
        "dwell": {"kind": "bucketized", "edges": [5, 20], "feedback": True, "available_at": "dwell_known"},
    },
    "histories": {
        "seen": {
            "features": ["item_id", "genres", "actors", "device", "rating", "dwell", "time_gap"],
            "max_length": 12,
        },
        "liked": {
            "features": ["item_id", "time_gap", "time_since_previous", "session_recency"],
            "max_length": 5,
            "where": {"rating": {"at_least": 4}},
            "session_gap": "5s",
        },
    },
}
STEPS: dict[str, Any] = {
    "user": "name",
    "item": "film",
    "time": {"column": "step", "unit": "step"},
    "label": "click",
    "features": {"name": {"kind": "id"}, "film": {"kind": "id"}, "place": {"kind": "bucketized", "edges": [2, 4]}},
}
PREJOINED: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "label": "click",
    "features": {
        "user_id": {"kind": "id"},
        "item_id": {"kind": "id"},
        "color": {"kind": "id", "side": "item"},
        "slot": {"kind": "id"},
    },
    "histories": {
        "clicks": {"features": ["item_id", "color"], "max_length": 6, "columns": {"item_id": "ids", "color": "colors"}}
    },
}


class PlainConfig(Strict):
    width: int = 4


class PlainRanker(Ranker):
    """Ranker of sums and means of embeddings, written from the interface alone."""

    Config = PlainConfig

    def __init__(self, config: PlainConfig, fields: Any) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.width, width=config.width, std=0.5)
        self.out = nn.Linear(config.width, 1)

    def forward(self, batch: Batch) -> Tensor:
        embedded = self.embeddings(batch)
        return self.out(torch.stack(list(embedded.features.values())).sum(0).tanh()).squeeze(1)

    def output_biases(self) -> list[Tensor]:
        return [self.out.bias]


class HistoryRanker(Ranker):
    """Ranker with dot-product attention and repeat_interleave, which a program must support."""

    Config = PlainConfig
    reads_history = True

    def __init__(self, config: PlainConfig, fields: Any) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.width, width=config.width, histories=True, std=0.5)
        self.out = nn.Linear(2 * config.width, 1)

    def forward(self, batch: Batch) -> Tensor:
        embedded = self.embeddings(batch)
        query = torch.stack(list(embedded.features.values())).sum(0)
        pooled = torch.zeros_like(query)
        for name, columns in embedded.histories.items():
            keys = torch.stack(list(columns.values())).sum(0)
            segments = Segments.of(batch, name)
            weight = segments.softmax((segments.mul(query, keys)).sum(1))
            pooled = pooled + segments.weighted_sum(weight, keys)
        for column in batch.features.values():
            if isinstance(column, Jagged):
                segments = Segments.of_values(column)
                ones = torch.ones_like(column.values, dtype=torch.float32)
                count = torch.zeros(segments.rows).index_add(0, segments.row, ones)
                query = query + count.unsqueeze(1)
        return self.out(torch.cat([query, pooled], 1)).squeeze(1)

    def output_biases(self) -> list[Tensor]:
        return [self.out.bias]


@dataclass(frozen=True, repr=False)
class Shop:
    log: Path
    fitted: FittedSchema
    users: EntityTable
    items: EntityTable
    segment: Segment
    event_lists: dict[str, Lists]
    bundle: Path
    model: Ranker
    golden: list[GoldenRequest]
    histories: dict[str, dict[str, Lists]]
    things: pa.Table

    def sample(self, row: int, items: NDArray[Any], timestamp: int | None = None) -> Sample:
        """Return the impression of a row of the log, in encoded values."""
        user = int(np.searchsorted(self.segment.offsets, row, side="right")) - 1
        timestamp = int(self.segment.times[row]) if timestamp is None else timestamp
        schema = self.fitted.schema
        events: dict[str, Any] = {}
        for name in self.fitted.list_features("context"):
            feature = schema.features[name]
            if feature.feedback or feature.kind == "calendar":
                continue
            if feature.kind == "multi_id":
                events[name] = select_row(self.event_lists[name], row)
            else:
                events[name] = self.segment.columns[name][row]
        if schema.prejoined:
            histories: Any = {
                history: {name: select_row(column, row).values for name, column in columns.items()}
                for history, columns in self.histories.items()
            }
        else:
            histories = {name: self.history(user, name, timestamp) for name in schema.histories}
        return Sample(user, items, timestamp, events, histories)

    def history(self, user: int, name: str, timestamp: int) -> dict[str, Any]:
        """Read a history by a linear search."""
        history, columns = self.fitted.schema.histories[name], self.segment.columns
        cut = timestamp - compute_filter_delay(self.fitted, name)
        own = range(int(self.segment.offsets[user]), int(self.segment.offsets[user + 1]))
        rows = [row for row in own if self.segment.times[row] < cut]
        if history.where:
            rows = [row for row in rows if columns[f"where.{name}"][row]]
        at = np.array(rows[-history.max_length :], np.int64)
        view = HistoryEvents(
            self.segment.times[at],
            columns["item"][at],
            {n: c[at].astype(np.int32) for n, c in columns.items() if "." not in n and c.dtype.kind != "f"},
            {n.removeprefix("known."): c[at] for n, c in columns.items() if n.startswith("known.")},
        )
        return build_history_columns(self.fitted, name, self.items, view, np.array([timestamp]))


def select_row(column: Lists, row: int) -> Lists:
    span = slice(int(column.offsets[row]), int(column.offsets[row + 1]))
    weights = None if column.weights is None else column.weights[span]
    return Lists(column.values[span], np.array([0, span.stop - span.start]), weights)


def _fit_schema(schema: Schema, sources: dict[str, tuple[pa.Array, str | None]]) -> FittedSchema:
    encoders = {}
    for name, feature in schema.features.items():
        fitter = EncoderFitter(name, feature)
        if feature.kind != "calendar":
            values = sources[name][0]
            if feature.kind == "multi_id":
                values, _ = flatten(values, feature.separator, name)
            fitter.add(values, np.ones(len(values), np.int64), name)
        encoders[name] = fitter.finish()
    return FittedSchema(schema, encoders)


def _make_table(fitted: FittedSchema, owner: str, keys: pa.Array, columns: dict[str, pa.Array]) -> EntityTable:
    table_columns: dict[str, Any] = {}
    for name in fitted.list_features(owner):
        feature = fitted.schema.features[name]
        weights = None if feature.weights is None else columns[feature.weights]
        values = fitted.encode(name, columns[fitted.schema.column(name)], name, weights)
        unknown = fitted.encode_unknown(name)
        if isinstance(values, Lists):
            assert isinstance(unknown, Lists)
            table_columns[name] = concat_lists([unknown, values])
        else:
            table_columns[name] = np.concatenate([unknown, values])
    return EntityTable(Keys(keys), table_columns)


def make(
    folder: Path,
    content: dict[str, Any],
    events: dict[str, pa.Array],
    users: dict[str, pa.Array],
    items: dict[str, pa.Array],
    model: Callable[[Any], Ranker],
) -> Shop:
    """Write a prepared log from raw columns (events in any order) and export a model over it."""
    schema = Schema.model_validate(content)
    time = schema.time.column if schema.time else None
    owned = {"context": events, "user": users, "item": items}
    sources = {n: (owned[schema.side(n)].get(schema.column(n)), None) for n in schema.features}
    fitted = _fit_schema(schema, sources)
    user_table = _make_table(fitted, "user", users[schema.user], users)
    item_table = _make_table(fitted, "item", items[schema.item], items)
    rows = user_table.rows(events[schema.user], "user")
    times = events[time].to_numpy() if time else np.zeros(len(rows), np.int64)
    order = np.lexsort((times, rows))
    columns: dict[str, NDArray[Any]] = {"item": item_table.rows(events[schema.item], "item")[order].astype(np.uint16)}
    lists: dict[str, Lists] = {}
    for name in fitted.list_features("context"):
        feature = schema.features[name]
        if feature.kind == "calendar":
            continue
        weights = None if feature.weights is None else events[feature.weights].take(pa.array(order))
        values = fitted.encode(name, events[schema.column(name)].take(pa.array(order)), name, weights)
        if isinstance(values, Lists):
            lists[name] = values
        else:
            columns[name] = values if values.dtype.kind == "f" else values.astype(np.uint16)
        if feature.available_at:
            columns[f"known.{name}"] = events[feature.available_at].to_numpy()[order]
    for name, history in schema.histories.items():
        if history.where:
            met = [
                match_condition(c, events[column].take(pa.array(order)), column) for column, c in history.where.items()
            ]
            columns[f"where.{name}"] = np.logical_and.reduce(met).astype(np.uint8)
    histories: dict[str, dict[str, Lists]] = {}
    for name, history in schema.histories.items():
        for column, raw in (history.columns or {}).items():
            flat, offsets = flatten(events[raw].take(pa.array(order)), None, raw)
            ids = fitted.encoders[column].encode(flat, raw)  # type: ignore[union-attr]
            chunks = [ids[a:b][-history.max_length :] for a, b in zip(offsets[:-1], offsets[1:])]
            lengths = [0, *np.cumsum([len(chunk) for chunk in chunks])]
            histories.setdefault(name, {})[column] = Lists(np.concatenate(chunks), np.array(lengths))
    offsets = np.searchsorted(rows[order], np.arange(len(user_table) + 1))
    segment = Segment(offsets, times[order], columns)
    log, out = folder / "log", folder / "bundle"
    fitted.save(log / "schema")
    user_table.save(log / "users")
    item_table.save(log / "items")
    segment.write(log / "events")
    torch.manual_seed(3)
    ranker = model(fitted.fields()).eval()
    shop = Shop(log, fitted, user_table, item_table, segment, lists, out, ranker, [], histories, pa.table(items))
    rng = np.random.default_rng(5)
    wanted = [int(row) for row in rng.choice(len(segment), 12, replace=False)]
    for row in wanted:
        others = rng.permutation(np.arange(1, len(item_table)))[: rng.integers(1, 20)]
        shop.golden.append(build_golden_request(ranker, fitted, user_table, item_table, shop.sample(row, others)))
    export(ranker, log, out, shop.golden, replay, source={"run": "shop"}, catalog=CatalogOptions(shop.things))
    return shop


@functools.cache
def full() -> Shop:
    """Build a shop with every kind of feature, two histories, text items, and times in milliseconds with many ties."""
    rng = np.random.default_rng(1)
    users, items, count = 9, 40, 400
    start = 1_600_000_000_000
    times = start + rng.integers(0, 60, count) * 1_000
    tag_names = ["sun", "sea", "sky", "ice"]
    lists = [list(map(str, rng.choice(tag_names, rng.integers(0, 3)))) for _ in range(count)]
    events = {
        "user_id": pa.array(rng.integers(1, users + 1, count) * 11),
        "item_id": pa.array([f"i{n}" for n in rng.integers(0, items, count)]),
        "at": pa.array(times),
        "rating": pa.array(rng.integers(1, 6, count)),
        "dwell": pa.array([None if n % 7 == 0 else float(n % 40) for n in rng.integers(0, 100, count)]),
        "dwell_known": pa.array(times + rng.integers(0, 9_000, count)),
        "device": pa.array([None if n == 0 else f"d{n}" for n in rng.integers(0, 4, count)]),
        "shown": pa.array(np.round(rng.lognormal(1, 2, count), 2)),
        "campaign": pa.array(rng.integers(0, 1_000, count)),
        "tags": pa.array(lists, pa.list_(pa.string())),
        "tag_weights": pa.array(
            [[float(len(word) + i) for i, word in enumerate(row)] for row in lists], pa.list_(pa.float64())
        ),
    }
    people = {
        "user_id": pa.array(np.arange(1, users + 1) * 11),
        "age": pa.array([None if n == 4 else 20.0 + n for n in range(users)]),
        "hobbies": pa.array(["", "chess", "chess|golf", "golf", "go|chess|golf", "", "go", "go|go", "golf"]),
    }
    cast = [rng.integers(0, 90, rng.integers(0, 4)).tolist() for _ in range(items)]
    things = {
        "item_id": pa.array([f"i{n}" for n in range(items)]),
        "price": pa.array(np.round(rng.lognormal(2, 1, items), 2)),
        "genres": pa.array(
            [list(map(str, rng.choice(["a", "b", "c"], n % 3, replace=False))) for n in range(items)],
            pa.list_(pa.string()),
        ),
        "actors": pa.array(cast, pa.list_(pa.int64())),
        "fame": pa.array([[0.5 + i for i, _ in enumerate(row)] for row in cast], pa.list_(pa.float64())),
        "year": pa.array([None if n == 9 else 1980 + n for n in range(items)]),
    }
    # the activations whose usual ONNX translations are slow or easily wrong
    settings = {"name": "din", "attention": [8, 4], "mlp": [8], "embedding_dim": 4, "init_std": 0.5}
    settings |= {"activation": "prelu", "mlp_activation": "dice", "softmax": True}
    return make(_make_folder(), FULL, events, people, things, lambda fields: build(settings, fields))


@functools.cache
def steps() -> Shop:
    """Build a shop with text users, integer films, steps for times, and a model that reads no history."""
    rng = np.random.default_rng(2)
    count = 60
    events = {
        "name": pa.array([f"n{n}" for n in rng.integers(0, 5, count)]),
        "film": pa.array(rng.integers(1, 9, count)),
        "step": pa.array(np.arange(count)),
        "click": pa.array(rng.integers(0, 2, count)),
        "place": pa.array(rng.integers(0, 6, count)),
    }
    people, things = {"name": pa.array([f"n{n}" for n in range(5)])}, {"film": pa.array(np.arange(1, 9))}
    return make(_make_folder(), STEPS, events, people, things, lambda fields: PlainRanker(PlainConfig(), fields))


@functools.cache
def prejoined() -> Shop:
    """Build a shop with pre-joined histories, and no times."""
    rng = np.random.default_rng(4)
    count = 50
    item_ids = [rng.integers(1, 12, rng.integers(0, 10)).tolist() for _ in range(count)]
    colors = ["red", "green", "blue"]
    events = {
        "user_id": pa.array(rng.integers(1, 6, count)),
        "item_id": pa.array(rng.integers(1, 10, count)),
        "click": pa.array(rng.integers(0, 2, count)),
        "slot": pa.array(rng.integers(0, 4, count)),
        "ids": pa.array(item_ids, pa.list_(pa.int64())),
        "colors": pa.array(
            [[None if n == 5 else colors[n % 3] for n in row] for row in item_ids], pa.list_(pa.string())
        ),
    }
    things = {"item_id": pa.array(np.arange(1, 10)), "color": pa.array([colors[n % 3] for n in range(1, 10)])}
    people = {"user_id": pa.array(np.arange(1, 6))}
    return make(_make_folder(), PREJOINED, events, people, things, lambda fields: HistoryRanker(PlainConfig(), fields))


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="shop-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def open_bundle(shop: Shop) -> Bundle:
    return Bundle.open(shop.bundle)
