"""The dataset ``co_action``: two ids predict the label only as a pair."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset

STORY = (
    "The label depends on pairs of items. A random table gives every pair a positive or a negative sign, with as "
    "many positive as negative signs in every row and every column. The probability of a like increases with the "
    "sum of the signs of the impression's item and each earlier click of the user. Neither the clicks nor the "
    "item predict the label alone: a model must memorize the pairs (feature crosses)."
)


class CoAction(Strict):
    """Parameters of ``co_action``."""

    users: int = Field(1_500, ge=1, description="number of users")
    side: Literal["history", "field"] = Field(
        "history", description="what the item is paired with: earlier clicks, or one field of the impression"
    )
    order: int = Field(2, ge=2, le=3, description="3: an additional binary field reverses the sign of every pair")
    kinds: int = Field(12, ge=2, description="number of items, and of values of the field; even")
    clicks: int = Field(3, ge=1, description="clicks per user, before the impressions")
    shown: int = Field(8, ge=1, description="impressions per user, all after the clicks")
    strength: float = Field(2.0, ge=0, description="weight of a pair in the logit of the label")

    @field_validator("kinds")
    @classmethod
    def _even(cls, kinds: int) -> int:
        if kinds % 2:
            raise ValueError(f"must be even, got {kinds}")
        return kinds


def make(parameters: CoAction, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, kinds = parameters.users, parameters.kinds
    clicks = parameters.clicks if parameters.side == "history" else 0
    each = clicks + parameters.shown
    together = _table(kinds, random)
    clicked_items = random.integers(0, kinds, (users, clicks))
    item = random.integers(0, kinds, (users, parameters.shown))
    field = random.integers(0, kinds, (users, parameters.shown))
    mood = random.integers(0, 2, (users, parameters.shown))
    if parameters.side == "history":
        agreement = together[clicked_items[:, None, :], item[:, :, None]].sum(2)
    else:
        agreement = together[field, item]
    agreement = agreement * (2 * mood - 1 if parameters.order == 3 else 1)
    chance = 1 / (1 + np.exp(-parameters.strength * agreement))
    liked = random.random(chance.shape) < chance

    def column(before: Any, now: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.broadcast_to(before, (users, clicks)), now], 1).ravel()

    shown = np.tile(np.arange(each) >= clicks, users)
    seconds = np.minimum(np.arange(each), clicks) * 600 + random.integers(0, 86_400, (users, 1))
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), each),
            "item": column(clicked_items, item),
            "time": START + seconds.ravel(),
            "action": np.where(shown, "shown", "click"),
            "place": column(0, field),
            "mood": column(0, mood),
            "liked": pa.array(column(0, liked.astype(np.int64)), mask=~shown),
        }
    )
    features: dict[str, Any] = {"item": {"kind": "id"}}
    if parameters.side == "field":
        features["place"] = {"kind": "id"}
    if parameters.order == 3:
        features["mood"] = {"kind": "id"}
    history = {"clicks": {"features": ["item"], "where": {"action": "click"}, "max_length": parameters.clicks}}
    return SyntheticDataset(
        name="co_action",
        story=STORY,
        log=log,
        schema={
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "label": "liked",
            "features": features,
            **({"histories": history} if parameters.side == "history" else {}),
        },
        split={"by": "user", "valid": 0.1, "test": 0.3},
        true_probability=column(np.nan, chance),
        must=_list_models("can") if parameters.side == "history" else _list_models("pnn", "dcn_v2"),
        must_not=_list_models(*_BLIND)
        if parameters.side == "history"
        else _list_models("lr", *(["fm"] if parameters.order == 3 else [])),
        fit={"epochs": 6, "batch_size": 128, "lr": 5e-3, "embedding_lr": 2e-2, "patience": 0},
    )


def _table(kinds: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return signs ``[kinds, kinds]`` that sum to zero in every row and every column."""
    signs = random.permutation(np.resize([-1, 1], kinds))
    one, other = random.permutation(kinds), random.permutation(kinds)
    return np.asarray(signs[(one[:, None] + other) % kinds], np.int64)


def _list_models(*names: str) -> tuple[dict[str, str], ...]:
    return tuple({"name": name} for name in names)


_BLIND = ("lr", "fm", "fnn", "pnn", "wide_deep", "deepfm", "dcn", "dcn_v2")
"""Models that read no history."""

RECIPE = Recipe(STORY, CoAction, make)
