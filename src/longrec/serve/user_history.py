"""The events that a score of a user reads, as clients return them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class HistoryEvent(NamedTuple):
    """One event that a score reads.

    Attributes:
        at: timestamp.
        item: key of its item. None for none.
        title: title of the item, if the item table has one.
        values: values of the history's columns.
    """

    at: str | int | None
    item: int | str | None
    title: str | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class UserHistory:
    """What one model reads in one history of a user.

    Attributes:
        model: name of the model.
        name: name of the history.
        events: number of events that a score reads.
        folded: number of them that are in the state of the user. None for a bundle without states.
        newest: the newest events, newest first.
    """

    model: str
    name: str
    events: int
    folded: int | None
    newest: tuple[HistoryEvent, ...]
