"""The world ``micro_behaviours``: how a user goes about an item tells whether it is wanted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.worlds.world import START, Recipe, World

STORY = (
    "A user visits a few items, each of a category of its own, and on each reads the comments and looks at the "
    "pictures. Who reads first wants it, who looks first does not; an impression is of one of these categories, and "
    "liked when the item was wanted. Every category and every kind of event is there as often, and each with each: "
    "only the order of the events on one item tells."
)
_CATEGORIES, _ITEMS = 8, 240
_LIKES, _ELSE = 0.85, 0.15  # chance of a click on an item of a category that is wanted, and of another


class MicroBehaviours(Strict):
    """Knobs of ``micro_behaviours``."""

    users: int = Field(800, ge=1, description="users")
    visited: int = Field(2, ge=2, le=_CATEGORIES, multiple_of=2, description="items that a user visits")
    shown: int = Field(8, ge=1, description="impressions of a user, all after that")


def make(knobs: MicroBehaviours, random: np.random.Generator) -> World:
    """The world of some settings."""
    users, visited, shown = knobs.users, knobs.visited, knobs.shown
    before = 2 * visited
    each = before + shown
    category_of = random.permutation(np.arange(_ITEMS) % _CATEGORIES)
    by_category = np.argsort(category_of, kind="stable").reshape(_CATEGORIES, -1)
    of_visit = random.permuted(np.tile(np.arange(_CATEGORIES), (users, 1)), axis=1)[:, :visited]
    wanted = random.permuted(np.tile(np.arange(visited) % 2, (users, 1)), axis=1)
    which = random.integers(0, visited, (users, shown))
    category = np.concatenate([of_visit, np.take_along_axis(of_visit, which, axis=1)], axis=1)
    item = by_category[category, random.integers(0, _ITEMS // _CATEGORIES, category.shape)]
    item = np.concatenate([np.repeat(item[:, :visited], 2, axis=1), item[:, visited:]], axis=1)
    action = np.full((users, each), 2)
    action[:, :before:2], action[:, 1:before:2] = 1 - wanted, wanted
    chance = np.where(np.take_along_axis(wanted, which, axis=1) == 1, _LIKES, _ELSE)
    liked = np.concatenate([np.zeros((users, before)), random.random(chance.shape) < chance], axis=1).astype(np.int64)
    now = np.tile(np.arange(each) >= before, users)
    moment = np.minimum(np.arange(each), before) * 60 + random.integers(0, 86_400, (users, 1))
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), each),
            "item": item.ravel(),
            "time": START + moment.ravel(),
            "action": np.array(["read", "look", "shown"])[action.ravel()],
            "liked": pa.array(liked.ravel(), mask=~now),
        }
    )
    oracle = np.full((users, each), np.nan)
    oracle[:, before:] = chance
    return World(
        name="micro_behaviours",
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
                "action": {"kind": "id", "feedback": True},
            },
            "histories": {
                "events": {
                    "of": ["item", "category", "action"],
                    "where": {"action": ["read", "look"]},
                    "last": before,
                },
            },
        },
        split={"by": "user", "valid": 0.1, "test": 0.3},
        oracle=oracle.ravel(),
        must=({"name": "hup", "hidden": 24, "mlp": [64]},),
        must_not=({"name": "pooling"}, {"name": "din"}, {"name": "deepfm"}),
        fit={"epochs": 3, "batch_size": 128, "lr": 1e-2, "tables_lr": 5e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, MicroBehaviours, make)
