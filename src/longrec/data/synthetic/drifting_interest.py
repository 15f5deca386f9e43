"""The dataset ``drifting_interest``: only the category of the last clicks is still liked."""

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
    "The user's interest changes over time. A user clicks through a few categories, one after the other, with the "
    "same number of clicks on each. An impression is liked if it is of the category of the last click. All "
    "categories of a history are equally frequent, so a sum over the history that ignores the order predicts "
    "nothing: only the order of the clicks does."
)
_CATEGORIES, _ITEMS = 12, 240
_LIKES, _ELSE = 0.85, 0.15  # click probability of an item of the last category, and of another


class DriftingInterest(Strict):
    """Parameters of ``drifting_interest``."""

    users: int = Field(2_000, ge=1, description="number of users")
    phases: int = Field(3, ge=2, le=_CATEGORIES, description="categories that each user clicks through")
    stay: int = Field(3, ge=1, description="clicks per category")
    shown: int = Field(6, ge=1, description="impressions per user, all after the clicks")


def make(parameters: DriftingInterest, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, clicks = parameters.users, parameters.phases * parameters.stay
    each = clicks + parameters.shown
    items_by_category = CategorizedItems(_ITEMS, _CATEGORIES, random)
    path = choose_categories(_CATEGORIES, users, parameters.phases, random)
    clicked_categories = np.repeat(path, parameters.stay, axis=1)
    # Half of the impressions are of the last category, the others of an earlier one.
    last = random.random((users, parameters.shown)) < 0.5
    before = np.take_along_axis(path, random.integers(0, parameters.phases - 1, (users, parameters.shown)), axis=1)
    category = np.concatenate([clicked_categories, np.where(last, path[:, -1:], before)], axis=1)
    item = items_by_category.draw_items(category, random)
    chance = np.where(last, _LIKES, _ELSE)
    liked = draw_labels(chance, random)
    seconds = np.arange(each) * 600 + random.integers(0, 86_400, (users, 1))
    seconds[:, clicks:] = seconds[:, clicks : clicks + 1]  # the same time, so none is in another's history
    log, true_probability = build_log(item, seconds, ("action", np.full((users, clicks), "click")), liked, chance)
    return SyntheticDataset(
        name="drifting_interest",
        story=STORY,
        log=log,
        items=items_by_category.table(),
        schema=build_schema(
            {}, {"clicks": {"features": ["category"], "where": {"action": "click"}, "max_length": clicks}}
        ),
        split=SPLIT,
        true_probability=true_probability,
        must=({"name": "dien", "hidden": 24, "gate": "released"}, {"name": "dien", "hidden": 24, "attention": "mlp"}),
        must_not=({"name": "pooling"}, {"name": "din"}, {"name": "deepfm"}),
        fit={"epochs": 12, "batch_size": 128, "lr": 1e-2, "embedding_lr": 1e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, DriftingInterest, make)
