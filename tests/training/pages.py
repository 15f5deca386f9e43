"""Small log of pages: several candidates per request, shared timestamps, delayed feedback."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START, DAYS = 1_700_000_000_000, 86_400_000
FEATURES: dict[str, Any] = {
    "user_id": {"kind": "id", "hash": 64},
    "item_id": {"kind": "id", "hash": 64},
    "place": {"kind": "id", "hash": 8},
    "price": {"kind": "bucketized", "edges": [1, 2, 3]},
    "click": {"kind": "id", "vocab": [0, 1], "feedback": True, "available_at": "seen_at"},
}
SCHEMA: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "ms"},
    "request": "page",
    "label": "click",
    "features": FEATURES,
}
BASE: dict[str, Any] = {"name": "deepfm", "embedding_dim": 4, "mlp": [8]}
IAT: dict[str, Any] = {"name": "iat", "base": BASE, "width": 4, "decoder": 8}
FIT: dict[str, Any] = {"epochs": 1, "batch_size": 64, "lr": 0.01, "tensorboard": "off", "mlflow": "off"}


def make_pages(users: int = 30, requests: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the columns of a log over ten days with requests of one to four candidates and shared timestamps."""
    random = np.random.default_rng(seed)
    timestamp = START + random.integers(0, 240, (users, requests)) * (DAYS // 24)
    timestamp.sort(axis=1)
    size = random.integers(1, 5, (users, requests))
    user = np.repeat(np.repeat(np.arange(users), requests), size.ravel())
    at = np.repeat(timestamp.ravel(), size.ravel())
    page = np.repeat(np.arange(users * requests), size.ravel())
    n = len(user)
    position, item = random.integers(0, 6, n), random.integers(0, 40, n)
    click = (random.random(n) < np.where(position == item % 6, 0.9, 0.2)).astype(np.int64)
    waits = random.integers(1, 48, n) * (DAYS // 24)
    columns = {"user_id": user, "item_id": item, "at": at, "page": page, "place": position, "click": click}
    # a second candidate of a page is logged some seconds after the first
    twin = np.concatenate([[False], page[1:] == page[:-1]])
    columns["at"] = at + np.where(twin, 3_000, 0)
    return {**columns, "price": random.random(n) * 4, "seen_at": columns["at"] + waits}


def write(columns: dict[str, np.ndarray], path: Path) -> Path:
    """Write the columns as a Parquet file in order of time."""
    order = np.argsort(columns["at"], kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: values[order] for name, values in columns.items()}), path)
    return path


def job(log: Path, folder: Path, model: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a config that trains on a written log. ``changes`` replace keys of the schema."""
    return {
        "data": {
            "log": str(log),
            "schema": {**copy.deepcopy(SCHEMA), **changes},
            "split": {"by": "time", "valid": 0.1, "test": 0.2},
            "folder": str(folder / "prepared"),
        },
        "model": model or IAT,
        "fit": {**FIT, "runs": str(folder / "runs")},
        "evaluate": {"n_resamples": 10},
    }
