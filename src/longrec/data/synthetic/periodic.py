"""The dataset ``periodic``: the category clicked a day ago is wanted again."""

from __future__ import annotations

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
    draw_labels,
)

STORY = (
    "Interests repeat daily: an impression is liked if the user clicked its category about 24 hours ago, and not "
    "if the clicks on its category were earlier or later. Each visit is about a different category. The other "
    "visits occur at random times, before or after the one of a day ago, which is the newest as often as the "
    "oldest. All categories of a history are equally frequent. Only the elapsed time predicts the label: order "
    "and counts do not."
)
_CATEGORIES, _ITEMS = 8, 240
_LIKES, _ELSE = 0.85, 0.15  # click probability of an item of the category of a day ago, and of another
_HOUR = 3_600
_DAY = 20 * _HOUR, 30 * _HOUR
_SINCE, _BEFORE = (60, 9 * _HOUR), (40 * _HOUR, 400 * _HOUR)
"""Ranges of the time since a visit: the visit of the day before, and all others."""


class Periodic(Strict):
    """Parameters of ``periodic``."""

    users: int = Field(800, ge=1, description="number of users")
    visits: int = Field(3, ge=2, le=_CATEGORIES, description="visits per user, one of them a day ago")
    clicks: int = Field(2, ge=1, description="clicks per visit")
    shown: int = Field(8, ge=1, description="impressions per user, all at the same time")


def make(parameters: Periodic, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, visits, shown = parameters.users, parameters.visits, parameters.shown
    clicks = visits * parameters.clicks
    items_by_category = CategorizedItems(_ITEMS, _CATEGORIES, random)
    of_visit = choose_categories(_CATEGORIES, users, visits, random)
    at = random.integers(0, visits, users)  # index of the visit of a day ago; earlier indices are older visits
    index = np.arange(visits)
    kind = np.sign(index - at[:, None])
    low, high = (np.choose(kind + 1, ends) for ends in zip(_BEFORE, _DAY, _SINCE))
    # Ages are log-uniform, so that they cover all time slices of the model.
    age = -np.sort(-np.exp(np.log(low) + random.random((users, visits)) * np.log(high / low)), axis=1)
    history = np.repeat(of_visit, parameters.clicks, axis=1)
    visit = random.integers(0, visits, (users, shown))
    own = (visit == at[:, None]) | (random.random((users, shown)) < 0.25)
    visit = np.where(own, at[:, None], visit)
    category = np.concatenate([history, np.take_along_axis(of_visit, visit, axis=1)], axis=1)
    item = items_by_category.draw_items(category, random)
    chance = np.where(own, _LIKES, _ELSE)
    liked = draw_labels(chance, random)
    before = np.repeat(age, parameters.clicks, axis=1).astype(np.int64) - np.tile(np.arange(parameters.clicks), visits)
    seconds = np.concatenate([-before, np.zeros((users, shown), np.int64)], axis=1)
    seconds += 30 * 24 * _HOUR + random.integers(0, 86_400, (users, 1))
    log, true_probability = build_log(item, seconds, ("action", np.full((users, clicks), "click")), liked, chance)
    columns = ["category", "time_gap", "time_since_previous"]
    return SyntheticDataset(
        name="periodic",
        story=STORY,
        log=log,
        items=items_by_category.table(),
        schema=build_schema({}, {"clicks": {"features": columns, "where": {"action": "click"}, "max_length": clicks}}),
        split=SPLIT,
        true_probability=true_probability,
        must=({"name": "tissa", "hidden": 32, "heads": 4, "slices": 7, "mlp": [64]}, {"name": "din"}),
        must_not=({"name": "pooling"}, {"name": "deepfm"}),
        fit={"epochs": 3, "batch_size": 128, "lr": 1e-2, "embedding_lr": 5e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, Periodic, make)
