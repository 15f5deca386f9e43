"""The dataset ``micro_behaviors``: the order of the actions on an item predicts the label."""

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
    "A user visits a few items, each of a different category, and on each of them reads the comments and looks at "
    "the pictures. The order of these two events shows the interest: a user who reads the comments first wants "
    "the item, and a user who looks at the pictures first does not. An impression is of one of these categories "
    "and is liked if the visited item was wanted. All visited categories, both event types and all their "
    "combinations are equally frequent, so only the order of the events on each item predicts the label."
)
_CATEGORIES, _ITEMS = 8, 240
_LIKES, _ELSE = 0.85, 0.15  # click probability of an item of a wanted category, and of another


class MicroBehaviors(Strict):
    """Parameters of ``micro_behaviors``."""

    users: int = Field(800, ge=1, description="number of users")
    visited: int = Field(2, ge=2, le=_CATEGORIES, multiple_of=2, description="items that each user visits")
    shown: int = Field(8, ge=1, description="impressions per user, all after the visits")


def make(parameters: MicroBehaviors, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, visited, shown = parameters.users, parameters.visited, parameters.shown
    before = 2 * visited
    items_by_category = CategorizedItems(_ITEMS, _CATEGORIES, random)
    of_visit = choose_categories(_CATEGORIES, users, visited, random)
    wanted = draw_halves(visited, users, random)
    which = random.integers(0, visited, (users, shown))
    category = np.concatenate([of_visit, np.take_along_axis(of_visit, which, axis=1)], axis=1)
    item = items_by_category.draw_items(category, random)
    item = np.concatenate([np.repeat(item[:, :visited], 2, axis=1), item[:, visited:]], axis=1)
    second = np.stack([1 - wanted, wanted], axis=2).reshape(users, before)
    chance = np.where(np.take_along_axis(wanted, which, axis=1) == 1, _LIKES, _ELSE)
    liked = draw_labels(chance, random)
    seconds = np.minimum(np.arange(before + shown), before) * 60 + random.integers(0, 86_400, (users, 1))
    log, true_probability = build_log(item, seconds, ("action", np.array(["read", "look"])[second]), liked, chance)
    history = {"features": ["item", "category", "action"], "where": {"action": ["read", "look"]}, "max_length": before}
    return SyntheticDataset(
        name="micro_behaviors",
        story=STORY,
        log=log,
        items=items_by_category.table(),
        schema=build_schema({"action": {"kind": "id", "feedback": True}}, {"events": history}),
        split=SPLIT,
        true_probability=true_probability,
        must=({"name": "hup", "hidden": 24, "mlp": [64]},),
        must_not=({"name": "pooling"}, {"name": "din"}, {"name": "deepfm"}),
        fit={"epochs": 3, "batch_size": 128, "lr": 1e-2, "embedding_lr": 5e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, MicroBehaviors, make)
