"""Generators that several synthetic datasets share: items in categories, and users with histories and impressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.synthetic.dataset import START

SPLIT = {"by": "user", "valid": 0.1, "test": 0.3}
"""Users of the test split are not in the training split."""


class CategorizedItems:
    """Items of several categories, the same number of each, in random order.

    Args:
        items: a multiple of ``categories``.
    """

    def __init__(self, items: int, categories: int, random: np.random.Generator) -> None:
        self.each = items // categories
        self.category_of = random.permutation(np.arange(items) % categories)
        self._items = np.argsort(self.category_of, kind="stable").reshape(categories, -1)

    def draw_items(self, category: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """Draw one item per entry of ``category``."""
        items: NDArray[np.int64] = self._items[category, random.integers(0, self.each, category.shape)]
        return items

    def table(self) -> pa.Table:
        """Return the items with their categories."""
        return pa.table({"item": np.arange(len(self.category_of)), "category": self.category_of})


def choose_categories(categories: int, users: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw distinct categories per user, in random order: ``[users, count]``."""
    return random.permuted(np.tile(np.arange(categories), (users, 1)), axis=1)[:, :count]


def draw_halves(count: int, users: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw equally many zeros and ones per user, in random order: ``[users, count]``."""
    return random.permuted(np.tile(np.arange(count) % 2, (users, 1)), axis=1)


def draw_labels(probability: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw labels with these probabilities."""
    return (random.random(probability.shape) < probability).astype(np.int64)


def build_log(
    item: NDArray[np.int64],
    seconds: NDArray[np.int64],
    action: tuple[str, NDArray[Any]],
    liked: NDArray[np.int64],
    probability: NDArray[np.float64],
) -> tuple[pa.Table, NDArray[np.float64]]:
    """Return a log in which every user has the same number of events, and its true probabilities.

    The impressions of a user come after the events of its history.

    Args:
        item, seconds: items, and seconds since the start of the dataset, ``[users, events]``.
        action: name of the column of actions, and the actions of the history, ``[users, history]``. The action of an
            impression is "shown".
        liked, probability: labels of the impressions and their true probabilities, ``[users, shown]``.
    """
    users, events = item.shape
    name, actions = action
    column = np.concatenate([actions, np.full(probability.shape, "shown")], axis=1)
    true_probability = np.concatenate([np.full(actions.shape, np.nan), probability], axis=1)
    label = np.concatenate([np.zeros(actions.shape, np.int64), liked], axis=1)
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), events),
            "item": item.ravel(),
            "time": START + seconds.ravel(),
            name: column.ravel(),
            "liked": pa.array(label.ravel(), mask=np.isnan(true_probability).ravel()),
        }
    )
    return log, true_probability.ravel()


def build_schema(features: Mapping[str, Any], histories: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with the label ``liked``, the features ``item`` and ``category``, and further features."""
    own = {"item": {"kind": "id"}, "category": {"kind": "id", "side": "item"}}
    return {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "label": "liked",
        "features": {**own, **features},
        "histories": dict(histories),
    }
