"""Golden requests: what a bundle must answer, and how an impression of a log becomes one.

A prepared log keeps encoded values, a request brings raw ones; so each encoded value is turned back into a raw
value that encodes to it. A hash cannot be turned back: null stands for it, on both sides of the comparison. Where
several features read one column, one of them decides its value, and the others are what the encoders make of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from longrec.export.raw_columns import format_request_time, list_candidate_columns, list_context_columns
from longrec.features.decode import raw_values
from longrec.features.encode import MISSING, CrossEncoder, Encoder, HashEncoder, Lists
from longrec.features.fitted import FittedSchema
from longrec.features.table import EntityTable


class GoldenRequest(msgspec.Struct, frozen=True):
    """One request, as ``/rank`` takes it, and what each of its candidates must get, in their order.

    Attributes:
        scores: of a ranker: probabilities.
        vectors: of an encoder: tokens, on the scale on which they are stored.
    """

    request: dict[str, Any]
    scores: list[float] = []
    vectors: list[list[float]] = []

    @property
    def expected(self) -> NDArray[np.float64]:
        """Scores ``[C]``, or vectors ``[C, W]``."""
        return np.array(self.vectors or self.scores, np.float64)


@dataclass(frozen=True)
class Sample:
    """One impression of a prepared log, as the log keeps it, with the items to rank.

    Attributes:
        user: row of the user table.
        items: rows ``[C]`` of the item table.
        moment: milliseconds UTC (or a step) of the impression.
        events: of every event feature of the impression (no feedback, no calendar) its encoded value: a number,
            or ``Lists`` of one row.
        histories: columns ``[T]`` of each history (``[T, W]`` of tokens) as they were known at the moment.
        knowledge: what was known at the moment, by vector feature: ``[1, W]`` of a user, ``[C, W]`` of the items.
        candidates: of every candidate feature its encoded values: C entries.
    """

    user: int
    items: NDArray[Any]
    timestamp: int
    events: Mapping[str, Any]
    histories: Mapping[str, Mapping[str, NDArray[Any] | Lists]]
    knowledge: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    candidates: Mapping[str, NDArray[Any] | Lists] = field(default_factory=dict)


def build_request(fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample) -> dict[str, Any]:
    """The request that asks for an impression."""
    request: dict[str, Any] = {
        "user": users.key(sample.user),
        "candidates": [items.key(row) for row in np.asarray(sample.items).tolist()],
        "at": format_request_time(fitted, sample.timestamp),
        "context": {column: values[0] for column, values in _decode_columns(fitted, sample.events, "event").items()},
    }
    raw_candidates = _decode_columns(fitted, sample.candidates, "candidate")
    if raw_candidates:
        missing = [None] * len(sample.items)
        request["candidate_context"] = {column: values or missing for column, values in raw_candidates.items()}
    if fitted.schema.prejoined:
        request["history"] = {
            name: {column: raw_values(fitted.encoders[column], ids) for column, ids in columns.items()}
            for name, columns in sample.histories.items()
            if fitted.schema.histories[name].source is None
        }
    return request


def choose_decoded_features(fitted: FittedSchema, table: str) -> dict[str, str | None]:
    """Raw columns of the context (``event``) or of the candidates -> the feature whose encoded values are turned back.

    Of several the first that is no hash; None for a column that is read by crosses, lookups or hashes alone, or that
    holds weights.
    """
    columns = list_context_columns(fitted) if table == "event" else list_candidate_columns(fitted)
    chosen: dict[str, str | None] = {}
    for column, features in columns.items():
        invertible = [name for name in features if not isinstance(fitted.encoders[name], HashEncoder)]
        chosen[column] = next(iter([*invertible, *features]), None)
    return chosen


def _decode_columns(fitted: FittedSchema, encoded: Mapping[str, Any], table: str) -> dict[str, list[Any]]:
    """Raw values of the columns of a request, an entry each row: one row of the context, C of the candidates."""
    columns, decoded = choose_decoded_features(fitted, table), dict[str, list[Any]]()
    for column, name in columns.items():
        if name is None:
            decoded.setdefault(column, [None] if table == "event" else [])
            continue
        value, encoder, feature = encoded[name], fitted.encoders[name], fitted.schema.features[name]
        if not isinstance(value, Lists):
            decoded[column] = raw_values(encoder, value)
            continue
        cuts = value.offsets[1:-1].tolist()
        values: list[Any] = _split_at(raw_values(encoder, value), cuts)
        weights = [] if value.weights is None else _split_at(value.weights.tolist(), cuts)
        if feature.weight_separator is not None:
            assert feature.separator is not None
            separator = feature.weight_separator
            values = [
                feature.separator.join(
                    f"{'' if one is None else one}{separator}{weight!r}" for one, weight in zip(*row)
                )
                for row in zip(values, weights)
            ]
        elif feature.weights is not None:
            decoded[feature.weights] = weights
        decoded[column] = values
    return {column: decoded[column] for column in columns}


def _split_at(values: list[Any], at: list[int]) -> list[list[Any]]:
    return [values[first:stop] for first, stop in zip([0, *at], [*at, len(values)])]


def mask_undecodable(encoder: Encoder, encoded: NDArray[Any]) -> NDArray[Any]:
    """Encoded values as the request of ``raw_value`` brings them: those of a hash are missing."""
    return np.full_like(encoded, MISSING) if isinstance(encoder, (HashEncoder, CrossEncoder)) else encoded
