"""The dataset ``sessions``: the outcome of a session determines whether its category is liked later."""

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
    "A user visits the shop several times. Each visit is a session about one category, and it contains one click "
    "of the special category checkout or exit. A later impression is liked if the session about its category "
    "contains checkout. Half of the sessions contain checkout, and all other categories are equally frequent in a "
    "history, so nothing can be predicted without the session boundaries."
)
_CATEGORIES, _EACH = 12, 20  # categories of items; items per category
_LIKES, _ELSE = 0.85, 0.15  # click probability after a session with checkout, and after one with exit


class Sessions(Strict):
    """Parameters of ``sessions``."""

    users: int = Field(1_200, ge=1, description="number of users")
    visits: int = Field(2, ge=1, le=_CATEGORIES // 2, description="sessions with checkout; as many have exit")
    clicks: int = Field(3, ge=1, description="clicks per session, in addition to the one on checkout or exit")
    shown: int = Field(8, ge=1, description="impressions per user, all after the sessions")


def make(parameters: Sessions, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, visits, length = parameters.users, 2 * parameters.visits, parameters.clicks + 1
    n_history = visits * length
    each = n_history + parameters.shown
    # The first category is checkout and the second exit.
    items_by_category = CategorizedItems((2 + _CATEGORIES) * _EACH, 2 + _CATEGORIES, random)
    about = 2 + choose_categories(_CATEGORIES, users, visits, random)
    is_exit = draw_halves(visits, users, random)
    clicked = np.repeat(about[:, :, None], length, axis=2)
    index = random.integers(0, length, (users, visits, 1))
    np.put_along_axis(clicked, index, is_exit[:, :, None], axis=2)
    visit = random.integers(0, visits, (users, parameters.shown))
    chance = np.where(np.take_along_axis(is_exit, visit, 1) == 0, _LIKES, _ELSE)
    category = np.concatenate([clicked.reshape(users, n_history), np.take_along_axis(about, visit, 1)], axis=1)
    liked = draw_labels(chance, random)
    # The clicks of a session are a minute apart. The next session starts hours later.
    begins = np.minimum(np.arange(each), n_history) % length == 0
    seconds = np.cumsum(np.where(begins, random.integers(7_200, 80_000, (users, each)), 60), axis=1)
    # All have the same timestamp, so none of them is in the history of another.
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
        # With more epochs DIN also solves it from this schema: there are few session numbers, and DIN memorizes them.
        wide=build_schema({}, {"clicks": {**history, "features": ["category", "session_recency"]}}),
    )


RECIPE = Recipe(STORY, Sessions, make)
