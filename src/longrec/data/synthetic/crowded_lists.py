"""The dataset ``crowded_lists``: an item is clicked if the list has no better one of its category."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset
from longrec.data.synthetic.generators import draw_labels

STORY = (
    "A request shows a list of items of a few categories, several of each, whose qualities are near each other. A "
    "user compares the items of a category, clicks the best one with a high probability, and the others hardly ever. "
    "Whether a quality is the best one of its list depends on the others and hardly on itself. So a model that scores "
    "items one by one learns little, and a model that sees the whole list can learn the rule."
)
_CATEGORIES, _QUALITIES, _EACH = 3, 8, 2  # items of one category and quality
_NEAR = 4  # consecutive qualities that the items of a category are drawn from
_BEST, _ELSE = 0.7, 0.03  # click probability of the best item of a category, and of the others
_DAY = 86_400
_DAYS = 10


class CrowdedLists(Strict):
    """Parameters of ``crowded_lists``."""

    users: int = Field(400, ge=1, description="number of users")
    requests: int = Field(10, ge=1, description="requests per user, one a day")
    compared: int = Field(3, ge=2, le=_NEAR, description="items of each category in a list, of different qualities")
    random_clicks: bool = Field(False, description="click every item with the same probability")


def make(parameters: CrowdedLists, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, requests, compared = parameters.users, parameters.requests, parameters.compared
    lists, shown = users * requests, _CATEGORIES * compared
    lowest = random.integers(0, _QUALITIES - _NEAR + 1, (lists, _CATEGORIES, 1))
    near = random.permuted(np.tile(np.arange(_NEAR), (lists, _CATEGORIES, 1)), axis=2)[:, :, :compared]
    quality = lowest + near
    best = near == near.max(2, keepdims=True)
    order = random.permuted(np.tile(np.arange(shown), (lists, 1)), axis=1)
    kinds = (np.arange(_CATEGORIES)[:, None] * _QUALITIES + quality).reshape(lists, shown)
    kinds = np.take_along_axis(kinds, order, axis=1)
    chance = np.take_along_axis(np.where(best, _BEST, _ELSE).reshape(lists, shown), order, axis=1)
    if parameters.random_clicks:
        chance = np.full_like(chance, 0.3)
    clicked = draw_labels(chance, random)
    number = random.permutation(_CATEGORIES * _QUALITIES * _EACH)
    item = number[kinds * _EACH + random.integers(0, _EACH, kinds.shape)]
    day = np.tile(np.arange(requests) % _DAYS, users)
    day = np.sort(day.reshape(users, requests), axis=1).ravel()
    seconds = day * _DAY + np.sort(random.integers(0, _DAY, (users, requests)), axis=1).ravel()
    kind_of = np.empty(len(number), np.int64)
    kind_of[number] = np.arange(len(number)) // _EACH
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), requests * shown),
            "item": item.ravel(),
            "time": START + np.repeat(seconds, shown),
            "clicked": clicked.ravel(),
        }
    )
    features = {name: {"kind": "id", "side": "item"} for name in ("category", "quality")}
    return SyntheticDataset(
        name="crowded_lists",
        story=STORY,
        log=log,
        items=pa.table(
            {"item": np.arange(len(number)), "category": kind_of // _QUALITIES, "quality": kind_of % _QUALITIES}
        ),
        schema={
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "label": "clicked",
            "features": features,
            "histories": {},
        },
        split={"by": "time", "valid": 0.1, "test": 0.2},
        true_probability=chance.ravel(),
        must=({"name": "prm", "base": BASE, "width": 32, "blocks": 1, "hidden": 64},),
        must_not=(BASE,),
        fit={"epochs": 8, "batch_size": 256, "lr": 5e-3, "embedding_lr": 2e-2, "patience": 0},
    )


BASE = {"name": "deepfm", "mlp": [16]}
"""The ranker that orders the initial lists."""
BASE_SPLIT = {"by": "time", "valid_from": "2025-01-04", "test_from": "2025-01-05"}
"""Split of its run, which ends before the lists of a re-ranker with ``FROM``."""
FROM = "2025-01-05"
"""First day of the lists of a re-ranker, ``fit.train_from``."""


RECIPE = Recipe(STORY, CrowdedLists, make)
