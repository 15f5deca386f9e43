"""Two domains, in which every user likes one of two kinds of items. A wide log of all scenes shows which, by many
impressions with two labels; the narrow log of one scene has few of them, later, and no history.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY, DAYS = 86_400, 12
START = 1_735_689_600  # 2025-01-01
FIT: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 64,
    "lr": 0.01,
    "embedding_lr": 0.02,
    "tensorboard": "off",
    "mlflow": "off",
}
FIT |= {"val_checks_per_epoch": 1}
EXTRACTOR: dict[str, Any] = {
    "name": "keep", "embedding_dim": 8, "user": [16, 8], "item": [16, 8], "both": [16], "attention": [8],
    "tasks": {"like": 0.5},
}  # fmt: skip
PLUG: dict[str, Any] = {
    "name": "keep_plug",
    "base": {"name": "deepfm", "embedding_dim": 4, "mlp": [16], "dropout": 0.0},
}


def write(folder: Path, users: int = 150, items: int = 50, events: int = 80, seed: int = 0) -> Path:
    """Write ``wide.parquet`` (all scenes) and ``narrow.parquet`` (scene 0, from the third day on)."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    n = users * events
    user, item = np.repeat(np.arange(users), events), random.integers(0, items, n)
    taste, kind = random.permutation(np.arange(users) % 2), random.permutation(np.arange(items) % 2)
    fits = taste[user] == kind[item]
    at = START + random.integers(0, DAYS * DAY // 60, n) * 60  # some timestamps are shared
    columns = {
        "user": user + 10,
        "item": item + 1_000,
        "at": at,
        "scene": random.integers(0, 4, n),
        "click": (random.random(n) < np.where(fits, 0.85, 0.15)).astype(np.int64),
        "like": (random.random(n) < np.where(fits, 0.7, 0.1)).astype(np.int64),
    }
    wide = pa.table(columns).take(np.argsort(at, kind="stable"))
    pq.write_table(wide, folder / "wide.parquet")
    narrow = wide.filter(pa.array((wide["scene"].to_numpy() == 0) & (wide["at"].to_numpy() >= START + 2 * DAY)))
    pq.write_table(narrow, folder / "narrow.parquet")
    pq.write_table(pa.table({"item": np.arange(items) + 1_000, "kind": kind}), folder / "items.parquet")
    return folder


def extractor(folder: Path, **model: Any) -> dict[str, Any]:
    """Return the job of the extractor: all scenes, without the last three days."""
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "at", "unit": "s"},
        "label": "click",
        "features": {
            "user": {"kind": "id"},
            "item": {"kind": "id"},
            "kind": {"kind": "id", "side": "item"},
            "scene": {"kind": "id"},
            "click": {"kind": "id", "feedback": True},
            "like": {"kind": "id", "feedback": True, "available_after": "1d"},
        },
        "histories": {"seen": {"features": ["kind", "click"], "max_length": 8}},
    }
    return job(folder, "wide", schema, {**EXTRACTOR, **model})


def downstream(folder: Path, knowledge: Path | None, model: dict[str, Any] | None = None, **fit: Any) -> dict[str, Any]:
    """Return the job of the narrow scene, with or without knowledge."""
    features: dict[str, Any] = {name: {"kind": "id"} for name in ("user", "item")}
    features["kind"] = {"kind": "id", "side": "item"}
    if knowledge is not None:
        features["who"] = {"kind": "embedding", "from": str(knowledge), "side": "user"}
        features["what"] = {"kind": "embedding", "from": str(knowledge), "side": "item"}
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "at", "unit": "s"},
        "label": "click",
        "features": features,
    }
    return job(folder, "narrow", schema, model or (PLUG if knowledge is not None else PLUG["base"]), **fit)


def job(folder: Path, log: str, schema: dict[str, Any], model: dict[str, Any], **fit: Any) -> dict[str, Any]:
    """Return a config whose runs and prepared logs go below ``folder``."""
    return {
        "data": {
            "log": str(folder / f"{log}.parquet"),
            "items": str(folder / "items.parquet"),
            "schema": schema,
            "split": {"by": "time", "valid_days": 1, "test_days": 2},
            "folder": str(folder / "prepared"),
        },
        "model": model,
        "fit": {**FIT, "runs": str(folder / "runs"), **fit},
        "evaluate": {"n_resamples": 10},
    }
