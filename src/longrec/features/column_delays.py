"""When the value of each raw column of an event is available, by a schema, and who has read it earlier.

Stores keep what the schema said when they were written, so that they can be held to the schema of whoever reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from longrec.features.schema import Schema

Delay: TypeAlias = int | str | None
"""A delay after the event, in the unit of the log; the column that holds the timestamp; None: with the event itself."""

_SPANS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def compute_column_delays(schema: Schema) -> dict[str, Delay]:
    """The delay of every raw column of the log's rows that features, filters or the label read.

    That of the time column is the delay of the event itself.
    """
    delays: dict[str, Delay] = {}
    for name, feature in schema.features.items():
        if feature.source is None and feature.kind != "calendar" and schema.in_row(name) and not feature.feedback:
            delays |= dict.fromkeys(schema.columns(name))
    for history in schema.histories.values():
        delays |= {column: None for column in history.where if not schema.is_feedback_column(column)}
    for name, feature in schema.features.items():
        if feature.feedback:
            delays[schema.column(name)] = feature.available_at or schema.available_after(name)
    if schema.time is not None:
        delays[schema.time.column] = schema.time.available_at
    label = schema.label.column
    own = [
        f.available_at for n, f in schema.features.items() if f.available_at is not None and schema.column(n) == label
    ]
    delays[label] = own[0] if own else schema.delay(schema.label_delay)
    return {column: at for column, at in delays.items() if column not in (schema.user, schema.item)}


def describe_early_columns(recorded: Mapping[str, Delay], visibility_delay: int, schema: Schema) -> list[str]:
    """Columns that a store's source read earlier than a schema says that they are available, a phrase each.

    Args:
        recorded: ``compute_column_delays`` of the schema the store was written with.
        lag: of the store: what the source read of an event itself can be read so much later.
    """
    phrases = []
    for column, own in compute_column_delays(schema).items():
        if own is None or column not in recorded:
            continue
        theirs = recorded[column]
        if theirs == own or (isinstance(own, int) and _get_shortest_delay(theirs, visibility_delay) >= own):
            continue
        phrases.append(
            f"{column!r} as available {_describe_delay(theirs, schema)}, and here it is {_describe_delay(own, schema)}"
        )
    return phrases


def has_delays(schema: Schema) -> bool:
    """Whether a schema says of any column that it becomes available later than its event."""
    return any(at not in (None, 0) for at in compute_column_delays(schema).values())


def _get_shortest_delay(at: Delay, visibility_delay: int) -> int:
    """The shortest delay that a store can have read a value with; a timestamp column tells none."""
    return visibility_delay if at is None else at if isinstance(at, int) else 0


def _describe_delay(at: Delay, schema: Schema) -> str:
    if at is None:
        return "with the event itself"
    if isinstance(at, str):
        return f"from the timestamp in {at!r}"
    if schema.per_second == 1:
        return f"{at} steps after the event"
    return f"{format_span(at)} after the event"


def format_span(milliseconds: int) -> str:
    """A duration as a config writes it.

    >>> span(60_000), span(90_000), span(0)
    ('1m', '90s', '0s')
    """
    unit = next((unit for unit, size in _SPANS.items() if milliseconds and milliseconds % size == 0), "s")
    return f"{milliseconds // _SPANS[unit]}{unit}"
