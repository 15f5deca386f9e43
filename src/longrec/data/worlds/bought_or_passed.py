"""The world ``bought_or_passed``: what was done with a thing counts, not that it was there."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.worlds.world import START, Recipe, World

STORY = (
    "A user has seen a few categories, bought of one half of them and passed the other half; an impression is of one "
    "of them, and liked when the category was bought. As many were bought as passed, and each was there as often: "
    "whoever sums up the categories and what was done, each for itself, knows nothing. Only the two together tell."
)
_CATEGORIES, _ITEMS = 8, 240
_LIKES, _ELSE = 0.85, 0.15  # chance of a click on an item of a category that was bought, and of another


class BoughtOrPassed(Strict):
    """Knobs of ``bought_or_passed``."""

    users: int = Field(1_200, ge=1, description="users")
    seen: int = Field(4, ge=2, le=_CATEGORIES, multiple_of=2, description="categories that a user has seen")
    shown: int = Field(8, ge=1, description="impressions of a user, all after that")


def make(knobs: BoughtOrPassed, random: np.random.Generator) -> World:
    """The world of some settings."""
    users, seen, shown = knobs.users, knobs.seen, knobs.shown
    each = seen + shown
    category_of = random.permutation(np.arange(_ITEMS) % _CATEGORIES)
    by_category = np.argsort(category_of, kind="stable").reshape(_CATEGORIES, -1)
    past = random.permuted(np.tile(np.arange(_CATEGORIES), (users, 1)), axis=1)[:, :seen]
    bought = random.permuted(np.tile(np.arange(seen) % 2, (users, 1)), axis=1)
    which = random.integers(0, seen, (users, shown))
    category = np.concatenate([past, np.take_along_axis(past, which, axis=1)], axis=1)
    item = by_category[category, random.integers(0, _ITEMS // _CATEGORIES, category.shape)]
    chance = np.where(np.take_along_axis(bought, which, axis=1) == 1, _LIKES, _ELSE)
    liked = np.concatenate([np.zeros((users, seen)), random.random(chance.shape) < chance], axis=1).astype(np.int64)
    done = np.concatenate([bought, np.full((users, shown), 2)], axis=1)
    now = np.tile(np.arange(each) >= seen, users)
    moment = np.minimum(np.arange(each), seen) * 600 + random.integers(0, 86_400, (users, 1))
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), each),
            "item": item.ravel(),
            "time": START + moment.ravel(),
            "done": np.array(["passed", "bought", "shown"])[done.ravel()],
            "liked": pa.array(liked.ravel(), mask=~now),
        }
    )
    oracle = np.full((users, each), np.nan)
    oracle[:, seen:] = chance
    return World(
        name="bought_or_passed",
        story=STORY,
        log=log,
        items=pa.table({"item": np.arange(_ITEMS), "category": category_of}),
        schema={
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "label": "liked",
            "features": {
                "item": {"kind": "id"},
                "category": {"kind": "id", "table": "item"},
                "done": {"kind": "id", "feedback": True},
            },
            "histories": {
                "seen": {"of": ["category", "done"], "where": {"done": ["bought", "passed"]}, "last": seen},
            },
        },
        split={"by": "user", "valid": 0.1, "test": 0.3},
        oracle=oracle.ravel(),
        must=({"name": "dupn", "hidden": 32, "mlp": [64]}, {"name": "din"}),
        must_not=({"name": "pooling"}, {"name": "deepfm"}),
        fit={"epochs": 6, "batch_size": 128, "lr": 2e-2, "tables_lr": 5e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, BoughtOrPassed, make)
