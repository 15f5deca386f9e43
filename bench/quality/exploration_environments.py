"""Environments with a known click probability, for ``exploration_simulation.py``.

    drifting        synthetic: items come and go, the tastes of groups of users drift
    drifting, rare  the same, but a few items are far better than all others, so that finding them pays
    kuairand        the click model of ``exploration_click_model.py`` is the truth: users, pages and candidates are
                    those of rows of the real log, in the order of time

All policies of a seed get the same requests, candidates and uniform numbers. A shown item is clicked if the number of
the request is below its true probability.

Shapes: T requests, K candidates of each, I items, U users, G groups, D width of a taste.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from exploration_click_model import ClickModel
from numpy.typing import NDArray

from longrec.features.batch import Batch, Layout
from longrec.features.fields import Field, Fields

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
RESERVED = 2
"""Rows of a table before the first id."""
GROUPS, SEGMENTS, CATEGORIES, WIDTH = 20, 5, 10, 4
ALIVE, LIFE, ROUND = 200, 40, 1_000
"""Of ``drifting``: items alive at a time, rounds that an item lives, and requests of a round."""
MEMORY = 0.97
"""Correlation of the tastes of two rounds that follow each other."""
RARE, GAIN = 0.08, 2.5
"""Of ``drifting, rare``: share of the items that are better, and how much, as a logit."""
CANDIDATES = {"drifting": 10, "drifting, rare": 20, "kuairand": 10}
NEARBY = 1_500
"""Of ``kuairand``: candidates are the videos of rows at most so far from the row of the request."""
REQUEST_FIELDS, ITEM_FIELDS = ("active", "category_1", "tab"), ("video", "tag", "duration", "upload")


@dataclass(frozen=True)
class Environment:
    """Requests with candidates and the probability that each is clicked.

    Attributes:
        fields: features that policies read.
        requests: int32 ``[T]`` per feature of users and context.
        items: int32 ``[I]`` per feature of items.
        candidates: int64 ``[T, K]``, items. The candidates of a request differ.
        truth: float32 ``[T, K]``, probability of a click.
        chance: float32 ``[T]``, uniform. A shown item is clicked if it is below the truth.
        served: requests that policies serve. The rest evaluates their nets.
    """

    fields: Fields
    requests: dict[str, NDArray[np.int32]]
    items: dict[str, NDArray[np.int32]]
    candidates: Ints
    truth: Floats
    chance: Floats
    served: int

    @cached_property
    def best(self) -> Floats:
        """Return the largest probability among the candidates of each request, ``[T]``."""
        largest: Floats = self.truth.max(1)
        return largest

    def batch_requests(self, rows: slice) -> Batch:
        """Return the candidates of some requests as one grouped batch, without labels."""
        candidates = self.candidates[rows]
        owner = np.repeat(np.arange(len(candidates)), candidates.shape[1])
        requests = {name: torch.from_numpy(values[rows]) for name, values in self.requests.items()}
        items = {name: torch.from_numpy(values[candidates.ravel()]) for name, values in self.items.items()}
        return Batch(Layout.grouped(len(candidates), owner), requests, items)

    def batch_shown(self, rows: Ints, shown: Ints, clicks: Floats) -> Batch:
        """Return labeled impressions, for training.

        Args:
            rows: ``[B]`` requests.
            shown: ``[B]``, which candidate was shown.
            clicks: ``[B]``, 0 or 1.
        """
        item = self.candidates[rows, shown]
        requests = {name: torch.from_numpy(values[rows]) for name, values in self.requests.items()}
        items = {name: torch.from_numpy(values[item]) for name, values in self.items.items()}
        return Batch(Layout.single(len(rows)), requests, items, label=torch.from_numpy(clicks))

    def click(self, rows: Ints, shown: Ints) -> Floats:
        """Return 1 for each shown candidate that is clicked, else 0."""
        clicks: Floats = (self.chance[rows] < self.truth[rows, shown]).astype(np.float32)
        return clicks

    def level(self) -> Environment:
        """Return the environment in which every candidate has the probability 1/2."""
        return replace(self, truth=np.full_like(self.truth, 0.5))


def draw_drifting(seed: int, served: int, held_out: int, candidates: int, rare: bool = False) -> Environment:
    """Draw the synthetic environment.

    logit = base + segment + quality + taste of the group at this round . vector of the item. The vector is that of the
    category plus one of the item's own, so that a new item is like its category but for what only its clicks tell.

    Args:
        rare: most qualities are about equal, and a few are ``GAIN`` higher. Else they are normal.
    """
    random = np.random.default_rng([seed, 1])
    total = served + held_out
    rounds = -(-served // ROUND)
    born = np.sort(np.concatenate([random.integers(-LIFE, 0, ALIVE), np.repeat(np.arange(rounds), ALIVE // LIFE)]))
    items = len(born)
    category = random.integers(0, CATEGORIES, items)
    vector_ID = random.normal(0, 0.7, (CATEGORIES, WIDTH))[category] + random.normal(0, 0.5, (items, WIDTH))
    if rare:
        quality_I = np.where(random.random(items) < RARE, GAIN, 0.0) + random.normal(0, 0.3, items)
    else:
        quality_I = random.normal(0, 0.8, items)
    taste = random.normal(0, 0.6, (GROUPS, WIDTH))
    group, segment = random.integers(0, GROUPS, total), random.integers(0, SEGMENTS, total)
    base_G = np.linspace(-0.5, 0.5, SEGMENTS)
    chosen = np.empty((total, candidates), np.int64)
    truth = np.empty((total, candidates), np.float32)
    for start in range(0, total, ROUND):
        number, rows = min(start // ROUND, rounds - 1), slice(start, min(start + ROUND, total))
        if start and start < served:
            taste = MEMORY * taste + random.normal(0, 0.6 * (1 - MEMORY**2) ** 0.5, taste.shape)
        alive = np.flatnonzero((born <= number) & (number < born + LIFE))
        order = np.argpartition(random.random((rows.stop - start, len(alive))), candidates, axis=1)[:, :candidates]
        chosen[rows] = alive[order]
        affinity = np.einsum("rd,rkd->rk", taste[group[rows]], vector_ID[chosen[rows]])
        logit = (-3.0 if rare else -2.2) + base_G[segment[rows], None] + quality_I[chosen[rows]] + affinity
        truth[rows] = 1 / (1 + np.exp(-logit))
    fields = Fields(
        (
            Field("group", "id", GROUPS + RESERVED, side="user"),
            Field("segment", "id", SEGMENTS + RESERVED, side="user"),
            Field("item", "id", items + RESERVED, side="item"),
            Field("category", "id", CATEGORIES + RESERVED, side="item"),
        ),
        {},
    )
    requests = {"group": group, "segment": segment}
    features = {"item": np.arange(items), "category": category}
    return Environment(fields, _encode(requests), _encode(features), chosen, truth, _draw(random, total), served)


def _encode(columns: dict[str, Ints]) -> dict[str, NDArray[np.int32]]:
    return {name: (values + RESERVED).astype(np.int32) for name, values in columns.items()}


def _draw(random: np.random.Generator, total: int) -> Floats:
    return random.random(total).astype(np.float32)


def draw_kuairand(model: ClickModel, seed: int, served: int, held_out: int, candidates: int) -> Environment:
    """Draw requests of the real log in the order of time, and compute the truth by the click model.

    A request is a row of the log: its user and its page of the app. Candidates are distinct videos of rows nearby in
    time, so that frequent videos are frequent candidates, and new ones appear when they did.
    """
    random = np.random.default_rng([seed, 2])
    log, total = model.log, served + held_out
    row = np.sort(random.integers(0, len(log["video"]), total))
    chosen = np.empty((total, candidates), np.int64)
    wanted = np.arange(total)
    while len(wanted):  # again where two candidates are equal
        near = row[wanted, None] + random.integers(-NEARBY, NEARBY + 1, (len(wanted), candidates))
        near = np.where(near < 0, -near, near)
        near = np.where(near >= len(log["video"]), 2 * len(log["video"]) - 2 - near, near)
        chosen[wanted] = log["video"][near]
        ordered = np.sort(chosen[wanted], 1)
        wanted = wanted[(ordered[:, 1:] == ordered[:, :-1]).any(1)]
    truth = np.empty((total, candidates), np.float32)
    for start in range(0, total, 5_000):
        rows = slice(start, start + 5_000)
        truth[rows] = model.predict_candidates(log["user"][row[rows]], log["tab"][row[rows]], chosen[rows])
    requests = {"active": model.users["active"][log["user"][row]], "category_1": model.users["category_1"]}
    requests = {**requests, "category_1": requests["category_1"][log["user"][row]], "tab": log["tab"][row]}
    items = {name: model.items[name] for name in ITEM_FIELDS}
    sides = {**dict.fromkeys(REQUEST_FIELDS, "user"), **dict.fromkeys(ITEM_FIELDS, "item"), "tab": "context"}
    columns = {**{name: model.sizes[name] for name in REQUEST_FIELDS}, **{name: model.sizes[name] for name in items}}
    fields = Fields(tuple(Field(name, "id", rows, side=sides[name]) for name, rows in columns.items()), {})
    chance = _draw(random, total)
    return Environment(fields, requests, items, chosen, truth, chance, served)


def draw(name: str, seed: int, served: int, held_out: int, data: Path | None) -> Environment:
    """Draw the environment of this name and seed."""
    if name != "kuairand":
        return draw_drifting(seed, served, held_out, CANDIDATES[name], rare=name == "drifting, rare")
    assert data is not None, "kuairand needs --data"
    return draw_kuairand(ClickModel.open(data), seed, served, held_out, CANDIDATES[name])
