"""A small log in memory and its schema, for tests of the Python interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

import longrec as lr


def events(rows: int = 1_200, seed: int = 0) -> pd.DataFrame:
    """Events of 40 users on 30 items, which click on the items of their own group more often."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, 40, rows), random.integers(0, 30, rows)
    click = random.random(rows) < np.where(user % 3 == item % 3, 0.6, 0.2)
    times = pd.date_range("2026-01-01", periods=rows, freq="h")
    return pd.DataFrame({"user": user, "item": [f"i{n}" for n in item], "t": times, "click": click.astype(int)})


def items() -> pd.DataFrame:
    """The group of every item."""
    return pd.DataFrame({"item": [f"i{n}" for n in range(30)], "group": [f"g{n % 3}" for n in range(30)]})


def schema(**changes: Any) -> lr.Schema:
    """Return the schema of the log."""
    settings: dict[str, Any] = {
        "user": "user",
        "item": "item",
        "time": "t",
        "label": "click",
        "features": {"user": "id", "item": "id", "group": lr.Feature(kind="id", side="item")},
        "histories": {"all": {"features": ["item", "group"], "max_length": 10}},
    }
    return lr.Schema(**{**settings, **changes})


SMALL: dict[str, Any] = {"embedding_dim": 4, "mlp": (8,)}
"""Settings of a model that trains in a moment."""
