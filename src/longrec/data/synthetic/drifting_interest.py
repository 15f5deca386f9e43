"""The dataset ``drifting_interest``: the category liked last matters, and it changes in steps."""

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
    "Interests move on. A user clicks through a few categories, each for a while and each as often as the others; an "
    "impression is liked when it is of the category of the last click. Every category in a history is there as often, "
    "so any weighted sum over the history predicts nothing: only the order does."
)
_CATEGORIES, _ITEMS = 12, 240
_LIKES, _ELSE = 0.85, 0.15  # chance of a click on an item of the last category, and of another


class DriftingInterest(Strict):
    """Parameters of ``drifting_interest``."""

    users: int = Field(2_000, ge=1, description="users")
    phases: int = Field(3, ge=2, le=_CATEGORIES, description="categories a user goes through")
    stay: int = Field(3, ge=1, description="clicks in each of them")
    shown: int = Field(6, ge=1, description="impressions of a user, all after the clicks")


def make(parameters: DriftingInterest, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, clicks = parameters.users, parameters.phases * parameters.stay
    each = clicks + parameters.shown
    items_by_category = CategorizedItems(_ITEMS, _CATEGORIES, random)
    path = choose_categories(_CATEGORIES, users, parameters.phases, random)
    clicked_categories = np.repeat(path, parameters.stay, axis=1)
    # Half of the impressions are of the last category, the others of one before it: all were liked once.
    last = random.random((users, parameters.shown)) < 0.5
    before = np.take_along_axis(path, random.integers(0, parameters.phases - 1, (users, parameters.shown)), axis=1)
    category = np.concatenate([clicked_categories, np.where(last, path[:, -1:], before)], axis=1)
    item = items_by_category.draw_items(category, random)
    chance = np.where(last, _LIKES, _ELSE)
    liked = draw_labels(chance, random)
    seconds = np.arange(each) * 600 + random.integers(0, 86_400, (users, 1))
    seconds[:, clicks:] = seconds[:, clicks : clicks + 1]  # at once, so that none of them stands in another's past
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
