"""The time column of a schema: its unit or format, late events, and the order of events with equal timestamps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field as Setting
from pydantic import model_validator

from longrec.config import Strict
from longrec.features.timestamp_grammar import build_grammar
from longrec.signatures import show_keys


@show_keys
class TimeColumn(Strict):
    """The time column. Stored as whole milliseconds UTC, or as whole numbers with ``unit: step``.

    ``available_at`` names the column of the timestamp at which the event became available, if some arrive late. An
    event enters histories after it, and its label is not available earlier. Null is the event's own time.

    ``order`` names a column of whole numbers that orders the events of a user with equal timestamps. Histories then
    hold the events strictly before a row in (time, order), as in published protocols.

    ``format`` is a ``strptime`` pattern for text, and for whole numbers that are digits of a date.
    """

    column: str = Setting(description="column of the time: timestamps, dates, text or numbers")
    unit: Literal["auto", "s", "ms", "us", "ns", "step"] = Setting(
        "auto",
        description=(
            "unit of numbers, since 1970; step for a counter; auto infers it from the magnitude of the values"
        ),
    )
    format: str | None = Setting(
        None,
        description="strptime pattern of text that is not ISO 8601, and of whole numbers that are digits of a date",
    )
    available_at: str | None = Setting(
        None,
        description="column of the time at which the event became available, if some arrive late; null: its own time",
    )
    order: str | None = Setting(
        None, description="column of whole numbers that orders the events of a user with equal timestamps"
    )

    @model_validator(mode="after")
    def _check(self) -> TimeColumn:
        if self.order == self.column:
            raise ValueError(f"order is the time column itself, {self.column!r}; leave it out")
        if self.available_at == self.column:
            raise ValueError(f"available_at is the time column itself, {self.column!r}; leave it out")
        if self.format is not None:
            if self.unit != "auto":
                raise ValueError(f"unit {self.unit} is for numbers that count, format for digits and text: set one")
            try:
                build_grammar(self.format)
            except ValueError as error:
                raise ValueError(f"format {error}") from None
        return self
