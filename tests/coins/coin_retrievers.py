"""Retrievers on a log of random items: how many targets are among the first ten, and how likely luck explains it.

Users, items, their features and the context are drawn at random and independently. Whatever precedes a target, each of
the I items is it with the probability 1 / I. A model that does not read the target hits it with K of I items, and the
hits of all targets are a binomial variable.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, fsum, lgamma, log, log1p
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.training.fit import train

USERS, ITEMS, EVENTS, FIRST = 240, 100, 12, 10
SHARE = 0.4
"""Share of the test rows."""
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "time", "unit": "s"},
    "features": {
        "group": {"kind": "id", "side": "user"},
        "item": {"kind": "id"},
        "genre": {"kind": "id", "side": "item"},
        "device": {"kind": "id"},
    },
    "histories": {"seen": {"features": ["item", "genre", "device"], "max_length": 10}},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sasrec": {"layers": 1, "dropout": 0.0},
    "gru4rec": {"dropout": 0.0},
    "youtube_dnn": {"mlp": [16], "dropout": 0.0},
    "dssm": {"dropout": 0.0},
    "mind": {"dropout": 0.0},
    "comirec": {"dropout": 0.0},
    "sdm": {"dropout": 0.0},
    "hstu_next_item": {"layers": 1, "layer_dropout": 0.0},
    "unirec": {"layers": 1, "hidden": 16, "dropout": 0.0},
}
"""Settings of each model that learns, besides those of its size."""
GENERATORS = ("unirec",)
"""Models that have no negatives. They generate the codes of items, which are digits of a random number."""


@dataclass(frozen=True)
class Hits:
    """Targets among the first items.

    Attributes:
        hits: number of targets that are.
        targets: number of targets.
    """

    hits: int
    targets: int

    @property
    def more(self) -> float:
        """Probability that luck hits as many targets, or more."""
        return tail(self.hits, self.targets, FIRST / ITEMS)

    @property
    def fewer(self) -> float:
        """Probability that luck hits as few targets, or fewer."""
        return tail(self.targets - self.hits, self.targets, 1 - FIRST / ITEMS)

    def __str__(self) -> str:
        return f"{self.hits} of {self.targets} hit, chance {FIRST / ITEMS:.0%}: {self.more:.1e} for more"


def tail(hits: int, trials: int, rate: float) -> float:
    """Return the probability of at least so many hits of a binomial variable."""
    return fsum(
        exp(lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) + k * log(rate) + (trials - k) * log1p(-rate))
        for k in range(hits, trials + 1)
    )


def write_log(folder: Path) -> Mapping[str, Any]:
    """Write the log and the tables of users and items, and return the section ``data``."""
    random, rows = np.random.default_rng(0), USERS * EVENTS
    item = random.integers(0, ITEMS, rows)
    item[:ITEMS] = random.permutation(ITEMS)
    tables = {
        "log": {
            "user": np.repeat(np.arange(USERS), EVENTS),
            "item": item,
            "time": 1_700_000_000 + random.permutation(rows) * 60,
            "device": random.integers(0, 4, rows),
            "copy": item,
        },
        "users": {"user": np.arange(USERS), "group": random.integers(0, 5, USERS)},
        "items": {"item": np.arange(ITEMS), "genre": random.integers(0, 8, ITEMS)},
    }
    number = random.permutation(ITEMS)
    tables["items"] |= {"code_1": number // 10, "code_2": number % 10}
    paths = {name: str(folder / f"{name}.parquet") for name in tables}
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), paths[name])
    split = {"by": "time", "valid": 0.05, "test": SHARE}
    return {**paths, "schema": SCHEMA, "split": split, "folder": str(folder / "prepared"), "threads": 1}


def add_codes(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section ``data`` with the codes of items, for generators."""
    schema, codes = copy.deepcopy(data["schema"]), ["code_1", "code_2"]
    schema["features"] |= {name: {"kind": "id", "side": "item"} for name in codes}
    schema["histories"]["seen"]["features"] += codes
    return {**data, "schema": schema, "folder": f"{data['folder']}_codes"}


def count_hits(data: Mapping[str, Any], model: Mapping[str, Any], folder: Path, epochs: int = 4) -> Hits:
    """Train a retriever and count the targets of test that are among its first items."""
    generates = model["name"] in GENERATORS
    negatives = {} if generates else {"negatives": 50}
    config = {
        "name": "coin",
        "data": add_codes(data) if generates else data,
        "model": {"embedding_dim": 16, **negatives, **SETTINGS[model["name"]], **model},
        "fit": {
            **{"runs": str(folder), "epochs": epochs, "batch_size": 256, "lr": 0.02, "l2": 0.0, "patience": 0},
            **{"val_checks_per_epoch": 1, "checkpoint_seconds": None, "tensorboard": "off", "mlflow": "off"},
        },
        "evaluate": {"n_resamples": 2, "seen": "keep", "catalog": "all"},
    }
    ranks = train(config, quiet=True).predictions("test")["rank"].to_numpy()
    return Hits(int((ranks < FIRST).sum()), len(ranks))
