"""Encoding of the raw values of one event as ids that histories read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from longrec.features.fitted_schema import FittedSchema
from longrec.features.raw_columns import build_raw_column
from longrec.features.schema import Schema
from longrec.serve import feedback
from longrec.serve.feedback import Feedback

_REMEMBERED = 1 << 16
"""Number of values whose ids are remembered."""
_LONGEST = 100
"""Characters of the longest text that is remembered."""
ValueT = TypeVar("ValueT")


class EventValues:
    """Encoder of the values of events for one bundle. It remembers ids, since most values occur again and again.

    Args:
        fitted: the fitted schema of the bundle.
    """

    def __init__(self, fitted: FittedSchema) -> None:
        self.fitted = fitted
        self._remembered: dict[tuple[Any, ...], Any] = {}

    def encode(self, name: str, values: Mapping[str, Any]) -> int:
        """Return the id of an event feature from raw values by column.

        Raises:
            DataError: if a value has the wrong type.
        """
        own = [values[column] for column in self.fitted.schema.columns(name)]
        return self._remember(name, own, lambda: encode_event_feature(self.fitted, name, values))

    def encode_feedback(self, name: str, own: Feedback) -> tuple[int, int]:
        """Return id and availability time of a feedback feature, as ``feedback.encode_feature``.

        Raises:
            DataError: if a value has the wrong type.
        """
        column = self.fitted.schema.column(name)
        if column not in own.values:
            return feedback.encode_feature(self.fitted, name, own)
        code, delay = self._remember(name, [own.values[column]], lambda: self._encode_early(name, column, own))
        return code, max(own.now, own.at + delay)

    def _encode_early(self, name: str, column: str, own: Feedback) -> tuple[int, int]:
        """Return the id of a value of feedback, and the delay by the schema."""
        return feedback.encode_feature(self.fitted, name, Feedback({column: own.values[column]}, 0, 0))

    def meets_condition(self, schema: Schema, history: str, column: str, value: Any) -> bool:
        """Return True if a value meets the condition of a history, as ``feedback.meets_condition``.

        Raises:
            DataError: if the type of the value does not fit the condition.
        """
        own = lambda: feedback.meets_condition(schema, history, column, value)  # noqa: E731
        return self._remember(f"{history}.where.{column}", [value], own)

    def _remember(self, name: str, values: Sequence[Any], compute: Callable[[], ValueT]) -> ValueT:
        if any(isinstance(value, (list, dict)) or (type(value) is str and len(value) > _LONGEST) for value in values):
            return compute()
        key = (name, *values, *map(type, values))  # 1, 1.0 and true are equal
        try:
            remembered: ValueT = self._remembered[key]
        except KeyError:
            remembered = compute()
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = remembered
        return remembered


def encode_event_feature(fitted: FittedSchema, name: str, values: Mapping[str, Any]) -> int:
    """Encode a feature of one event from raw values by column."""

    def locate(column: str) -> str:
        return f"context.{column}"

    columns = {column: build_raw_column([values[column]], locate(column)) for column in fitted.schema.columns(name)}
    return int(fitted.encode_row(name, columns, locate)[0])  # type: ignore[index]  # a history has no lists of a row


def list_keys(schema: Schema, user: Any, item: Any) -> dict[str, Any]:
    """Return the keys of an event by their columns."""
    keys = {schema.user: user, schema.item: item}
    return {column: key for column, key in keys.items() if column is not None}
