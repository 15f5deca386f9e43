"""Encoding of the raw columns of a request (its time, context and candidates) with the encoders fitted in training.

The context is encoded as a table of one row, and the candidates as a table of one row per candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.features.feature_encoders import CalendarEncoder, Lists
from longrec.features.fitted_schema import FittedSchema
from longrec.features.timestamp_grammar import format_timestamp
from longrec.features.vocabulary import build_array

Column: TypeAlias = NDArray[Any] | Lists
MAX_VALUES = 10_000
"""Largest number of values of a multi-value feature in a context. A ranker reads them with each chunk of candidates."""
MAX_REPEATED = 2**27
"""Largest number of characters of a value of the context, or of the user, repeated for every candidate."""


def format_request_time(fitted: FittedSchema, timestamp: int) -> str | int | None:
    """Format a timestamp of the log for a request: ISO text, a step number, or None without a time column."""
    if fitted.schema.time is None:
        return None
    return timestamp if fitted.schema.time.unit == "step" else format_timestamp(timestamp)


def list_context_columns(fitted: FittedSchema) -> dict[str, list[str]]:
    """Return the raw columns that a request's context must contain, each with the features that are read from it.

    Feedback is not yet available and the calendar follows from the timestamp, so neither is required. A column of
    weights has an empty list, because it belongs to the feature of its values. The same holds for the columns of a
    cross or a lookup. The key of the user is left out, because every request contains it.
    """
    schema = fitted.schema
    columns: dict[str, list[str]] = {}
    for name in list_row_features(fitted, "context"):
        own = schema.columns(name)
        if schema.features[name].composed:
            columns |= {column: columns.get(column, []) for column in own if column != schema.user}
            continue
        columns.setdefault(own[0], []).append(name)
        for weights in own[1:]:
            columns.setdefault(weights, [])
    return columns


def list_candidate_columns(fitted: FittedSchema) -> dict[str, list[str]]:
    """Return the raw columns that a request must contain per candidate, each with the features that are read from it.

    Keys are in every request. Event columns that a cross or a lookup of the candidate reads are in the context.
    """
    schema, context = fitted.schema, list_context_columns(fitted)
    columns: dict[str, list[str]] = {}
    for name in list_row_features(fitted, "candidate"):
        composed = schema.features[name].composed
        for index, column in enumerate(schema.columns(name)):
            if column not in (schema.user, schema.item) and not (composed and column in context):
                columns.setdefault(column, []).extend([name] if not composed and not index else [])
    return columns


def list_row_features(fitted: FittedSchema, side: str) -> list[str]:
    """List features of a side (``context`` or ``candidate``) that a request contains: no feedback, no calendar."""
    features = fitted.schema.features
    return [n for n in fitted.list_features(side) if not features[n].feedback and features[n].kind != "calendar"]


def encode_context(
    fitted: FittedSchema, context: Mapping[str, Any], features: Sequence[str], user: Any = None, where: str = "context"
) -> dict[str, Column]:
    """Encode a context: one entry per event feature of the impression.

    Args:
        context: a value or None for each of ``list_context_columns``, a list for a multi-value feature.
        features: the ``list_row_features`` of the event.
        user: the key of the user.
        where: field of the request, for errors.

    Raises:
        DataError: if a value has the wrong type. Its ``where`` is ``context.<column>``.
    """
    schema = fitted.schema

    def locate(column: str) -> str:
        return f"{where}.{column}"

    encoded: dict[str, Column] = {}
    for name in features:
        columns = {
            column: build_raw_column([context.get(column, user)], locate(column)) for column in schema.columns(name)
        }
        encoded[name] = own = fitted.encode_row(name, columns, locate)
        if isinstance(own, Lists) and len(own.values) > MAX_VALUES:
            message = f"{len(own.values):,} values"
            raise DataError(locate(schema.column(name)), message, f"at most {MAX_VALUES:,}", "send fewer values")
    return encoded


def encode_candidates(
    fitted: FittedSchema,
    features: Sequence[str],
    candidate_context: Mapping[str, Sequence[Any] | pa.Array | None],
    context: Mapping[str, Any],
    user: Any,
    items: Sequence[Any],
) -> dict[str, Column]:
    """Encode the columns of candidates: C entries per candidate feature.

    Args:
        features: the ``list_row_features`` of the candidate.
        candidate_context: C values for each of ``list_candidate_columns``, as Python or Arrow values, or None if all
            are missing.
        context: of the same request. Columns that a cross or a lookup reads of it apply to every candidate.
        user: the key of the user.
        items: the keys of the candidates, C of them.

    Raises:
        DataError: if a value has the wrong type. ``where`` is ``candidate_context.<column>``.
    """
    schema, count = fitted.schema, len(items)
    raw: dict[str, pa.Array] = {}

    def locate(column: str) -> str:
        return (
            _locate_in_context(column)
            if column in context and column not in candidate_context
            else f"candidate_context.{column}"
        )

    def read_column(column: str) -> pa.Array:
        if column in candidate_context:
            values = candidate_context[column]
            if values is None:
                return pa.nulls(count)
            return values if isinstance(values, pa.Array) else build_raw_column(values, locate(column))
        if column == schema.item:
            return build_raw_column(items, "candidates")
        value = user if column == schema.user else context[column]
        size = _measure(value) * count
        if size > MAX_REPEATED:
            message, do = f"{size:,} characters for {count:,} candidates", "send fewer candidates, or a shorter value"
            raise DataError(locate(column), message, f"at most {MAX_REPEATED:,}", do)
        return build_raw_column([value] * count, locate(column))

    encoded: dict[str, Column] = {}
    for name in features:
        for column in schema.columns(name):
            if column not in raw:
                raw[column] = read_column(column)
        encoded[name] = _encode_column(fitted, name, raw, locate)
    return encoded


def _encode_column(
    fitted: FittedSchema, name: str, raw: Mapping[str, pa.Array], locate: Callable[[str], str]
) -> Column:
    """Encode a feature of the candidates. Of a dictionary each distinct value is encoded once."""
    schema = fitted.schema
    column = schema.columns(name)[0]
    if schema.features[name].kind == "id" and pa.types.is_dictionary(raw[column].type):
        ids = fitted.encode(name, raw[column].dictionary, locate(column))
        assert not isinstance(ids, Lists)
        return ids[raw[column].indices.to_numpy()]
    plain = {
        own: raw[own].dictionary_decode() if pa.types.is_dictionary(raw[own].type) else raw[own]
        for own in schema.columns(name)
    }
    return fitted.encode_row(name, plain, locate)


def _locate_in_context(column: str) -> str:
    return f"context.{column}"


def _measure(value: Any) -> int:
    """Return the number of characters of a text or of the texts of a list, with 8 for every other value."""
    values = value if isinstance(value, list) else [value]
    return sum(len(one) if isinstance(one, str) else 8 for one in values)


_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def build_raw_column(values: Sequence[Any], where: str) -> pa.Array:
    """Convert Python values to an Arrow array.

    An explicit type avoids the type inference of Arrow, which takes ten times as long.

    Raises:
        DataError: if values have several types, or a type that no column may have.
    """
    kinds = {type(value) for value in values} - {type(None)}
    if dict in kinds or (list in kinds and _has_collections(values)):  # of deep ones Arrow is slow
        actual = "an object" if dict in kinds else "a list of lists or objects"
        raise DataError(where, actual, "a number, a text, true or false, null, or a list of them")
    kind = _TYPES.get(next(iter(kinds))) if len(kinds) == 1 else None
    try:
        return build_array(values, where) if kind is None else pa.array(values, kind)
    except (pa.ArrowInvalid, OverflowError):  # an integer beyond 64 bits
        return build_array(values, where)


def _has_collections(values: Sequence[Any]) -> bool:
    """Return True if a list among the values has lists or objects in it."""
    return any(not {list, dict}.isdisjoint(map(type, value)) for value in values if isinstance(value, list))


def encode_calendar(fitted: FittedSchema, timestamp: int) -> dict[str, NDArray[np.int32]]:
    """Encode the calendar features of a timestamp, one entry each."""
    now = np.array([timestamp], np.int64)
    return {
        name: encoder.encode_times(now)
        for name, encoder in fitted.encoders.items()
        if isinstance(encoder, CalendarEncoder)
    }


def encode_list(fitted: FittedSchema, column: str, values: Sequence[Any], where: str) -> NDArray[np.int32]:
    """Encode the values of a pre-joined history column as ids.

    Raises:
        DataError: if values have the wrong type.
    """
    encoder = fitted.encoders[column]
    assert not isinstance(encoder, CalendarEncoder)  # the schema refuses the calendar in a history
    return encoder.encode(build_raw_column(values, where), where).astype(np.int32)
