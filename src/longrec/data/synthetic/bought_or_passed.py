"""The dataset ``bought_or_passed``: the action on an item predicts the label, not that the item was seen."""

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
    draw_halves,
    draw_labels,
)

STORY = (
    "A user has seen a few categories, bought items of one half of them and rejected items of the other half. An "
    "impression is of one of these categories and is liked if the user bought from that category. All seen "
    "categories and both actions are equally frequent, so sums over the categories alone, or over the actions "
    "alone, predict nothing. Only the combination of category and action does."
)
_CATEGORIES, _ITEMS = 8, 240
_LIKES, _ELSE = 0.85, 0.15  # click probability of an item of a bought category, and of a rejected one


class BoughtOrPassed(Strict):
    """Parameters of ``bought_or_passed``."""

    users: int = Field(1_200, ge=1, description="number of users")
    seen: int = Field(4, ge=2, le=_CATEGORIES, multiple_of=2, description="categories that each user has seen")
    shown: int = Field(8, ge=1, description="impressions per user, all after the history")


def make(parameters: BoughtOrPassed, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, seen, shown = parameters.users, parameters.seen, parameters.shown
    items_by_category = CategorizedItems(_ITEMS, _CATEGORIES, random)
    seen_categories = choose_categories(_CATEGORIES, users, seen, random)
    bought = draw_halves(seen, users, random)
    which = random.integers(0, seen, (users, shown))
    category = np.concatenate([seen_categories, np.take_along_axis(seen_categories, which, axis=1)], axis=1)
    item = items_by_category.draw_items(category, random)
    chance = np.where(np.take_along_axis(bought, which, axis=1) == 1, _LIKES, _ELSE)
    liked = draw_labels(chance, random)
    seconds = np.minimum(np.arange(seen + shown), seen) * 600 + random.integers(0, 86_400, (users, 1))
    log, true_probability = build_log(item, seconds, ("done", np.array(["passed", "bought"])[bought]), liked, chance)
    history = {"features": ["category", "done"], "where": {"done": ["bought", "passed"]}, "max_length": seen}
    return SyntheticDataset(
        name="bought_or_passed",
        story=STORY,
        log=log,
        items=items_by_category.table(),
        schema=build_schema({"done": {"kind": "id", "feedback": True}}, {"seen": history}),
        split=SPLIT,
        true_probability=true_probability,
        must=({"name": "dupn", "hidden": 32, "mlp": [64]}, {"name": "din"}),
        must_not=({"name": "pooling"}, {"name": "deepfm"}),
        fit={"epochs": 6, "batch_size": 128, "lr": 2e-2, "embedding_lr": 5e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, BoughtOrPassed, make)
