"""Small made-up logs whose answer is known: does a model find what is there to find, and nothing that is not?

A world is an event log with a story, the true probability of every label, and the models that must solve it and
that must not. A model has solved a world when its AUC on the test rows reaches nine tenths of the way from one half
to the AUC of the true probabilities (``World.bar``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from longrec.errors import UnknownName

START = 1_735_689_600  # 2025-01-01 in seconds UTC: when every world begins
SOLVED = 0.9  # of the way from chance to the oracle


@dataclass(frozen=True, eq=False)
class World:
    """A generated log with its answer.

    Attributes:
        name: what it is called.
        story: what goes on in it, in a few sentences.
        log: events by user and time, so that row n is row n of the prepared log too.
        items: table of items by key, or None.
        users: table of users by key, or None.
        schema: the words of a schema file.
        split: the words of ``data.split``.
        oracle: float64 ``[events]``, aligned with the log: the true probability that the label is 1, given all that
            is hidden; NaN where there is no label.
        must: model sections (``{"name": "din"}``) that have to solve the world.
        must_not: model sections that cannot, by the way the world is made.
        fit: what to train them with.
        leak: a schema that reads the same log carelessly, where the world is about a leak: read so, the label shows.
    """

    name: str
    story: str
    log: pa.Table
    schema: Mapping[str, Any]
    split: Mapping[str, Any]
    oracle: NDArray[np.float64]
    items: pa.Table | None = None
    users: pa.Table | None = None
    must: tuple[Mapping[str, Any], ...] = ()
    must_not: tuple[Mapping[str, Any], ...] = ()
    fit: Mapping[str, Any] = field(default_factory=dict)
    leak: Mapping[str, Any] | None = None

    def job(self, folder: str | Path, model: Mapping[str, Any], **fit: Any) -> dict[str, Any]:
        """A config that trains a model on the world as ``write`` left it in ``folder``."""
        folder = Path(folder)
        tables = [name for name in ("log", "items", "users") if getattr(self, name) is not None]
        data: dict[str, Any] = {name: str(folder / f"{name}.parquet") for name in tables}
        data |= {"schema": str(folder / f"{self.name}.schema.yaml"), "split": dict(self.split)}
        return {"data": data, "model": dict(model), "fit": {**self.fit, **fit}}

    def bar(self, oracle_auc: float) -> float:
        """The AUC a model has to reach, given the AUC of the oracle on the same rows."""
        return 0.5 + SOLVED * (oracle_auc - 0.5)


def names() -> list[str]:
    """The worlds there are."""
    return sorted(_WORLDS)


def world(name: str, users: int | None = None, seed: int = 0) -> World:
    """Make a world; the same arguments make the same world.

    Args:
        users: how many there are; default as many as the models need to learn it in a few seconds.

    Raises:
        UnknownName: no world of that name.
    """
    if name not in _WORLDS:
        raise UnknownName("world", name, _WORLDS)
    make, enough = _WORLDS[name]
    return make(enough if users is None else users, np.random.default_rng(seed))


def write(made: World, folder: str | Path) -> Path:
    """Write ``log.parquet``, ``items.parquet``, ``users.parquet`` (those there are) and ``<name>.schema.yaml``.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("log", made.log), ("items", made.items), ("users", made.users)):
        if table is not None:
            pq.write_table(table, folder / f"{name}.parquet")
    story = textwrap.fill(made.story, 100, initial_indent="# ", subsequent_indent="# ")
    text = f"{story}\n{yaml.safe_dump(dict(made.schema), sort_keys=False)}"
    (folder / f"{made.name}.schema.yaml").write_text(text, encoding="utf-8")
    return folder


# ---- one_interest ------------------------------------------------------------------------------------------------

_CLICKS, _SHOWN = 12, 8  # events of one user: clicks first, then impressions
_CATEGORIES, _ITEMS = 6, 240
_LIKES, _ELSE = 0.85, 0.15  # chance of a click on an item of the own category, and of another


def _one_interest(users: int, random: np.random.Generator) -> World:
    each = _CLICKS + _SHOWN
    category_of = random.permutation(np.arange(_ITEMS) % _CATEGORIES)
    by_category = np.argsort(category_of, kind="stable").reshape(_CATEGORIES, -1)
    interest = np.repeat(random.integers(0, _CATEGORIES, users), each)
    shown = np.tile(np.arange(each) >= _CLICKS, users)
    # A past click is of the own category three times in four, an impression every other time.
    own = random.random(users * each) < np.where(shown, 0.5, 0.75)
    other = (interest + random.integers(1, _CATEGORIES, users * each)) % _CATEGORIES
    category = np.where(own, interest, other)
    item = by_category[category, random.integers(0, _ITEMS // _CATEGORIES, users * each)]
    chance = np.where(own, _LIKES, _ELSE)
    liked = (random.random(users * each) < chance).astype(np.int64)
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), each),
            "item": item,
            "time": START + np.tile(np.arange(each) * 600, users) + np.repeat(random.integers(0, 86_400, users), each),
            "action": np.where(shown, "shown", "click"),
            "liked": pa.array(liked, mask=~shown),
        }
    )
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "label": "liked",
        "features": {
            "user": {"kind": "id"},
            "item": {"kind": "id"},
            "category": {"kind": "id", "table": "item"},
        },
        "histories": {"clicks": {"of": ["item", "category"], "where": {"action": "click"}, "last": 20}},
    }
    return World(
        name="one_interest",
        story="Every user likes one category, which nothing tells but the items clicked before. Users of the test "
        "part are new, so whoever cannot read histories knows nothing of them.",
        log=log,
        items=pa.table({"item": np.arange(_ITEMS), "category": category_of}),
        schema=schema,
        split={"by": "user", "valid": 0.1, "test": 0.3},
        oracle=np.where(shown, chance, np.nan),
        must=({"name": "din"}, {"name": "pooling"}),
        must_not=({"name": "lr"}, {"name": "fm"}, {"name": "deepfm"}, {"name": "wide_deep"}, {"name": "dcn"}),
        fit={"epochs": 6, "batch_size": 128, "lr": 3e-3, "tables_lr": 1e-2},
    )


# ---- late_correction ---------------------------------------------------------------------------------------------

_EVENTS = 10  # of one user


def _late_correction(users: int, random: np.random.Generator) -> World:
    n = users * _EVENTS
    label = random.integers(0, 2, n)
    gap = random.integers(2, 50, (users, _EVENTS)) * 60
    time = START + np.cumsum(gap, axis=1)
    following = np.concatenate([label[1:], [0]]).reshape(users, _EVENTS)
    following[:, -1] = random.integers(0, 2, users)
    # The report is amended with or after the next event, and before the one after that: a third at the very moment.
    waits = np.concatenate([gap[:, 1:], np.full((users, 1), 60)], axis=1)
    late = np.where(random.random((users, _EVENTS)) < 1 / 3, 0, 60)
    log = pa.table(
        {
            "user": np.repeat(np.arange(users), _EVENTS),
            "item": random.integers(0, 50, n),
            "time": time.ravel(),
            "fraud": label,
            "report": following.ravel(),
            "corrected_at": (time + waits + late).ravel(),
        }
    )
    features: dict[str, Any] = {"item": {"kind": "id"}, "report": {"kind": "id", "feedback": True}}
    schema: dict[str, Any] = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "label": "fraud",
        "features": {**features, "report": {**features["report"], "known_at": "corrected_at"}},
        "histories": {"past": {"of": ["item", "report"], "last": 1}},
    }
    everybody = ("lr", "fm", "deepfm", "wide_deep", "dcn", "pooling", "din")
    return World(
        name="late_correction",
        story="Labels are coins. The report of an event is amended once the user's next event has happened, and then "
        "says how that one ended. Read as it was known at the time, it tells nothing; read as it stands now, all.",
        log=log,
        schema=schema,
        split={"by": "user", "valid": 0.1, "test": 0.4},
        oracle=np.full(n, 0.5),
        must_not=tuple({"name": name} for name in everybody),
        fit={"epochs": 2, "batch_size": 256, "lr": 3e-3, "tables_lr": 1e-2},
        leak={**schema, "features": features},
    )


_WORLDS: dict[str, tuple[Callable[[int, np.random.Generator], World], int]] = {
    "one_interest": (_one_interest, 1_500),
    "late_correction": (_late_correction, 800),
}
