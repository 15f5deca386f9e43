"""The dataset ``two_interests``: the next item is from one of two unrelated clusters of items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset
from longrec.data.synthetic.generators import CategorizedItems, choose_categories

STORY = (
    "Every user takes items of two clusters, drawn at random from all clusters and unrelated to each other. Each event "
    "is of one of the two at random, and of an item of it at random. The best list of next items holds both clusters. "
    "Vectors of few numbers separate every cluster from all others, but not every pair of them: several vectors per "
    "user reach both clusters of a user, and one vector between the two reaches other items."
)


class TwoInterests(Strict):
    """Parameters of ``two_interests``."""

    users: int = Field(800, ge=1, description="number of users")
    clusters: int = Field(40, ge=3, description="number of clusters")
    each: int = Field(5, ge=1, description="items of each cluster")
    events: int = Field(12, ge=5, description="events of each user; the last one is tested, the one before validated")


def make(parameters: TwoInterests, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, clusters, events = parameters.users, parameters.clusters, parameters.events
    items = CategorizedItems(clusters * parameters.each, clusters, random)
    pair = choose_categories(clusters, users, 2, random)
    # The first two events are of both clusters, so that later ones have a history of both.
    which = np.concatenate([np.tile([0, 1], (users, 1)), random.integers(0, 2, (users, events - 2))], axis=1)
    cluster = np.take_along_axis(pair, which, axis=1)
    size = 2 * parameters.each
    return SyntheticDataset(
        name="two_interests",
        story=STORY,
        log=build_rounds(items.draw_items(cluster, random), random),
        schema={
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "features": {"item": {"kind": "id"}},
            "histories": {"taken": {"features": ["item"], "max_length": events}},
        },
        split={"by": "time", "valid": 1 / events, "test": 1 / events},
        true_probability=np.ones(users * events),
        must=(
            {"name": "mind", "embedding_dim": 4, "interests": 2, "iterations": 6, "mlp": None},
            {"name": "comirec", "embedding_dim": 4, "interests": 2},
        ),
        must_not=({"name": "gru4rec", "embedding_dim": 4}, {"name": "comirec", "embedding_dim": 4, "interests": 1}),
        fit={"epochs": 12, "batch_size": 256, "lr": 0.1, "embedding_lr": 0.1, "patience": 0},
        evaluate={"seen": "keep", "catalog": "all"},
        hit_rates={k: min(k / size, 1.0) for k in (parameters.each, size)},
        truth=pa.table({"cluster": cluster.ravel(), "other": np.take_along_axis(pair, 1 - which, axis=1).ravel()}),
    )


def build_rounds(item: NDArray[np.int64], random: np.random.Generator) -> pa.Table:
    """Return a log of rounds: event n of every user is in hour n, at a random second.

    Args:
        item: items, ``[users, events]``.
    """
    users, events = item.shape
    seconds = np.arange(events) * 3_600 + random.integers(0, 3_600, item.shape)
    columns = {"user": np.repeat(np.arange(users), events), "item": item.ravel(), "time": START + seconds.ravel()}
    return pa.table(columns)


RECIPE = Recipe(STORY, TwoInterests, make)
