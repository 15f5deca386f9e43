"""An event that a request brings with it: it is read after the stored events, for this request only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RecentEvent:
    """One event of the user of a request, with raw values.

    Attributes:
        item: key of the item.
        at: timestamp, before that of the request: milliseconds UTC, or a step.
        context: values of the event columns that histories read.
        feedback: values by column. Missing columns are not yet available.
    """

    item: int | str
    at: int
    context: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
