"""Requests to evaluate a pipeline with: when, for whom, in which context, and which items count as hits.

Two choices of what is relevant (``targets``):

- ``next``: a request per positive row of the split, at its timestamp. Its item is relevant.
- ``later``: a request per user, at the first positive row of the split. The items of all its positives from then on are
  relevant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.requests import build_impression
from longrec.errors import ConfigError, RunError, UnknownName
from longrec.exporting.golden import Sample, build_request
from longrec.features.feature_encoders import CrossEncoder, HashEncoder
from longrec.features.raw_columns import list_context_columns
from longrec.training.retriever_lists import draw_rows

Targets = Literal["next", "later"]


@dataclass(frozen=True)
class Requests:
    """L requests at rows of a log.

    Attributes:
        rows: int64 ``[L]``, rows of the log.
        relevant: int64 ``[T]``, relevant items, rows of the item table.
        owner: int64 ``[T]``, request of each relevant item.
        available: number of requests before the sample.
    """

    log: Log
    rows: NDArray[np.int64]
    relevant: NDArray[np.int64]
    owner: NDArray[np.int64]
    available: int

    def __len__(self) -> int:
        return len(self.rows)


def choose_requests(
    log: Log, split: str, targets: Targets = "next", count: int | None = None, seed: int = 0
) -> Requests:
    """Return the requests of a split, or a sample of them.

    Args:
        count: number of requests, drawn once without replacement. None for all.

    Raises:
        UnknownName: an unknown choice of targets.
        ConfigError: a log without users, items or timestamps.
        RunError: no positive row in the split, or positives of one user.
    """
    if targets not in get_args(Targets):
        raise UnknownName("targets", str(targets), get_args(Targets))
    schema = log.schema
    faults = [
        f"data.schema.{name}: is required; a pipeline answers requests of users at a time"
        for name, value in (("user", schema.user), ("item", schema.item), ("time", schema.time))
        if value is None
    ]
    if schema.prejoined:
        faults.append("data.schema.histories: are joined to the rows; a pipeline reads those of its bundles")
    if faults:
        raise ConfigError("requests", faults)
    rows = log.rows_of(split)
    rows = rows[log.labels.take(rows) > 0.5]
    if len(np.unique(log.user(rows))) < 2:
        wrong = f"{len(rows):,} positive rows of {len(np.unique(log.user(rows)))} users"
        raise RunError(split, wrong, "positive rows of two users or more", "name another split, or check data.split")
    items = log.events.columns["item"]
    if targets == "next":
        chosen = draw_rows(rows, count, seed)
        return Requests(log, chosen, items.take(chosen).astype(np.int64), np.arange(len(chosen)), len(rows))
    first = rows[np.unique(log.user(rows), return_index=True)[1]]
    chosen = draw_rows(first, count, seed)
    owner = np.searchsorted(log.user(chosen), log.user(rows))
    owner = np.where(owner < len(chosen), owner, 0)
    own = log.user(chosen)[owner] == log.user(rows)
    pairs = np.unique(owner[own] * len(log.items) + items.take(rows[own]).astype(np.int64))
    return Requests(log, chosen, pairs % len(log.items), pairs // len(log.items), len(first))


@dataclass
class Contexts:
    """Raw values of the context of requests, decoded from the log.

    Args:
        log: the log.
        columns: columns that a pipeline reads. A column that the log does not have, or whose encoded value cannot be
            decoded, is null in every request.

    Attributes:
        absent: columns that are null because the log does not have them.
        hashed: columns that are null because a hash cannot be decoded.
    """

    log: Log
    columns: Sequence[str]
    absent: list[str] = field(init=False)
    hashed: list[str] = field(init=False)

    def __post_init__(self) -> None:
        fitted = self.log.fitted
        own = list_context_columns(fitted)
        self.absent = [column for column in self.columns if column not in own]
        self.hashed = [
            column
            for column in self.columns
            if column in own
            and all(isinstance(fitted.encoders.get(name), (HashEncoder, CrossEncoder)) for name in own[column])
        ]

    def read(self, row: int) -> dict[str, Any]:
        """Return the context of a row."""
        if len(self.absent) == len(self.columns):
            return dict.fromkeys(self.columns)
        log = self.log
        sample = Sample(**build_impression(log, row, []))
        context = build_request(log.fitted, log.users, log.items, sample)["context"]
        return {column: context.get(column) for column in self.columns}

    def warn(self) -> list[str]:
        """Return one sentence per kind of column that is null."""
        reasons = {"the log of the requests does not have it": self.absent, "a hash cannot be decoded": self.hashed}
        return [
            f"context {', '.join(names)}: null in every request, because {reason}"
            for reason, names in reasons.items()
            if names
        ]
