"""Rows of an event log with raw values, as a server records them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class LoggedRows:
    """N rows of an event log. Times are milliseconds UTC, or steps.

    Attributes:
        numbers: number of each row in the log, from 1.
        users, items: keys, None for a missing one.
        times: timestamp of each event, None for a missing one.
        available: time from which each event is visible, never before the event.
        context: raw values by column.
        feedback: raw values by column.
        feedback_times: time from which a value of feedback is available, for the columns that have one. None: never.
        requests: timestamp of the page view of each row. None without page views.
        table: all of these columns as the log has them.
    """

    numbers: Sequence[int]
    users: Sequence[Any]
    items: Sequence[Any]
    times: Sequence[int | None]
    available: Sequence[int | None]
    context: Mapping[str, Sequence[Any]]
    feedback: Mapping[str, Sequence[Any]]
    feedback_times: Mapping[str, Sequence[int | None]]
    table: pa.Table
    requests: Sequence[int | None] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.numbers)
