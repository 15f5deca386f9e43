"""What a user gave after an event: raw values of some columns, as ids of side columns and of feedback features.

A value is known from the moment it was told, but never earlier than the schema says that such values are known:
a model was trained on past labels of that age, and must not meet fresher ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from longrec.errors import RequestError, nearest
from longrec.export.raw_columns import build_raw_column
from longrec.features.fitted import FittedSchema
from longrec.features.label import LABEL, label_ids, labels_of
from longrec.features.schema import Schema
from longrec.features.view import NEVER, holds


@dataclass(frozen=True)
class Feedback:
    """Feedback of one event.

    Attributes:
        values: raw values by column; what is not here is not known yet.
        at: moment of the event.
        now: the moment at which it was told.
    """

    values: Mapping[str, Any]
    at: int
    now: int

    def array(self, column: str) -> pa.Array:
        """The value of a column, as a column of one."""
        return build_raw_column([self.values[column]], f"feedback.{column}")


class FeedbackReader:
    """Reads feedback by the columns of one or more schemas."""

    def __init__(self, schemas: Iterable[Schema]) -> None:
        schemas = list(schemas)
        columns: dict[str, str] = {}
        short: dict[str, str] = {}
        for schema in schemas:
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
        """The feedback of a request.

        Raises:
            RequestError: 422 a name that is no feedback, or one column told twice.
        """
        values: dict[str, Any] = {}
        for name, value in raw_values.items():
            column = self._columns.get(name)
            if column is None:
                near = nearest(name, self._columns)
                do = f"did you mean {near!r}?" if near else "what is known beforehand belongs to the context"
                raise RequestError("feedback", f"the unknown key {name!r}", ", ".join(self._names), do, 422)
            if column in values:
                raise RequestError(f"feedback.{name}", f"column {column!r} twice", "each once", status=422)
            values[column] = value
        return Feedback(values, at, now)


def encode_side(fitted: FittedSchema, name: str, feedback: Feedback) -> tuple[int, int] | None:
    """Id of a side column and the moment it became known; None where it is not known yet.

    Raises:
        DataError: a value of the wrong type.
    """
    schema = fitted.schema
    column = schema.label.column if name == LABEL else schema.column(name)
    if column not in feedback.values:
        return None
    available_at = max(feedback.now, feedback.at + compute_delay(schema, name))
    array, where = feedback.array(column), f"feedback.{column}"
    if name == LABEL:
        return int(label_ids(labels_of(schema.label, array, where))[0]), available_at
    encoded = fitted.encode(name, array, where)
    return int(encoded[0]), available_at  # type: ignore[index]  # feedback is of kind id or bucket: never lists


def compute_delay(schema: Schema, name: str) -> int:
    """How long after its event a side column is known at the earliest, by the schema; 0 where a column of the log
    tells the moment.
    """
    if name == LABEL:
        return 0 if schema.label_known_at is not None else schema.label_delay
    return 0 if schema.features[name].known_at is not None else schema.known_after(name)


def encode_feature(fitted: FittedSchema, name: str, feedback: Feedback) -> tuple[int, int]:
    """Id of a feedback feature and the moment it became known; "not yet known", never, where it was not told.

    Raises:
        DataError: a value of the wrong type.
    """
    if fitted.schema.column(name) not in feedback.values:
        return fitted.not_yet(name), NEVER
    schema = fitted.schema
    column = schema.column(name)
    encoded = fitted.encode(name, feedback.array(column), f"feedback.{column}")
    return int(encoded[0]), max(feedback.now, feedback.at + compute_delay(schema, name))  # type: ignore[index]


def evaluate_conditions(
    schema: Schema, history: str, columns: Sequence[str], values: Mapping[str, Any], before: int = 0
) -> int:
    """Which conditions of a filtered history hold, a bit each.

    Args:
        columns: the columns of its conditions, in order.
        values: raw values; a condition on a column that is not among them stays as it was.
        before: the bits so far.

    Raises:
        DataError: a value that cannot meet a condition.
    """
    bits = before
    for index, column in enumerate(columns):
        if column not in values:
            continue
        where = f"filter of {history}: {column}"
        condition = schema.histories[history].where[column]
        holding = bool(holds(condition, build_raw_column([values[column]], where), where)[0])
        bits = bits | 1 << index if holding else bits & ~(1 << index)
    return bits


def list_filter_columns(schema: Schema) -> list[str]:
    """Raw columns that filters read and that are known beforehand: a context must bring them."""
    return [
        column
        for history in schema.histories.values()
        for column in history.where
        if not schema.is_feedback_column(column) and column not in (schema.user, schema.item)
    ]
