"""The logs on which all rankers are compared: their data, splits and histories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kuairand
import movielens_c12

from longrec.data.public_datasets import fetch_movielens_1m
from longrec.interop import atomic


@dataclass(frozen=True)
class Task:
    """One log.

    Attributes:
        data: the ``data`` section without ``folder`` and without histories.
        of: columns of the history by mode. ``past`` includes the user's feedback on the events, ``plain`` does not.
        last: events of a history.
        behaviors: histories of the mode ``past`` for models with one per behavior: name -> ``where``.
        timed: the log has computed columns (sessions, the time between events).
        joined: list columns of pre-joined rows. None for a log of events.
        fit: the ``fit`` section.
        item, category: features that models name in their settings.
    """

    data: dict[str, Any]
    of: dict[str, list[str]]
    last: int
    behaviors: dict[str, dict[str, Any]]
    timed: bool
    joined: dict[str, str] | None
    fit: dict[str, Any]
    item: str
    category: str

    def section(self, mode: str, extra: list[str], apart: bool) -> dict[str, Any]:
        """Return the ``data`` section of a mode.

        Args:
            extra: further computed columns.
            apart: one history per behavior, where the mode distinguishes behaviors.
        """
        schema = dict(self.data["schema"])
        columns = self.of[mode] + (extra if self.timed else [])
        if self.joined is not None:
            schema["histories"] = {"seen": {"columns": self.joined, "features": columns, "max_length": self.last}}
        elif apart and self.behaviors and mode == "past":
            schema["histories"] = {
                name: {"features": columns, "where": where, "max_length": self.last}
                for name, where in self.behaviors.items()
            }
        else:
            schema["histories"] = {"seen": {"features": columns, "max_length": self.last}}
        return {**self.data, "schema": schema}


def _movielens_schema() -> dict[str, Any]:
    return {
        "user": "user_id",
        "item": "movie",
        "time": {"column": "timestamp", "unit": "s"},
        "label": {"column": "rating", "at_least": 4},
        "features": {
            "user_id": {"kind": "id"},
            "gender": {"kind": "id", "side": "user"},
            "age": {"kind": "id", "side": "user"},
            "occupation": {"kind": "id", "side": "user"},
            "movie": {"kind": "id"},
            "year": {"kind": "bucketized", "side": "item", "quantiles": 20},
            "genres": {"kind": "multi_id", "side": "item", "pool": "mean"},
            "rating": {"kind": "id", "feedback": True},
        },
    }


def _movielens(log: Path, source: Path, split: dict[str, Any]) -> Task:
    return Task(
        data={
            "log": str(log),
            "users": str(source / "users.parquet"),
            "items": str(source / "movies.parquet"),
            "split": split,
            "schema": _movielens_schema(),
        },
        of={"past": ["movie", "genres", "rating"], "plain": ["movie", "genres"]},
        last=20,
        behaviors={"liked": {"rating": {"at_least": 4}}, "disliked": {"rating": [1, 2, 3]}},
        timed=True,
        joined=None,
        fit={"epochs": 2, "batch_size": 1024, "lr": 1e-3},
        item="movie",
        category="genres",
    )


def movielens(data: Path, work: Path) -> Task:
    """Return MovieLens-1M, 80/10/10 of the rows by time, label "rated 4 or better"."""
    source = fetch_movielens_1m(atomic.read)
    return _movielens(source / "ratings.parquet", source, {"by": "time", "valid": 0.1, "test": 0.1})


def c12(data: Path, work: Path) -> Task:
    """Return the same ratings by the protocol of the ReChorus notebook (see ``movielens_c12.py``)."""
    source, log = fetch_movielens_1m(atomic.read), (work / "ratings.parquet").resolve()
    if not log.exists():
        movielens_c12.write_log(source, log)
    return _movielens(log, source, {"by": "column", "column": "split"})


def kuai(data: Path, work: Path) -> Task:
    """Return KuaiRand-Pure, 14 days, label is_click (see ``kuairand.py``)."""
    section = kuairand.job(data.resolve() / "kuairand_pure_14d", work, {"name": "din"}, 0)["data"]
    del section["folder"], section["schema"]["histories"]
    return Task(
        data=section,
        of={
            "past": ["video_id", "author_id", "tags", "is_click", "long_view"],
            "plain": ["video_id", "author_id", "tags"],
        },
        last=30,
        behaviors={},  # a filter cannot delay each event until its click is available
        timed=True,
        joined=None,
        fit={"epochs": 1, "batch_size": 512, "lr": 1e-3},
        item="video_id",
        category="author_id",
    )


def beauty(data: Path, work: Path) -> Task:
    """Return Amazon Beauty in DIEN's form: a user's last item or one drawn by popularity, one user in ten is test."""
    log = f"read_parquet('{(data / 'amazon_beauty/ctr_dien_style.parquet').resolve()}')"
    split_column = "CASE WHEN split = 'test' THEN 'test' WHEN user_id % 10 = 3 THEN 'valid' ELSE 'train' END AS part"
    return Task(
        data={
            "log": {"query": f"SELECT *, {split_column} FROM {log}"},
            "split": {"by": "column", "column": "part"},
            "schema": {
                "user": "user_id",
                "item": "item_id",
                "label": "label",
                "features": {"item_id": {"kind": "id"}, "category_id": {"kind": "id", "side": "item"}},
            },
        },
        of={"past": ["item_id", "category_id"]},
        last=100,
        behaviors={},
        timed=False,
        joined={"item_id": "hist_item_id", "category_id": "hist_category_id"},
        fit={"epochs": 3, "batch_size": 128, "lr": 1e-3},
        item="item_id",
        category="category_id",
    )


TASKS: dict[str, Callable[[Path, Path], Task]] = {
    "movielens": movielens,
    "c12": c12,
    "kuairand": kuai,
    "beauty": beauty,
}
