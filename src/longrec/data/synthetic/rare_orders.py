"""The dataset ``rare_orders``: orders follow clicks and are rare."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset

STORY = (
    "Users in the same town like the same kinds of items, and the kind of an item can only be inferred from "
    "clicks. A fixed share of the clicks becomes orders, whatever the kind. The label is the order, which is too "
    "rare to learn the kinds from. The click, a feedback column of the same impression, is frequent enough as an "
    "auxiliary label."
)
_KINDS, _LIKED = 8, 2  # kinds of items; number of kinds that a town likes
_CLICKS, _ELSE = 0.5, 0.02  # click probability of an item that the town likes, and of another


class RareOrders(Strict):
    """Parameters of ``rare_orders``."""

    users: int = Field(600, ge=1, description="number of users")
    towns: int = Field(12, ge=1, description="number of towns; all users of a town like the same kinds")
    items: int = Field(120, ge=_KINDS, description="number of items")
    shown: int = Field(30, ge=1, description="impressions per user")
    orders: float = Field(0.15, gt=0, le=1, description="share of clicks that become orders")


def make(parameters: RareOrders, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    kind_of = random.permutation(np.arange(parameters.items) % _KINDS)
    kinds = random.permuted(np.tile(np.arange(_KINDS), (parameters.towns, 1)), axis=1)
    likes = np.zeros((parameters.towns, _KINDS), bool)
    np.put_along_axis(likes, kinds[:, :_LIKED], True, 1)
    town = np.arange(parameters.users) % parameters.towns
    item = random.integers(0, parameters.items, (parameters.users, parameters.shown))
    chance = np.where(likes[town[:, None], kind_of[item]], _CLICKS, _ELSE)
    click = random.random(chance.shape) < chance
    order = click & (random.random(chance.shape) < parameters.orders)
    seconds = np.arange(parameters.shown) * 600 + random.integers(0, 86_400, (parameters.users, 1))
    log = pa.table(
        {
            "user": np.repeat(np.arange(parameters.users), parameters.shown),
            "item": item.ravel(),
            "time": START + seconds.ravel(),
            "town": np.repeat(town, parameters.shown),
            "click": click.astype(np.int64).ravel(),
            "order": order.astype(np.int64).ravel(),
        }
    )
    features = {"town": {"kind": "id"}, "item": {"kind": "id"}, "click": {"kind": "id", "feedback": True}}
    return SyntheticDataset(
        name="rare_orders",
        story=STORY,
        log=log,
        schema={
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "label": "order",
            "features": features,
        },
        split={"by": "user", "valid": 0.1, "test": 0.3},
        true_probability=(chance * parameters.orders).ravel(),
        must=({"name": "esmm", "click": "click"}, {"name": "shared_bottom", "tasks": {"click": 1.0}}),
        must_not=({"name": "shared_bottom"}, {"name": "deepfm"}),
        fit={"epochs": 4, "batch_size": 256, "lr": 5e-3, "embedding_lr": 2e-2, "patience": 0},
    )


RECIPE = Recipe(STORY, RareOrders, make)
