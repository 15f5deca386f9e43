"""The dataset ``sessions``: the outcome of a visit decides the value of its clicks."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import Recipe, SyntheticDataset
from longrec.data.synthetic.generators import (
    SPLIT,
    CategorizedItems,
    build_log,
    build_schema,
    choose_categories,
    draw_halves,
    draw_labels,
)

STORY = (
    "A user comes by several times. A visit is about one category, and one of its clicks goes to the till or to the "
    "door; what is shown later is liked when the visit about its category went to the till. Every history holds as "
    "many tills as doors and every category as often, so without the bounds of the visits nothing can be predicted."
)
_CATEGORIES, _EACH = 12, 20  # of things; items of one category
_LIKES, _ELSE = 0.85, 0.15  # chance of a click on an item whose visit went to the till, and of another


class Sessions(Strict):
    """Parameters of ``sessions``."""

    users: int = Field(1_200, ge=1, description="users")
    visits: int = Field(2, ge=1, le=_CATEGORIES // 2, description="visits to the till, and as many to the door")
    clicks: int = Field(3, ge=1, description="clicks on things in a visit, beside the one on till or door")
    shown: int = Field(8, ge=1, description="impressions of a user, all after the visits")


def make(parameters: Sessions, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, visits, length = parameters.users, 2 * parameters.visits, parameters.clicks + 1
    n_history = visits * length
    each = n_history + parameters.shown
    # Of categories the first is the till and the second the door.
    items_by_category = CategorizedItems((2 + _CATEGORIES) * _EACH, 2 + _CATEGORIES, random)
    about = 2 + choose_categories(_CATEGORIES, users, visits, random)
    door = draw_halves(visits, users, random)
    clicked = np.repeat(about[:, :, None], length, axis=2)
    index = random.integers(0, length, (users, visits, 1))
    np.put_along_axis(clicked, index, door[:, :, None], axis=2)
    visit = random.integers(0, visits, (users, parameters.shown))
    chance = np.where(np.take_along_axis(door, visit, 1) == 0, _LIKES, _ELSE)
    category = np.concatenate([clicked.reshape(users, n_history), np.take_along_axis(about, visit, 1)], axis=1)
    liked = draw_labels(chance, random)
    # Clicks of a visit follow each other within minutes; the next visit is hours away.
    begins = np.minimum(np.arange(each), n_history) % length == 0
    seconds = np.cumsum(np.where(begins, random.integers(7_200, 80_000, (users, each)), 60), axis=1)
    # All at once, so that none of them is in the history of another.
    seconds[:, n_history:] = seconds[:, n_history : n_history + 1]
    item = items_by_category.draw_items(category, random)
    log, true_probability = build_log(item, seconds, ("action", np.full((users, n_history), "click")), liked, chance)
    history: dict[str, Any] = {"features": ["category"], "where": {"action": "click"}, "max_length": n_history}
    return SyntheticDataset(
        name="sessions",
        story=STORY,
        log=log,
        items=items_by_category.table(),
        schema=build_schema({}, {"clicks": history}),
        split=SPLIT,
        true_probability=true_probability,
        must=({"name": "dsin", "session_events": length},),
        must_not=({"name": "pooling"}, {"name": "din"}, {"name": "bst"}, {"name": "deepfm"}),
        fit={"epochs": 4, "batch_size": 128, "lr": 1e-2, "embedding_lr": 5e-2, "patience": 0},
        # Given time DIN solves it too where it reads the visit of a click: there are few, which it memorizes.
        wide=build_schema({}, {"clicks": {**history, "features": ["category", "session_recency"]}}),
    )


RECIPE = Recipe(STORY, Sessions, make)
