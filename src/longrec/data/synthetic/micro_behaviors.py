"""The dataset ``micro_behaviors``: the order of actions on an item reveals whether it is wanted."""

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
    "A user visits a few items, each of a category of its own, and on each reads the comments and looks at the "
    "pictures. Who reads first wants it, who looks first does not; an impression is of one of these categories, and "
    "liked when the item was wanted. Every category and every kind of event is there as often, and each with each: "
    "only the order of the events on one item predicts the label."
)
_CATEGORIES, _ITEMS = 8, 240
_LIKES, _ELSE = 0.85, 0.15  # chance of a click on an item of a category that is wanted, and of another


class MicroBehaviors(Strict):
    """Parameters of ``micro_behaviors``."""

    users: int = Field(800, ge=1, description="users")
    visited: int = Field(2, ge=2, le=_CATEGORIES, multiple_of=2, description="items that a user visits")
    shown: int = Field(8, ge=1, description="impressions of a user, all after that")


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
