"""Inputs of a model, as a fitted schema defines them: names, table sizes, widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longrec.tabular import Columns, Tabular

TIME_GAP = "time_gap"
"""Computed history column: log2 buckets of the seconds (or steps) between an event and the impression."""
TIME_GAP_ROWS = 2 + 40

TIME_SINCE_PREVIOUS = "time_since_previous"
"""Computed history column: the same buckets of the time since the previous event. 0 for the first of a history."""
TIME_SINCE_PREVIOUS_ROWS = TIME_GAP_ROWS

SESSION_RECENCY = "session_recency"
"""Computed history column: 2 + the number of sessions between an event and the newest one of the history."""
SESSION_RECENCY_ROWS = 2 + 64

RENAMED_COLUMNS = {"since_previous": TIME_SINCE_PREVIOUS, "sessions_back": SESSION_RECENCY}
"""Former name of a computed history column -> its name. Runs and bundles of earlier versions hold the former names."""

COMPUTED = {
    TIME_GAP: TIME_GAP_ROWS,
    TIME_SINCE_PREVIOUS: TIME_SINCE_PREVIOUS_ROWS,
    SESSION_RECENCY: SESSION_RECENCY_ROWS,
}
"""Computed history columns with the rows of their tables. No feature may have their names."""
LOG_ARRAYS = ("item", "times", "offsets")
"""Names of arrays of a log. No feature of a row may have them."""
RESERVED_NAMES = (*LOG_ARRAYS, *COMPUTED)
"""Names that no feature may have. Importers rename the features of other tools that have them."""

AVAILABLE = "event.available_at"
"""Column of a log and of a history store: the timestamp from which an event could be read. No feature has a dot."""

TOKEN, VERSION = "token", "version"
"""Columns of a token history: the vector of an earlier impression, and the version of the source that wrote it."""


@dataclass(frozen=True)
class Field:
    """An encoded feature, or an encoded column of a history, as a model reads it.

    Attributes:
        kind: ``numeric`` is one number, ``numbers`` several, ``embedding`` a stored vector, ``computed`` a vector that
            one model computes for another one that it is built on (``Batch.computed``).
        rows: number of rows of the embedding table, reserved rows included. 0 without a table.
        dim: width of the embeddings, as set in the schema. None: the model decides.
        side: owner of the value. In a request for one user only item fields differ between candidates. Columns of the
            candidate count as item fields.
        feedback: available only after its event. The last row of the table means "not yet available".
        width: size of the value of an ``embedding``, of ``numbers`` or of a ``computed`` vector. 0 for other kinds.
        slots: number of equal blocks in the vector of a token history (several tokens per event).
        share: field whose embedding table it uses. Empty: its own. Both have the same ``rows`` and ``dim``.
    """

    name: str
    kind: Literal["id", "multi_id", "numeric", "embedding", "numbers", "computed"]
    rows: int
    dim: int | None = None
    pool: Literal["mean", "sum", "max"] = "mean"
    weighted: bool = False
    side: Literal["context", "user", "item"] = "context"
    feedback: bool = False
    width: int = 0
    slots: int = 1
    share: str = ""

    @property
    def owner(self) -> str:
        """Name of the field whose embedding table it uses."""
        return self.share or self.name


@dataclass(frozen=True, repr=False)
class Fields(Tabular):
    """All inputs of a model: the fields of the impression and, for each history, the columns of an event."""

    features: tuple[Field, ...]
    histories: dict[str, tuple[Field, ...]]

    def target_columns(self, history: str) -> tuple[Field, ...]:
        """Return the columns of a history that are also item features, as inputs of target attention."""
        own = {field.name for field in self.features if field.side == "item"}
        return tuple(field for field in self.histories[history] if field.name in own)

    def to_columns(self) -> Columns:
        """Return one row per field of the impression and per column of a history."""
        owned = [("", field) for field in self.features]
        owned += [(history, field) for history, columns in self.histories.items() for field in columns]
        return {
            "field": [field.name for _, field in owned],
            "history": [history for history, _ in owned],
            "kind": [field.kind for _, field in owned],
            "side": [field.side for _, field in owned],
            "rows": [field.rows or None for _, field in owned],
            "dim": [field.dim for _, field in owned],
        }

    def distinct_fields(self) -> tuple[Field, ...]:
        """Return every distinct field, impression fields first. Each has an embedding table unless it shares one."""
        seen = {field.name: field for field in self.features}
        for columns in self.histories.values():
            for field in columns:
                seen.setdefault(field.name, field)
        return tuple(seen.values())
