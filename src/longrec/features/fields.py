"""What a model gets to know of a schema after fitting: names, table heights, widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TIME_GAP = "time_gap"
"""Computed history column: log2 buckets of the seconds (or steps) between a past event and the impression."""
TIME_GAP_ROWS = 2 + 40

TIME_SINCE_PREVIOUS = "time_since_previous"
"""Computed history column: the same buckets of the time since the event before; 0 for the first of a history."""
TIME_SINCE_PREVIOUS_ROWS = TIME_GAP_ROWS

SESSION_RECENCY = "session_recency"
"""Computed history column: 2 + how many sessions an event lies before the newest one of the history."""
SESSION_RECENCY_ROWS = 2 + 64

RENAMED_COLUMNS = {"since_previous": TIME_SINCE_PREVIOUS, "sessions_back": SESSION_RECENCY}
"""Former name of a computed history column -> its name. Runs and bundles of earlier versions hold the former names."""

COMPUTED = {
    TIME_GAP: TIME_GAP_ROWS,
    TIME_SINCE_PREVIOUS: TIME_SINCE_PREVIOUS_ROWS,
    SESSION_RECENCY: SESSION_RECENCY_ROWS,
}
"""Computed history columns with the rows of their tables: no feature may have their names."""
LOG_ARRAYS = ("item", "times", "offsets")
"""Names of arrays that a log has: no feature of a row may have them."""
RESERVED_NAMES = (*LOG_ARRAYS, *COMPUTED)
"""What a feature that another tool calls so is called otherwise for."""

AVAILABLE = "event.available_at"
"""Column of a log and of a history store: from when on an event could be read. No feature's name has a dot."""

TOKEN, VERSION = "token", "version"
"""Columns of a token history: the vector of a past impression, and the version of the source that wrote it."""


@dataclass(frozen=True)
class Field:
    """One input of a model, after encoding.

    Attributes:
        rows: height of the embedding table (reserved rows included); 0 for numbers.
        dim: width asked for in the schema, or None to let the model decide.
        side: who owns the value; in a request for one user only item fields differ between candidates, and whatever
            a row says of its candidate counts as one.
        feedback: known only after its event: the last row of the table means "not yet known".
        width: numbers of a vector (what an extractor or an encoder left) or of ``numbers`` (what the log holds); 0 for
            other kinds.
        slots: equal parts a vector falls into (several tokens of one instance).
        share: the field whose table it looks into; its own when empty. Both have the same ``rows`` and ``dim``.
        computed_by: the model that computes it for the model it is built on; empty for a field of the schema.
    """

    name: str
    kind: Literal["id", "multi_id", "numeric", "embedding", "numbers"]
    rows: int
    dim: int | None = None
    pool: Literal["mean", "sum", "max"] = "mean"
    weighted: bool = False
    side: Literal["context", "user", "item"] = "context"
    feedback: bool = False
    width: int = 0
    slots: int = 1
    share: str = ""
    computed_by: str = ""

    @property
    def owner(self) -> str:
        """Name of the field whose embedding table it looks into."""
        return self.share or self.name


@dataclass(frozen=True)
class Fields:
    """All inputs of a model: the impression's fields and, for each history, the columns of a past event."""

    features: tuple[Field, ...]
    histories: dict[str, tuple[Field, ...]]

    def pairs(self, history: str) -> tuple[Field, ...]:
        """Columns of a history that also describe the candidate: the query of target attention."""
        own = {field.name for field in self.features if field.side == "item"}
        return tuple(field for field in self.histories[history] if field.name in own)

    def tables(self) -> tuple[Field, ...]:
        """Every distinct field, impression fields first: one embedding table each, but for those that share one."""
        seen = {field.name: field for field in self.features}
        for columns in self.histories.values():
            for field in columns:
                seen.setdefault(field.name, field)
        return tuple(seen.values())
