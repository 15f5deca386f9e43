"""A shop whose server records events: its log, its run, its bundle, and the rows that follow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import longrec
from longrec.features.token_columns import compute_instance_ids
from longrec.serve.knowledge_features import key_number
from longrec.serve.service import Service
from longrec.serve.settings import build_settings

START, USERS, ITEMS, ROWS, NEW = 1_700_000_000_000, 12, 15, 400, 120
SCHEMA: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "ms", "available_at": "arrived"},
    "label": "click",
    "features": {
        "user_id": {"kind": "id"},
        "item_id": {"kind": "id"},
        "kind": {"kind": "id", "side": "item"},
        "country": {"kind": "id", "side": "user"},
        "price": {"kind": "bucketized", "edges": [2, 4], "side": "candidate"},
        "place": {"kind": "id"},
        "mood": {"kind": "id"},
        "stars": {"kind": "bucketized", "edges": [2, 4], "feedback": True, "available_at": "starred_at"},
    },
    "histories": {
        "seen": {"features": ["item_id", "kind", "price", "place", "stars", "time_gap"], "max_length": 6},
        "aside": {"features": ["item_id"], "max_length": 3, "where": {"place": "side"}},
    },
}
RANK, RECORD, STARS = range(3)
MODEL = {"name": "din", "embedding_dim": 4, "attention": [6], "mlp": [8], "init_std": 0.5}


class Trained(NamedTuple):
    """A run on the first rows of a log, its bundle, and the rows after them."""

    run: longrec.Run
    bundle: Path
    rows: list[dict[str, Any]]


def make_rows() -> list[dict[str, Any]]:
    """Return impressions in the order of time, with many shared timestamps, new users, late arrivals and late stars."""
    random, rows = np.random.default_rng(3), []
    for number in range(ROWS + NEW):
        at = START + 60_000 * (number // 3)
        item = int(random.integers(0, ITEMS))
        stars = None if random.random() < 0.4 else float(random.integers(0, 6))
        rows.append({
            "user_id": int(random.integers(0, USERS if number < ROWS else USERS + 3)),
            "item_id": f"i{item}",
            "price": item % 6,
            "mood": ("glad", "sad")[number % 2],
            "at": at,
            "arrived": at,
            "place": ("top", "side", "foot")[random.integers(0, 3)],
            "stars": stars,
            "starred_at": None if stars is None else at + int(random.integers(0, 4)) * 45_000,
            "click": int(random.random() < 0.5),
        })  # fmt: skip
    once = {(row["user_id"], row["item_id"], row["at"]): row for row in rows}  # one event has one user, item and time
    users, items, times = (
        np.array([key_number(key[at]) if at < 2 else key[at] for key in once], np.int64) for at in range(3)
    )
    order = np.lexsort((compute_instance_ids(users, items, times), times))  # of one timestamp as the server has them
    return [list(once.values())[at] for at in order]


def train_shop(
    folder: Path, schema: dict[str, Any] | None = None, model: dict[str, Any] | None = None, states: bool = False
) -> Trained:
    """Train on the first rows of the log, and export."""
    rows, numbers = make_rows(), range(ITEMS)
    items: dict[str, Any] = {
        "item_id": [f"i{n}" for n in numbers],
        "kind": [n % 4 for n in numbers],
        "price": [n % 6 for n in numbers],
    }
    items["Item_Title"] = [f"Item {n}" if n else None for n in numbers]  # which no feature reads
    users = {"user_id": list(range(USERS)), "country": [f"c{n % 3}" for n in range(USERS)]}
    for name, table in {"items": items, "users": users}.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    pq.write_table(pa.Table.from_pylist(rows[: ROWS - 20]), folder / "log.parquet")
    data = {name: str(folder / f"{name}.parquet") for name in ("log", "items", "users")} | {"schema": schema or SCHEMA}
    fit = {"max_steps": 4, "runs": str(folder / "runs"), "tensorboard": "off"}
    config = {"name": "live", "data": {**data, "folder": str(folder / "prepared")}, "model": model or MODEL, "fit": fit}
    run = longrec.train({**config, "evaluate": {"n_resamples": 2}}, quiet=True)
    longrec.export(run, folder / "live.bundle", states=states)
    return Trained(run, folder / "live.bundle", rows[ROWS - 20 :])


class Clock:
    """Clock with a settable time."""

    now = START

    def __call__(self) -> int:
        return self.now


@contextlib.contextmanager
def serve(trained: Trained, state: str | Path, clock: Clock | None = None) -> Iterator[Service]:
    """Serve the bundle with events."""
    settings = build_settings(events=True, state=state)
    with contextlib.closing(Service(trained.bundle, settings, clock or Clock())) as service:
        yield service


def rank(service: Service, row: dict[str, Any], at: int | None = None, **change: Any) -> float:
    """Return the score of the item of a row."""
    request = {"user": row["user_id"], "candidates": [row["item_id"]], "at": row["at"] if at is None else at}
    request |= {"context": {"place": row["place"], "mood": row["mood"]}, "allow_unknown": True}
    request |= {"candidate_context": {"price": [row["price"]]}, **change}
    return float(orjson.loads(service.answer(orjson.dumps(request)))["items"][0]["score"])


def record(service: Service, row: dict[str, Any], **change: Any) -> dict[str, Any]:
    """Record the event of a row, without the keys that change to None."""
    event = {"user": row["user_id"], "item": row["item_id"], "at": row["at"], "context": {}}
    event["context"] = {"place": row["place"], "price": row["price"]}
    event |= {"allow_unknown": True, **change}
    answer: dict[str, Any] = orjson.loads(
        service.record(orjson.dumps({key: value for key, value in event.items() if value is not None})).json()
    )
    return answer
