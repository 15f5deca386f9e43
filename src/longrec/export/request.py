"""The words of a request: its moment, the raw columns of its context, and how they are encoded.

The encoders are the fitted ones of training; a request is a table of one row to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.features.encode import Lists, TimeEncoder
from longrec.features.fitted import FittedSchema
from longrec.features.vocabulary import one_column

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment_text(moment: int) -> str:
    """Milliseconds UTC as ISO 8601 text.

    >>> moment_text(1_000_000_000_250)
    '2001-09-09T01:46:40.250Z'
    """
    when = _EPOCH + timedelta(milliseconds=moment)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def request_time(fitted: FittedSchema, moment: int) -> str | int | None:
    """A moment of the log as a request names it: ISO text, the number of a step, None without a time column."""
    if fitted.schema.time is None:
        return None
    return moment if fitted.schema.time.unit == "step" else moment_text(moment)


def context_columns(fitted: FittedSchema) -> dict[str, list[str]]:
    """Raw columns that a request's context must give -> the event features whose values they are.

    Feedback is not known yet, and the calendar follows from the moment; neither is asked for.
    A column of weights belongs to the feature of its values and stands with an empty list.
    """
    schema = fitted.schema
    columns: dict[str, list[str]] = {}
    for name in fitted.of_table("event"):
        feature = schema.features[name]
        if not feature.feedback and feature.kind != "time":
            columns.setdefault(schema.column(name), []).append(name)
            if feature.weights is not None:
                columns.setdefault(feature.weights, [])
    return columns


def encoded_context(
    fitted: FittedSchema, context: Mapping[str, Any], columns: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[Any] | Lists]:
    """What a context encodes to: one entry for every event feature of the impression.

    Args:
        context: a value or None for each of ``columns``; a list for a multi-value feature.
        columns: the ``context_columns`` of the schema.

    Raises:
        DataError: a value of the wrong type; ``where`` says ``context.<column>``.
    """
    encoded: dict[str, NDArray[Any] | Lists] = {}
    for column, features in columns.items():
        where = f"context.{column}"
        for name in features:
            weights = fitted.schema.features[name].weights
            weighed = None if weights is None else raw_column([context[weights]], f"context.{weights}")
            encoded[name] = fitted.encode(name, raw_column([context[column]], where), where, weighed)
    return encoded


_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def raw_column(values: Sequence[Any], where: str) -> pa.Array:
    """Python values as an Arrow array. A named type spares Arrow the guess, which takes ten times as long.

    Raises:
        DataError: values of several types, or of one that is no column.
    """
    kinds = {type(value) for value in values} - {type(None)}
    kind = _TYPES.get(next(iter(kinds))) if len(kinds) == 1 else None
    try:
        return one_column(values, where) if kind is None else pa.array(values, kind)
    except (pa.ArrowInvalid, OverflowError):  # an integer beyond 64 bits
        return one_column(values, where)


def encoded_calendar(fitted: FittedSchema, moment: int) -> dict[str, NDArray[np.int32]]:
    """The calendar features of a moment, one entry each."""
    now = np.array([moment], np.int64)
    return {
        name: encoder.encode_times(now) for name, encoder in fitted.encoders.items() if isinstance(encoder, TimeEncoder)
    }


def encoded_list(fitted: FittedSchema, column: str, values: Sequence[Any], where: str) -> NDArray[np.int32]:
    """Ids of the past values of a pre-joined history column.

    Raises:
        DataError: values of the wrong type.
    """
    encoder = fitted.encoders[column]
    assert not isinstance(encoder, TimeEncoder)  # the schema refuses the calendar in a history
    return encoder.encode(raw_column(values, where), where).astype(np.int32)
