"""The world ``drifting_interest``: what was liked last counts, and it moves on in steps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.worlds.world import START, Recipe, World

STORY = (
    "Interests move on. A user clicks through a few categories, each for a while and each as often as the others; an "
    "impression is liked when it is of the category of the last click. Every category in a history is there as often, "
    "so whoever sums the past up, however weighted by the candidate, knows nothing: only the order tells."
)
_CATEGORIES, _ITEMS = 12, 240
_LIKES, _ELSE = 0.85, 0.15  # chance of a click on an item of the last category, and of another


class DriftingInterest(Strict):
    """Knobs of ``drifting_interest``."""

    users: int = Field(2_000, ge=1, description="users")
    phases: int = Field(3, ge=2, le=_CATEGORIES, description="categories a user goes through")
    stay: int = Field(3, ge=1, description="clicks in each of them")
    shown: int = Field(6, ge=1, description="impressions of a user, all after the clicks")


def make(knobs: DriftingInterest, random: np.random.Generator) -> World:
    """The world of some settings."""
    users, clicks = knobs.users, knobs.phases * knobs.stay
    each = clicks + knobs.shown
    category_of = random.permutation(np.arange(_ITEMS) % _CATEGORIES)
    by_category = np.argsort(category_of, kind="stable").reshape(_CATEGORIES, -1)
    path = random.permuted(np.tile(np.arange(_CATEGORIES), (users, 1)), axis=1)[:, : knobs.phases]
    past = np.repeat(path, knobs.stay, axis=1)
    # Half of the impressions are of the last category, the others of one before it: all were liked once.
    last = random.random((users, knobs.shown)) < 0.5
    before = np.take_along_axis(path, random.integers(0, knobs.phases - 1, (users, knobs.shown)), axis=1)
    category = np.concatenate([past, np.where(last, path[:, -1:], before)], axis=1)
    item = by_category[category, random.integers(0, _ITEMS // _CATEGORIES, category.shape)]
    chance = np.where(last, _LIKES, _ELSE)
    liked = np.concatenate([np.zeros((users, clicks)), random.random(chance.shape) < chance], axis=1).astype(np.int64)
    shown = np.tile(np.arange(each) >= clicks, users)
    moment = np.arange(each) * 600 + random.integers(0, 86_400, (users, 1))
    moment[:, clicks:] = moment[:, clicks : clicks + 1]  # at once, so that none of them stands in another's past
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), each),
            "item": item.ravel(),
            "time": START + moment.ravel(),
            "action": np.where(shown, "shown", "click"),
            "liked": pa.array(liked.ravel(), mask=~shown),
        }
    )
    oracle = np.full((users, each), np.nan)
    oracle[:, clicks:] = chance
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "label": "liked",
        "features": {
            "item": {"kind": "id"},
            "category": {"kind": "id", "table": "item"},
        },
        "histories": {"clicks": {"of": ["category"], "where": {"action": "click"}, "last": clicks}},
    }
    return World(
        name="drifting_interest",
        story=STORY,
        log=log,
        items=pa.table({"item": np.arange(_ITEMS), "category": category_of}),
        schema=schema,
        split={"by": "user", "valid": 0.1, "test": 0.3},
        oracle=oracle.ravel(),
        must=({"name": "dien", "hidden": 24, "gate": "released"}, {"name": "dien", "hidden": 24, "attention": "mlp"}),
        must_not=({"name": "pooling"}, {"name": "din"}, {"name": "deepfm"}),
        fit={"epochs": 12, "batch_size": 128, "lr": 1e-2, "tables_lr": 1e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, DriftingInterest, make)
