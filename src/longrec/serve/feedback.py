"""Feedback on an event: raw values of some columns, encoded as ids of side columns and of feedback features.

A value is available from the time it was recorded, but never earlier than the schema says for such values, because
training never saw fresher feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from longrec.errors import RequestError, nearest, quote
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import NEVER, match_condition
from longrec.features.label_encoding import LABEL, POSITIVE, compute_labels, encode_labels
from longrec.features.raw_columns import build_raw_column
from longrec.features.schema import Schema


@dataclass(frozen=True)
class Feedback:
    """Feedback on one event.

    Attributes:
        values: raw values by column. Missing columns are not yet available.
        at: timestamp of the event.
        now: time of recording.
    """

    values: Mapping[str, Any]
    at: int
    now: int

    def array(self, column: str) -> pa.Array:
        """Return the value of a column as an array of one entry."""
        return build_raw_column([self.values[column]], f"feedback.{column}")


class FeedbackReader:
    """Reader of feedback by the columns of one or more schemas."""

    def __init__(self, schemas: Iterable[Schema]) -> None:
        schemas = list(schemas)
        columns: dict[str, str] = {}
        short: dict[str, str] = {}
        for schema in schemas:
            if schema.label is not None:
                short.setdefault(LABEL, schema.label.column)
                columns[schema.label.column] = schema.label.column
            for name, feature in schema.features.items():
                if feature.feedback:
                    columns[schema.column(name)] = schema.column(name)
                    short.setdefault(name, schema.column(name))
            for history in schema.histories.values():
                columns |= {c: c for c in history.where if schema.is_feedback_column(c)}
        self._columns = {**short, **columns}
        self._names = list(columns)

    def read(self, raw_values: Mapping[str, Any], at: int, now: int) -> Feedback:
        """Read the feedback of a request.

        Raises:
            RequestError: 422 if a name is not feedback, or a column occurs twice.
        """
        values: dict[str, Any] = {}
        for name, value in raw_values.items():
            column = self._columns.get(name)
            if column is None:
                near = nearest(name, self._columns)
                do = (
                    f"did you mean {near!r}?" if near else "columns that are available beforehand belong to the context"
                )
                raise RequestError(
                    "feedback", f"the unknown key {quote(name)}", ", ".join(self._names) or "no feedback", do, 422
                )
            if column in values:
                raise RequestError(f"feedback.{name}", f"column {column!r} twice", "each once", status=422)
            values[column] = value
        return Feedback(values, at, now)


def encode_side(fitted: FittedSchema, name: str, feedback: Feedback) -> tuple[int, int] | None:
    """Return id and availability time of a side column, or None if it is not yet available.

    Raises:
        DataError: if a value has the wrong type.
    """
    schema = fitted.schema
    available_at = max(feedback.now, feedback.at + compute_delay(schema, name))
    if name == LABEL and schema.label is None:
        return POSITIVE, available_at  # every event is a positive
    column = schema.label_column if name == LABEL else schema.column(name)
    if column is None or column not in feedback.values:
        return None
    array, where = feedback.array(column), f"feedback.{column}"
    if name == LABEL and schema.label is not None:
        return int(encode_labels(compute_labels(schema.label, array, where))[0]), available_at
    encoded = fitted.encode(name, array, where)
    return int(encoded[0]), available_at  # type: ignore[index]  # feedback is of kind id or bucket, never lists


def compute_delay(schema: Schema, name: str) -> int:
    """Return the minimum delay between an event and the availability of a side column, by the schema.

    0 if a column of the log holds the availability time.
    """
    if name == LABEL:
        return 0 if schema.label_available_at is not None else schema.longest_label_delay
    return 0 if schema.features[name].available_at is not None else schema.available_after(name)


def encode_feature(fitted: FittedSchema, name: str, feedback: Feedback) -> tuple[int, int]:
    """Return id and availability time of a feedback feature: the id "not yet available" and ``NEVER`` if it is missing.

    Raises:
        DataError: if a value has the wrong type.
    """
    if fitted.schema.column(name) not in feedback.values:
        return fitted.get_not_yet_id(name), NEVER
    schema = fitted.schema
    column = schema.column(name)
    encoded = fitted.encode(name, feedback.array(column), f"feedback.{column}")
    return int(encoded[0]), max(feedback.now, feedback.at + compute_delay(schema, name))  # type: ignore[index]


def meets_condition(schema: Schema, history: str, column: str, value: Any) -> bool:
    """Return True if a value meets the condition of a filtered history on a column.

    Raises:
        DataError: if the type of the value does not fit the condition.
    """
    where = f"filter of {history}: {column}"
    return bool(match_condition(schema.histories[history].where[column], build_raw_column([value], where), where)[0])


def evaluate_conditions(
    schema: Schema,
    history: str,
    columns: Sequence[str],
    values: Mapping[str, Any],
    before: int = 0,
    meets: Callable[[Schema, str, str, Any], bool] = meets_condition,
) -> int:
    """Evaluate the conditions of a filtered history, one bit each.

    Args:
        columns: columns of the conditions, in order.
        values: raw values. A condition on a missing column keeps its bit.
        before: the bits so far.
        meets: function that evaluates one condition.

    Raises:
        DataError: if the type of a value does not fit the condition.
    """
    bits = before
    for index, column in enumerate(columns):
        if column in values:
            bits = bits | 1 << index if meets(schema, history, column, values[column]) else bits & ~(1 << index)
    return bits


def list_filter_columns(schema: Schema) -> list[str]:
    """List raw columns that filters read and that a context must contain, because they are available beforehand."""
    return [
        column
        for history in schema.histories.values()
        for column in history.where
        if not schema.is_feedback_column(column) and column not in (schema.user, schema.item)
    ]
