"""The dataset ``negative_feedback``: a dislike shows which unclicked item is informative."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset

STORY = (
    "Each user has an unwanted style, plain or fancy. In each of several categories the user left one item "
    "unclicked, of the plain style in half of these categories and of the fancy style in the other half. In all "
    "of them but one, the user never saw the unclicked item, so its style carries no signal. In the remaining "
    "category the user also disliked an item, and there the unclicked item is of the unwanted style. The disliked "
    "item is of a random style, half of the clicks are on each style, and impressions are of other categories. So "
    "neither clicks nor sums over the events predict the label: a model must use the dislike to select the one "
    "informative unclicked item."
)
_CATEGORIES, _EACH = 16, 6  # items of one category and style
_LIKES, _ELSE = 0.85, 0.15  # click probability of an item of the wanted style, and of the other
_ALOUD = 0.3  # probability of a dislike of an unclicked item of the unwanted style


class NegativeFeedback(Strict):
    """Parameters of ``negative_feedback``."""

    users: int = Field(1_400, ge=1, description="number of users")
    passed: int = Field(
        6, ge=2, lt=_CATEGORIES, multiple_of=2, description="categories in which a user left an item unclicked"
    )
    clicked: int = Field(2, ge=2, multiple_of=2, description="clicks per user, half of them on each style")
    shown: int = Field(8, ge=1, description="impressions per user, all after the other events")


def make(parameters: NegativeFeedback, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, passed, clicked, shown = parameters.users, parameters.passed, parameters.clicked, parameters.shown
    n_history, each = passed + 1 + clicked, passed + 1 + clicked + shown
    order = random.permuted(np.tile(np.arange(_CATEGORIES), (users, 1)), axis=1)
    unclicked_style = random.permuted(
        np.tile(np.arange(passed) % 2, (users, 1)), axis=1
    )  # styles; only the item of the first category was seen
    # Unclicked, disliked, clicked and shown, in this order. The history is then shuffled.
    clicks = random.integers(0, _CATEGORIES, (users, clicked))
    now = np.take_along_axis(order, random.integers(passed, _CATEGORIES, (users, shown)), axis=1)
    category = np.concatenate([order[:, :passed], order[:, :1], clicks, now], axis=1)
    either = np.tile(np.arange(clicked) % 2, (users, 1))
    style = np.concatenate(
        [unclicked_style, random.integers(0, 2, (users, 1)), either, random.integers(0, 2, (users, shown))], 1
    )
    action = np.tile(np.repeat(np.arange(4), [passed, 1, clicked, shown]), (users, 1))
    order_mixed = random.permuted(np.tile(np.arange(n_history), (users, 1)), axis=1)
    for column in (category, style, action):
        column[:, :n_history] = np.take_along_axis(column, order_mixed, axis=1)
    wanted = style != unclicked_style[:, :1]
    chance = np.where(action == 3, np.where(wanted, _LIKES, _ELSE), np.nan)
    liked = random.random(chance.shape) < chance
    aloud = ~wanted & ~liked & (random.random(chance.shape) < _ALOUD)
    item = (2 * category + style) * _EACH + random.integers(0, _EACH, category.shape)
    names = random.permutation(2 * _CATEGORIES * _EACH)
    kinds = np.empty_like(names)
    kinds[names] = np.arange(len(names)) // _EACH
    seconds = np.minimum(np.arange(each), n_history) * 600 + random.integers(0, 86_400, (users, 1))
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), each),
            "item": names[item].ravel(),
            "time": START + seconds.ravel(),
            "action": np.array(["unclick", "dislike", "click", "shown"])[action.ravel()],
            "disliked": np.where(action == 3, aloud, action == 1).astype(np.int64).ravel(),
            "liked": pa.array(liked.astype(np.int64).ravel(), mask=(action < 3).ravel()),
        }
    )
    features = {"item": {"kind": "id"}, **{name: {"kind": "id", "side": "item"} for name in ("category", "style")}}
    lengths = {"click": clicked, "unclick": passed, "dislike": 1}
    histories = {
        f"{name}s": {"features": ["category", "style"], "where": {"action": name}, "max_length": last}
        for name, last in lengths.items()
    }
    return SyntheticDataset(
        name="negative_feedback",
        story=STORY,
        log=log,
        items=pa.table({"item": np.arange(len(names)), "category": kinds // 2, "style": kinds % 2}),
        schema={
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "label": "liked",
            "features": {**features, "disliked": {"kind": "id", "feedback": True}},
            "histories": histories,
        },
        split={"by": "user", "valid": 0.1, "test": 0.3},
        true_probability=chance.ravel(),
        must=({"name": "dfn"}, {"name": "dfn", "dislike": "disliked"}),
        must_not=(
            {"name": "dfn", "clicks": "clicks"},
            {"name": "dfn", "unclicks": "unclicks"},
            {"name": "dfn", "dislikes": "dislikes"},
            {"name": "pooling"},
            {"name": "din"},
            {"name": "deepfm"},
        ),
        # With more epochs or fewer categories, DIN memorizes the label of each combination of sums and dislike.
        fit={"epochs": 6, "batch_size": 128, "lr": 5e-3, "embedding_lr": 2e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, NegativeFeedback, make)
