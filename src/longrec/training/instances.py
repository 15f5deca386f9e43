"""Impressions of a log as instances: user, time, id, side information and the time of its availability."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data import targets
from longrec.data.log import Log
from longrec.features.history_columns import NEVER
from longrec.features.token_columns import compute_instance_ids
from longrec.features.vocabulary import compute_key_numbers

LABEL = "label"
NONE, NEGATIVE, POSITIVE = 0, 1, 2
"""Ids of the side column ``label``. 3 means not yet available."""


class Instances:
    """Impressions of a log, by row.

    Attributes:
        times: int64 timestamps of the impressions.
        available: int64 timestamps from which on each impression can be read.
        ids: int64 instance ids, distinct.
        sides, known: side columns (ids), and the timestamps at which they became available.
        side_rows: number of ids per side column. The id of that number means "not yet known".
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self.times = np.asarray(log.events.times)
        self.available = self.times if log.available is None else np.asarray(log.available)
        self._users = np.concatenate([[0], compute_key_numbers(log.users.keys.values)])
        items = np.concatenate([[0], compute_key_numbers(log.items.keys.values)])
        rows = np.arange(len(log))
        self.ids = compute_instance_ids(self.users(rows), items.take(log.events.columns["item"]), self.times)
        labels = log.labels
        label = np.where(np.isnan(labels), NONE, np.where(labels > 0.5, POSITIVE, NEGATIVE)).astype(np.uint8)
        self.sides: dict[str, NDArray[Any]] = {LABEL: label}
        self.available_at: dict[str, NDArray[np.int64]] = {LABEL: log.label_time(rows)}
        self.side_rows = {LABEL: 3}
        for name, feature in log.schema.features.items():
            if not feature.feedback or name == LABEL:
                continue
            self.sides[name] = np.asarray(log.events.columns[name])
            self.available_at[name] = targets.compute_available_at(log, name, rows)
            self.side_rows[name] = log.fitted.encoders[name].rows
        self._waiting = np.zeros(0, np.int64)

    def users(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the int64 key numbers of the users of rows."""
        return self._users.take(self.log.user(rows))

    def has_label(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return True for rows with a label."""
        return ~np.isnan(self.log.labels.take(rows))

    def select(self, rows: NDArray[np.int64], filter_name: str) -> NDArray[np.bool_]:
        """Return True for rows that have a token."""
        if filter_name == "all":
            return np.ones(len(rows), bool)
        return (self.sides[LABEL].take(rows) == POSITIVE) & (self.available_at[LABEL].take(rows) < NEVER)

    def feed(self, rows: NDArray[np.int64]) -> None:
        """Add encoded rows, whose labels may be used for training once they are available."""
        self._waiting = np.concatenate([self._waiting, rows[self.has_label(rows)]])

    def take_ready(self, timestamp: int | None) -> NDArray[np.int64]:
        """Return the rows whose labels were available strictly before a timestamp, each row once.

        Args:
            timestamp: None returns no rows, because no block follows.
        """
        if timestamp is None:
            return np.zeros(0, np.int64)
        is_available = self.available_at[LABEL].take(self._waiting) < timestamp
        rows, self._waiting = self._waiting[is_available], self._waiting[~is_available]
        return np.sort(rows)
