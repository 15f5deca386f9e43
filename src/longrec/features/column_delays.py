"""Delays after which a schema makes the raw columns of an event available, and stores that read them earlier.

A store records the delays of the schema it was written with, so that they can be compared with the schema of a reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from longrec.features.schema import Schema

Delay: TypeAlias = int | str | None
"""A delay after the event in the unit of the log, or the column of the timestamp. None: with the event itself."""

_SPANS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def compute_column_delays(schema: Schema) -> dict[str, Delay]:
    """Return the delay of every raw column of the log that features, filters or the label read.

    The delay of the time column is that of the event itself.
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
    if (label := schema.label_column) is not None:
        named = schema.label_available_at
        own = None if named is None else schema.features[named].available_at
        delays[label] = schema.delay(schema.label_delay) if own is None else own
    return {column: at for column, at in delays.items() if column not in (schema.user, schema.item)}


def describe_early_columns(recorded: Mapping[str, Delay], visibility_delay: int, schema: Schema) -> list[str]:
    """Describe the columns that a store's source read before a schema makes them available, one phrase per column.

    Args:
        recorded: ``compute_column_delays`` of the schema the store was written with.
        visibility_delay: delay of the store after which the values of an event itself can be read.
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
    """Return True if a schema makes any column available later than its event."""
    return any(at not in (None, 0) for at in compute_column_delays(schema).values())


def _get_shortest_delay(at: Delay, visibility_delay: int) -> int:
    """Return the shortest delay that a store can have read a value with. A timestamp column sets no minimum."""
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
    """Format a duration in the syntax of a config.

    >>> format_span(60_000), format_span(90_000), format_span(0)
    ('1m', '90s', '0s')
    """
    unit = next((unit for unit, size in _SPANS.items() if milliseconds and milliseconds % size == 0), "s")
    return f"{milliseconds // _SPANS[unit]}{unit}"
