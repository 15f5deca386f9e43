"""Schema and config of a small shop whose users like items of one kind."""

from __future__ import annotations

from typing import Any

SCHEMA: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "s"},
    "label": {"column": "stars", "at_least": 4},
    "features": {
        "user_id": {"kind": "id"},
        "item_id": {"kind": "id"},
        "genre": {"kind": "id", "side": "item"},
        "stars": {"kind": "bucketized", "edges": [2, 3, 4, 5], "feedback": True},
    },
    "histories": {"seen": {"features": ["item_id", "genre", "stars", "time_gap"], "max_length": 10}},
}
JOB: dict[str, Any] = {
    "data": {"log": "events.parquet", "items": "items.parquet", "schema": "shop.schema.yaml"},
    "model": {
        "name": "din",
        "embedding_dim": 4,
        "attention": [8],
        "activation": "dice",
        "mlp": [16],
        "dropout": 0.2,
    },
    "fit": {"batch_size": 100, "lr": 0.01, "tensorboard": "off", "mlflow": "off", "log_steps": 5},
    "evaluate": {"n_resamples": 20},
}
