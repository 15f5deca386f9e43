"""The dataset ``long_memory``: only purchases of long ago, among thousands of other events, predict the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import Recipe, SyntheticDataset
from longrec.data.synthetic.generators import SPLIT, CategorizedItems, build_log, build_schema, draw_labels

STORY = (
    "Every user buys items of one category only, long ago: the purchases are scattered among the older events of a "
    "history of hundreds or thousands, and all other events are views, which are drawn the same way for every user. "
    "The newest tenth of a history, 50 events or more, contains views only. An impression is liked if it is of the "
    "category of the purchases. The users of the test split are new, so a model without the old events cannot "
    "predict their labels."
)
_BOUGHT, _VIEWED = 4, 8
"""Number of categories that are bought, viewed and shown, and of those that are only viewed."""
_ITEMS = 120
_VIEWS = 0.1  # share of the views whose category is one of those that are bought
_LIKES, _ELSE = 0.9, 0.1  # click probability of an item of the category of the purchases, and of another
_SECONDS = 600  # between two events

_SMALL = {"embedding_dim": 8, "init_std": 1.0}
RECENT = 50
"""Newest events of a history that contain no purchase, at least."""


class LongMemory(Strict):
    """Parameters of ``long_memory``."""

    users: int = Field(1_500, ge=1, description="number of users")
    length: int = Field(500, gt=RECENT, description="events in the history of each user")
    share: float = Field(0.3, gt=0, le=1, description="share of purchases among the older events, at least one")
    shown: int = Field(8, ge=1, description="impressions per user, all at the same time after the history")


def make(parameters: LongMemory, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, length, shown = parameters.users, parameters.length, parameters.shown
    older = length - max(RECENT, length // 10)
    items_by_category = CategorizedItems(_ITEMS, _BOUGHT + _VIEWED, random)
    taste = random.integers(0, _BOUGHT, (users, 1))
    # The purchases of a user are the events with the smallest of its random numbers.
    order = random.random((users, older))
    buys = max(1, round(parameters.share * older))
    bought = np.zeros((users, length), bool)
    bought[:, :older] = order <= np.partition(order, buys - 1, axis=1)[:, buys - 1 : buys]
    viewed = np.where(
        random.random((users, length)) < _VIEWS,
        random.integers(0, _BOUGHT, (users, length)),
        random.integers(_BOUGHT, _BOUGHT + _VIEWED, (users, length)),
    )
    own = random.random((users, shown)) < 0.5
    other = (taste + random.integers(1, _BOUGHT, (users, shown))) % _BOUGHT
    category = np.concatenate([np.where(bought, taste, viewed), np.where(own, taste, other)], axis=1)
    item = items_by_category.draw_items(category, random)
    chance = np.where(own, _LIKES, _ELSE)
    liked = draw_labels(chance, random)
    seconds = np.minimum(np.arange(length + shown), length) * _SECONDS + random.integers(0, 86_400, (users, 1))
    log, true_probability = build_log(item, seconds, ("action", np.where(bought, "buy", "view")), liked, chance)
    history = {"features": ["category", "action"], "where": {"action": ["buy", "view"]}, "max_length": length}
    schema = build_schema({"action": {"kind": "id", "feedback": True}}, {"events": history})
    return SyntheticDataset(
        name="long_memory",
        story=STORY,
        log=log,
        items=items_by_category.table(),
        schema={**schema, "features": {name: schema["features"][name] for name in ("category", "action")}},
        split=SPLIT,
        true_probability=true_probability,
        must=(
            {"name": "sim", "search": "hard", "short": 0, "embedding_dim": 8, "mlp": [32]},
            {"name": "hpmn", "hidden": 32, "hops": 1, "periods": [5, 5, 5], "attention": [16], **_SMALL, "mlp": [32]},
        ),
        must_not=({"name": "deepfm"},),
        fit={
            "epochs": 4,
            "batch_size": 256,
            "lr": 1e-2,
            "embedding_lr": 2e-2,
            "clip_norm": 0.3,
            "schedule": {"name": "cosine", "steps": 112},
            "patience": 0,
            "val_checks_per_epoch": 1,
            "group_requests": True,
        },
    )


def cut_history(dataset: SyntheticDataset, events: int) -> SyntheticDataset:
    """Return the same log with a schema whose histories contain the newest events only."""
    histories = {name: {**history, "max_length": events} for name, history in dataset.schema["histories"].items()}
    return replace(dataset, schema={**dataset.schema, "histories": histories})


RECIPE = Recipe(STORY, LongMemory, make)
