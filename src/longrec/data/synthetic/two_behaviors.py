"""The dataset ``two_behaviors``: a click raises the interest in a category, an order ends it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import Recipe, SyntheticDataset
from longrec.data.synthetic.generators import SPLIT, build_log, build_schema, choose_categories, draw_labels

STORY = (
    "A user clicks on items of some categories and orders items of others, equally many of each and in random "
    "order. Clicked categories are still wanted, and ordered ones no longer are: an impression is liked if its "
    "category is among the clicks. Every impression is of a clicked or an ordered category, so clicks and orders "
    "in a single history without the action predict nothing."
)
_ITEMS = 240
_LIKES, _ELSE = 0.85, 0.15  # click probability of an item of a clicked category, and of an ordered one


class TwoBehaviors(Strict):
    """Parameters of ``two_behaviors``."""

    users: int = Field(800, ge=1, description="number of users")
    categories: int = Field(8, ge=4, le=24, description="number of categories")
    each: int = Field(2, ge=1, le=2, description="categories that each user clicks on; as many are ordered")
    events: int = Field(3, ge=1, description="clicks per clicked category, and orders per ordered one")
    shown: int = Field(6, ge=1, description="impressions per user, all after the clicks and orders")
    as_one: bool = Field(
        False, description="use one history of clicks and orders in the schema instead of one per action"
    )


def make(parameters: TwoBehaviors, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, n_history = parameters.users, 2 * parameters.each * parameters.events
    category_of = random.permutation(np.arange(_ITEMS) % parameters.categories)
    own = choose_categories(parameters.categories, users, 2 * parameters.each, random)
    # Index of each event's category among the categories of the user. The first half are the clicked ones.
    which = random.permuted(np.tile(np.repeat(np.arange(2 * parameters.each), parameters.events), (users, 1)), axis=1)
    which = np.concatenate([which, random.integers(0, 2 * parameters.each, (users, parameters.shown))], axis=1)
    clicked = which < parameters.each
    category = np.take_along_axis(own, which, axis=1)
    item = _draw_items(category_of, category, random)
    chance = np.where(clicked, _LIKES, _ELSE)
    liked = draw_labels(chance, random)
    seconds = np.minimum(np.arange(n_history + parameters.shown), n_history) * 600 + random.integers(
        0, 86_400, (users, 1)
    )
    done = "action", np.where(clicked, "click", "order")[:, :n_history]
    log, true_probability = build_log(item, seconds, done, liked[:, n_history:], chance[:, n_history:])
    last = n_history if parameters.as_one else n_history // 2
    actions = {"events": ["click", "order"]} if parameters.as_one else {"clicks": "click", "orders": "order"}
    histories = {
        name: {"features": ["category"], "where": {"action": action}, "max_length": last}
        for name, action in actions.items()
    }
    kind = {"name": "dmt", "position": "time", "heads": 2}
    return SyntheticDataset(
        name="two_behaviors",
        story=STORY,
        log=log,
        items=pa.table({"item": np.arange(_ITEMS), "category": category_of}),
        schema=build_schema({}, histories),
        split=SPLIT,
        true_probability=true_probability,
        must=() if parameters.as_one else (kind, {"name": "din"}),
        must_not=(kind, {"name": "din"}) if parameters.as_one else ({"name": "deepfm"},),
        fit={"epochs": 2, "batch_size": 128, "lr": 5e-3, "embedding_lr": 1e-2, "patience": 0},
    )


def _draw_items(category_of: np.ndarray, category: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw an item per category."""
    order, counts = np.argsort(category_of, kind="stable"), np.bincount(category_of)
    first = np.cumsum(counts) - counts
    return order[first[category] + (random.random(category.shape) * counts[category]).astype(np.int64)]


RECIPE = Recipe(STORY, TwoBehaviors, make)
