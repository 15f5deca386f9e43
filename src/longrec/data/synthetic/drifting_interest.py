"""The world ``drifting_interest``: what was liked last counts, and it moves on in steps."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import Recipe, SyntheticDataset
from longrec.data.synthetic.generators import SPLIT, Shelf, drawn, past_then_shown, some_of, words

STORY = (
    "Interests move on. A user clicks through a few categories, each for a while and each as often as the others; an "
    "impression is liked when it is of the category of the last click. Every category in a history is there as often, "
    "so whoever sums the past up, however weighted by the candidate, knows nothing: only the order tells."
)
_CATEGORIES, _ITEMS = 12, 240
_LIKES, _ELSE = 0.85, 0.15  # chance of a click on an item of the last category, and of another


class DriftingInterest(Strict):
    """Knobs of ``drifting_interest``."""

    users: int = Field(2_000, ge=1, description="users")
    phases: int = Field(3, ge=2, le=_CATEGORIES, description="categories a user goes through")
    stay: int = Field(3, ge=1, description="clicks in each of them")
    shown: int = Field(6, ge=1, description="impressions of a user, all after the clicks")


def make(knobs: DriftingInterest, random: np.random.Generator) -> SyntheticDataset:
    """The world of some settings."""
    users, clicks = knobs.users, knobs.phases * knobs.stay
    each = clicks + knobs.shown
    shelf = Shelf(_ITEMS, _CATEGORIES, random)
    path = some_of(_CATEGORIES, users, knobs.phases, random)
    past = np.repeat(path, knobs.stay, axis=1)
    # Half of the impressions are of the last category, the others of one before it: all were liked once.
    last = random.random((users, knobs.shown)) < 0.5
    before = np.take_along_axis(path, random.integers(0, knobs.phases - 1, (users, knobs.shown)), axis=1)
    category = np.concatenate([past, np.where(last, path[:, -1:], before)], axis=1)
    item = shelf.one_of(category, random)
    chance = np.where(last, _LIKES, _ELSE)
    liked = drawn(chance, random)
    moment = np.arange(each) * 600 + random.integers(0, 86_400, (users, 1))
    moment[:, clicks:] = moment[:, clicks : clicks + 1]  # at once, so that none of them stands in another's past
    log, true_probability = past_then_shown(item, moment, ("action", np.full((users, clicks), "click")), liked, chance)
    return SyntheticDataset(
        name="drifting_interest",
        story=STORY,
        log=log,
        items=shelf.table(),
        schema=words({}, {"clicks": {"features": ["category"], "where": {"action": "click"}, "max_length": clicks}}),
        split=SPLIT,
        true_probability=true_probability,
        must=({"name": "dien", "hidden": 24, "gate": "released"}, {"name": "dien", "hidden": 24, "attention": "mlp"}),
        must_not=({"name": "pooling"}, {"name": "din"}, {"name": "deepfm"}),
        fit={"epochs": 12, "batch_size": 128, "lr": 1e-2, "embedding_lr": 1e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, DriftingInterest, make)
