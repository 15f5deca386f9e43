"""The dataset ``late_correction``: a column that contains the label but is available too late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset

STORY = (
    "Labels are random. The column report of an event is written with or after the user's next event, and "
    "contains the label of that next event. Point-in-time values of this column predict nothing. Its final values "
    "leak the label."
)
_EVENTS = 10  # per user


class LateCorrection(Strict):
    """Parameters of ``late_correction``."""

    users: int = Field(800, ge=1, description="number of users, with 10 events each")


def make(parameters: LateCorrection, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users = parameters.users
    n = users * _EVENTS
    label = random.integers(0, 2, n)
    gap = random.integers(2, 50, (users, _EVENTS)) * 60
    time = START + np.cumsum(gap, axis=1)
    following = np.concatenate([label[1:], [0]]).reshape(users, _EVENTS)
    following[:, -1] = random.integers(0, 2, users)
    # The report is written with the next event (a third of them) or a minute after it, before the event after that.
    waits = np.concatenate([gap[:, 1:], np.full((users, 1), 60)], axis=1)
    late = np.where(random.random((users, _EVENTS)) < 1 / 3, 0, 60)
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), _EVENTS),
            "item": random.integers(0, 50, n),
            "time": time.ravel(),
            "fraud": label,
            "report": following.ravel(),
            "corrected_at": (time + waits + late).ravel(),
        }
    )
    features: dict[str, Any] = {"item": {"kind": "id"}, "report": {"kind": "id", "feedback": True}}
    schema: dict[str, Any] = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "label": "fraud",
        "features": {**features, "report": {**features["report"], "available_at": "corrected_at"}},
        "histories": {"past": {"features": ["item", "report"], "max_length": 1}},
    }
    everybody = ("lr", "fm", "deepfm", "wide_deep", "dcn", "pooling", "din")
    return SyntheticDataset(
        name="late_correction",
        story=STORY,
        log=log,
        schema=schema,
        split={"by": "user", "valid": 0.1, "test": 0.4},
        true_probability=np.full(n, 0.5),
        must_not=tuple({"name": name} for name in everybody),
        fit={"epochs": 2, "batch_size": 256, "lr": 3e-3, "embedding_lr": 1e-2},
        leak={**schema, "features": features},
    )


RECIPE = Recipe(STORY, LateCorrection, make)
