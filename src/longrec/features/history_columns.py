"""Point-in-time history columns, shared by training and serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.features.computed_columns import compute_column
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import Lists, cast_numbers
from longrec.features.fields import COMPUTED
from longrec.features.fitted_schema import FittedSchema
from longrec.features.schema import Condition
from longrec.features.vocabulary import build_array

NEVER = np.iinfo(np.int64).max
"""Timestamp of a feedback value that never becomes available."""


@dataclass(frozen=True)
class HistoryEvents:
    """Events of one history at N positions, for any number of users.

    Attributes:
        times: int64 ``[N]`` timestamp of each event.
        item_rows: ``[N]`` row of the item table of each event.
        values: encoded event features by name ``[N]``.
        available_at: int64 timestamps ``[N]`` at which a feedback feature with ``available_at`` became available.
        offsets: int64 ``[B + 1]`` of the histories. None: all events belong to one history.
    """

    times: NDArray[np.int64]
    item_rows: NDArray[Any]
    values: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    available_at: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    offsets: NDArray[np.int64] | None = None


def build_history_columns(
    fitted: FittedSchema, name: str, item_table: EntityTable, events: HistoryEvents, timestamps: NDArray[np.int64]
) -> dict[str, NDArray[Any] | Lists]:
    """Build the columns of history ``name`` as available strictly before a timestamp.

    Items with versions are read as of the timestamp of the impression, not of the event. Items of a history and
    candidates thus read the same version of a table, and a store holds only the item of an event.

    Args:
        item_table: features of the items.
        events: events before the timestamp, already truncated and filtered.
        timestamps: int64 ``[N]`` (or ``[1]``), timestamp of the impression that the history belongs to.

    Returns:
        int32 ids ``[N]`` per column, or lists over N for a multi_id item feature.
    """
    schema = fitted.schema
    columns: dict[str, NDArray[Any] | Lists] = {}
    history, of_items = schema.histories[name], item_table.as_of(events.item_rows, timestamps)
    for column in history.features:
        if column in COMPUTED:
            offsets = np.array([0, len(events.times)]) if events.offsets is None else events.offsets
            columns[column] = compute_column(
                column, timestamps, events.times, offsets, schema.per_second, schema.delay(history.session_gap)
            )
        elif schema.side(column) == "item":
            columns[column] = of_items[column]
        else:
            values = events.values[column]
            if schema.features[column].feedback:
                available_at = (
                    events.available_at[column]
                    if column in events.available_at
                    else events.times + schema.available_after(column)
                )
                is_available = available_at < timestamps
                if not is_available.all():
                    values = np.where(is_available, values, fitted.get_not_yet_id(column))
            columns[column] = values
    return columns


def list_event_columns(fitted: FittedSchema) -> list[str]:
    """List the row features that histories read: the values that a store contains per event besides item and time."""
    schema = fitted.schema
    own = [history for history in schema.histories.values() if history.source is None]
    used = {column for history in own for column in history.features if column not in COMPUTED}
    return [name for name in schema.features if name in used and schema.in_row(name)]


def compute_filter_delay(fitted: FittedSchema, name: str) -> int:
    """Compute the delay after which history ``name`` may contain an event, the delay of the feedback in its filter."""
    schema = fitted.schema
    delays = [0]
    for column in schema.histories[name].where:
        if schema.is_feedback_column(column):
            own = [
                schema.available_after(n)
                for n, f in schema.features.items()
                if f.feedback and schema.column(n) == column
            ]
            delays.append(max([*own, schema.delay(schema.label_delay)] if column == schema.label_column else own))
    return max(delays)


def match_condition(condition: Condition, array: pa.Array, where: str) -> NDArray[np.bool_]:
    """Return the mask of the values of a raw column that meet a condition. A null value never meets one.

    Raises:
        DataError: if values of this type cannot meet the condition. The message has the location ``where``.
    """
    if condition.at_least is not None:
        return cast_numbers(array, where) >= condition.at_least
    wanted = [condition.equals] if condition.among is None else list(condition.among)
    if pa.types.is_null(array.type):
        return np.zeros(len(array), bool)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    try:
        values = build_array(wanted, where).cast(array.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            where,
            f"values of type {array.type}",
            f"values that can equal {' or '.join(map(repr, wanted))}",
            "write the condition in the type of the column",
        ) from None
    return np.asarray(pc.is_in(array, value_set=values, skip_nulls=True).to_numpy(zero_copy_only=False), bool)
