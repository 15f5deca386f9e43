"""The dataset ``one_interest``: only earlier clicks predict the interest of a user."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset

STORY = (
    "Every user likes one category, which can only be inferred from the items clicked before. The users of the "
    "test split are new, so a model without histories cannot predict their labels."
)
_CLICKS, _SHOWN = 12, 8  # events per user: clicks first, then impressions
_CATEGORIES, _ITEMS = 6, 240
_LIKES, _ELSE = 0.85, 0.15  # click probability of an item of the liked category, and of another


class OneInterest(Strict):
    """Parameters of ``one_interest``."""

    users: int = Field(1_500, ge=1, description="number of users, with 20 events each")


def make(parameters: OneInterest, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, each = parameters.users, _CLICKS + _SHOWN
    category_of = random.permutation(np.arange(_ITEMS) % _CATEGORIES)
    by_category = np.argsort(category_of, kind="stable").reshape(_CATEGORIES, -1)
    interest = np.repeat(random.integers(0, _CATEGORIES, users), each)
    shown = np.tile(np.arange(each) >= _CLICKS, users)
    # Three quarters of the clicks and half of the impressions are of the liked category.
    own = random.random(users * each) < np.where(shown, 0.5, 0.75)
    other = (interest + random.integers(1, _CATEGORIES, users * each)) % _CATEGORIES
    category = np.where(own, interest, other)
    item = by_category[category, random.integers(0, _ITEMS // _CATEGORIES, users * each)]
    chance = np.where(own, _LIKES, _ELSE)
    liked = (random.random(users * each) < chance).astype(np.int64)
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), each),
            "item": item,
            "time": START + np.tile(np.arange(each) * 600, users) + np.repeat(random.integers(0, 86_400, users), each),
            "action": np.where(shown, "shown", "click"),
            "liked": pa.array(liked, mask=~shown),
        }
    )
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "label": "liked",
        "features": {
            "user": {"kind": "id"},
            "item": {"kind": "id"},
            "category": {"kind": "id", "side": "item"},
        },
        "histories": {"clicks": {"features": ["item", "category"], "where": {"action": "click"}, "max_length": 20}},
    }
    return SyntheticDataset(
        name="one_interest",
        story=STORY,
        log=log,
        items=pa.table({"item": np.arange(_ITEMS), "category": category_of}),
        schema=schema,
        split={"by": "user", "valid": 0.1, "test": 0.3},
        true_probability=np.where(shown, chance, np.nan),
        must=({"name": "din"}, {"name": "pooling"}),
        must_not=({"name": "lr"}, {"name": "fm"}, {"name": "deepfm"}, {"name": "wide_deep"}, {"name": "dcn"}),
        fit={"epochs": 6, "batch_size": 128, "lr": 3e-3, "embedding_lr": 1e-2},
    )


RECIPE = Recipe(STORY, OneInterest, make)
