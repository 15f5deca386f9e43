"""A shop with features computed from columns of a row, and of the candidates: its log, model and bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shop
import torch

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.requests import build_impression
from longrec.data.settings import DataConfig
from longrec.exporting.golden import Sample
from longrec.exporting.offline import build_golden_request
from longrec.exporting.write import export
from longrec.features.schema import Schema
from longrec.serve.service import Service, replay

FEATURES: dict[str, Any] = {
    "user": {"kind": "id"},
    "item": {"kind": "id", "hash": 50},
    "brand": {"kind": "id", "side": "candidate"},
    "price": {"kind": "bucketized", "side": "candidate", "edges": [2, 4, 6]},
    "price_hash": {"kind": "id", "side": "candidate", "column": "shop_id", "hash": 9},
    "discount": {"kind": "numeric", "side": "candidate", "scale": "log"},
    "words": {"kind": "multi_id", "side": "candidate", "separator": "|", "weight_separator": ":", "pool": "sum"},
    "labels": {"kind": "multi_id", "side": "candidate", "weights": "label_weights"},
    "sizes": {"kind": "numeric", "side": "candidate", "width": 3, "separator": ";", "missing": 1.5},
    "page": {"kind": "id"},
    "page_hash": {"kind": "id", "column": "page", "hash": 7},
    "stats": {"kind": "numeric", "width": 2},
    "tags": {"kind": "multi_id", "separator": "|", "weight_separator": ":", "hash": 40},
    "brand_now": {"kind": "id", "share": "brand", "column": "looked_at"},
    "page_and_hour": {"kind": "cross", "features": ["page", "hour"], "hash": 60},
    "all_keys": {"kind": "cross", "features": ["user", "item", "brand", "page"], "hash": 90},
    "paid": {"kind": "lookup", "map": "prices", "key": "brand", "as": "numeric"},
    "paid_cut": {"kind": "lookup", "map": "prices", "key": "brand", "as": "bucketized", "edges": [2, 5]},
    "match": {
        "kind": "lookup",
        "map": "brands_of_page",
        "outer_key": "page",
        "key": "brand",
        "outer_separator": "|",
        "as": "numeric",
    },
    "last_of": {"kind": "lookup", "map": "lasts", "key": "page", "pair_separator": "=", "separator": "&"},
}
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "s"},
    "label": "click",
    "features": FEATURES,
    "histories": {"seen": {"features": ["item", "brand", "price", "all_keys", "time_gap"], "max_length": 5}},
}
PREJOINED: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "label": "click",
    "features": {name: FEATURES[name] for name in ("user", "item", "brand", "price", "page", "all_keys")},
    "histories": {
        "brands": {
            "features": ["brand", "price"],
            "columns": {"brand": "past_brands", "price": "past_prices"},
            "max_length": 3,
        }
    },
}


def make_rows(n: int = 160) -> pa.Table:
    rng = np.random.default_rng(4)

    def draw_column(make: Callable[[int], Any], share: float = 0.15) -> list[Any]:
        return [None if rng.random() < share else make(k) for k in range(n)]

    def pairs(between: str, name: str, count: int = 3) -> str:
        return between.join(f"{name}{rng.integers(5)}:{rng.integers(1, 9) / 4}" for _ in range(rng.integers(count)))

    lengths = [int(rng.integers(5)) for _ in range(n)]
    return pa.table(
        {
            "user": [f"u{rng.integers(8)}" for _ in range(n)],
            "item": rng.integers(0, 30, n),
            "t": 1_600_000_000 + rng.integers(0, 500, n),
            "click": rng.integers(0, 2, n),
            "brand": draw_column(lambda k: f"b{rng.integers(6)}"),
            "price": draw_column(lambda k: float(rng.integers(0, 8))),
            "shop_id": rng.integers(0, 30, n),
            "discount": draw_column(lambda k: float(rng.normal())),
            "words": draw_column(lambda k: "|".join(filter(None, [pairs("|", "w"), "plain" if k % 3 else ":0.5"]))),
            "labels": [[f"l{m}" for m in range(k % 3)] for k in range(n)],
            "label_weights": [[0.25 * (m + 1) for m in range(k % 3)] for k in range(n)],
            "sizes": draw_column(lambda k: f"{k}.5; {k % 3};" if k % 5 else f"{k};1e-3;2"),
            "page": draw_column(lambda k: f"p{rng.integers(3)}"),
            "stats": draw_column(lambda k: [float(rng.normal()), None if k % 4 == 0 else 2.0]),
            "tags": draw_column(lambda k: pairs("|", "t")),
            "looked_at": draw_column(lambda k: f"b{rng.integers(9)}"),
            "hour": draw_column(lambda k: int(rng.integers(24))),
            "prices": draw_column(
                lambda k: ",".join(f"b{m}:{rng.integers(9)}.5" for m in range(6) if rng.random() < 0.8)
            ),
            "brands_of_page": draw_column(
                lambda k: "|".join(
                    f"p{m}^" + ",".join(f"b{rng.integers(6)}:{rng.integers(9)}.5" for _ in range(4)) for m in range(2)
                )
            ),
            "lasts": draw_column(lambda k: "&".join(f"p{m}=x{rng.integers(4)}" for m in range(3))),
            "past_brands": [[f"b{m}" for m in range(k)] for k in lengths],
            "past_prices": [[float(m) for m in range(k)] for k in lengths],
        }
    )


@dataclass(frozen=True)
class ExportedLog:
    table: pa.Table
    log: Log
    model: Any
    bundle: Path


def export_log(folder: Path, schema: Mapping[str, Any]) -> ExportedLog:
    pq.write_table(make_rows(), folder / "log.parquet")
    split = {"by": "user", "valid": 0.1, "test": 0.1}
    config = DataConfig.model_validate(
        {"log": str(folder / "log.parquet"), "folder": str(folder / "prepared"), "threads": 1, "split": split}
    )
    log = Log.open(prepare(config, Schema.model_validate(schema)))
    torch.manual_seed(1)
    model = shop.HistoryRanker(shop.PlainConfig(), log.fields()).eval()
    samples = [Sample(**build_impression(log, row, range(1, 6))) for row in (3, 40, 77)]
    goldens = [build_golden_request(model, log.fitted, log.users, log.items, sample) for sample in samples]
    export(model, log.folder, folder / "bundle", goldens, replay, fitted=log.fitted)
    return ExportedLog(pq.read_table(folder / "log.parquet"), log, model, folder / "bundle")


def sort_rows(exported: ExportedLog) -> list[dict[str, Any]]:
    """Return the raw rows in the order of the log: by user, time, and position in the file."""
    raw = exported.table.to_pylist()
    timed = exported.log.schema.time is not None
    order = sorted(range(len(raw)), key=lambda k: (raw[k]["user"], raw[k]["t"] if timed else 0, k))
    return [raw[k] for k in order]


def build_request(service: Service, row: Mapping[str, Any], others: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Build the request of a row, beside others which each have their own columns."""
    encoder = service.served.encoder
    rows = [row, *others]
    request: dict[str, Any] = {
        "user": row["user"],
        "candidates": [one["item"] for one in rows],
        "context": {column: row[column] for column in encoder.context},
        "candidate_context": {column: [one[column] for one in rows] for column in encoder.candidate_context},
    }
    if service.bundle.fitted.schema.time is not None:
        request["at"] = row["t"]
    else:
        request["history"] = {"brands": {"brand": row["past_brands"], "price": row["past_prices"]}}
    return request
