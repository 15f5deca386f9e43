"""The dataset ``frequent_queries``: many clicks on one category carry no more information than one.

The name follows KFAtt, in which a frequent query counts little more than once, however many clicks it has. Here the
queries are categories.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset

STORY = (
    "Each user prefers one style, plain or fancy. All clicks of a user on one category are of one style, usually "
    "the preferred one. One dominant category has more clicks than all others together, and its style is random, "
    "regardless of the preference. Impressions are of categories without clicks and are liked if they are of the "
    "preferred style. A model must therefore weight all clicked categories equally: a sum over clicks is "
    "dominated by the most frequent category."
)
_CATEGORIES, _EACH = 24, 10  # items per category and style
_OWN = 0.85  # probability that the clicks on a category are of the preferred style
_LIKES, _ELSE = 0.85, 0.15  # click probability of an item of the preferred style, and of the other
_GOLDEN = (5**0.5 - 1) / 2


class FrequentQueries(Strict):
    """Parameters of ``frequent_queries``."""

    users: int = Field(500, ge=1, description="number of users")
    clicked: int = Field(7, ge=1, lt=_CATEGORIES - 1, description="categories with one to three clicks of a user")
    most: int = Field(
        64, ge=1, description="maximum number of clicks on the dominant category; the minimum is a quarter of it"
    )
    shown: int = Field(8, ge=1, description="impressions per user, all after the clicks")


def make(parameters: FrequentQueries, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, clicked, shown = parameters.users, parameters.clicked, parameters.shown
    style = random.integers(0, 2, users)
    order = random.permuted(np.tile(np.arange(_CATEGORIES), (users, 1)), axis=1)
    styles = np.where(random.random((users, clicked + 1)) < _OWN, style[:, None], 1 - style[:, None])
    styles[:, 0] = random.integers(0, 2, users)
    count = random.permuted(np.tile(1 + np.arange(clicked + 1) % 3, (users, 1)), axis=1)
    # The values are spread evenly, so that more users always have more events in total.
    count[:, 0] = parameters.most * 0.25 ** (np.arange(users) * _GOLDEN % 1)
    clicks = count.sum(1)
    each = clicks + shown
    user = np.repeat(np.arange(users), each)
    position = np.arange(each.sum()) - np.repeat(each.cumsum() - each, each)
    is_history = position < clicks[user]
    # Clicks of all categories are shuffled. Impressions are of categories without clicks.
    which = np.repeat(np.tile(np.arange(clicked + 1), users), count.ravel())
    which = which[np.lexsort((random.random(len(which)), user[is_history]))]
    category, now = np.empty(len(user), np.int64), user[~is_history]
    category[is_history] = order[user[is_history], which]
    category[~is_history] = order[now, random.integers(clicked + 1, _CATEGORIES, len(now))]
    own = random.random(len(user)) < 0.5
    shown_style = np.where(own, style[user], 1 - style[user])
    shown_style[is_history] = styles[user[is_history], which]
    chance = np.where(own, _LIKES, _ELSE)
    item = (2 * category + shown_style) * _EACH + random.integers(0, _EACH, len(user))
    names = random.permutation(2 * _CATEGORIES * _EACH)
    log = pa.table(
        {
            "user": user,
            "item": names[item],
            "time": START + random.integers(0, 86_400, users)[user] + np.minimum(position, clicks[user]) * 600,
            "action": np.where(is_history, "click", "shown"),
            "liked": pa.array((random.random(len(user)) < chance).astype(np.int64), mask=is_history),
        }
    )
    kinds = np.empty_like(names)
    kinds[names] = np.arange(len(names)) // _EACH
    features = {"item": {"kind": "id"}, **{name: {"kind": "id", "side": "item"} for name in ("category", "style")}}
    history = {
        "features": ["category", "style"],
        "where": {"action": "click"},
        "max_length": parameters.most + 3 * clicked,
    }
    return SyntheticDataset(
        name="frequent_queries",
        story=STORY,
        log=log,
        items=pa.table({"item": np.arange(len(names)), "category": kinds // 2, "style": kinds % 2}),
        schema={
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "label": "liked",
            "features": features,
            "histories": {"clicks": history},
        },
        split={"by": "user", "valid": 0.1, "test": 0.3},
        true_probability=np.where(is_history, np.nan, chance),
        must=({"name": "kfatt"}, {"name": "dhan"}),
        must_not=(
            {"name": "kfatt", "frequency": False},
            {"name": "din"},
            {"name": "din", "softmax": True},
            {"name": "pooling"},
        ),
        fit={"epochs": 4, "batch_size": 128, "lr": 3e-3, "embedding_lr": 1e-2},
    )


RECIPE = Recipe(STORY, FrequentQueries, make)
