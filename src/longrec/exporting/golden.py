"""Golden requests: requests with expected scores, built from impressions of a log.

A prepared log holds encoded values and a request holds raw ones, so each encoded value is decoded into a raw value
that encodes to it. A hash cannot be decoded: null replaces it on both sides of the comparison. If several features
read one column, one of them is decoded, and the others are encoded from the decoded value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from longrec.features.decode import decode_values
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import MISSING, CrossEncoder, Encoder, HashEncoder, Lists
from longrec.features.fitted_schema import FittedSchema
from longrec.features.raw_columns import format_request_time, list_candidate_columns, list_context_columns


class GoldenRequest(msgspec.Struct, frozen=True):
    """One request to ``/rank`` and the expected output of each of its candidates, in order.

    Of a retriever it is a request to ``/recommend`` and the expected items, best first.

    Attributes:
        scores: expected probabilities of a ranker, or scores of the items of a retriever.
        vectors: expected tokens of an encoder, on the scale of the store.
        items: expected keys of a retriever.
        seed: seed of the noise of ``exploration``.
        exploration: expected exploration scores of a ranker with an explorer.
    """

    request: dict[str, Any]
    scores: list[float] = []
    vectors: list[list[float]] = []
    items: list[int | str] = []
    seed: int | None = None
    exploration: list[float] = []

    @property
    def expected(self) -> NDArray[np.float64]:
        """Expected scores ``[C]`` and, with an explorer, exploration scores behind them, or vectors ``[C, W]``."""
        scores = np.array([*self.scores, *self.exploration], np.float64)
        return np.array(self.vectors, np.float64) if self.vectors else scores


@dataclass(frozen=True)
class Sample:
    """One impression of a prepared log, in encoded values, with the items to rank.

    Attributes:
        user: row of the user table.
        items: rows ``[C]`` of the item table.
        timestamp: milliseconds UTC (or a step) of the impression.
        events: encoded value of each event feature of the impression (no feedback, no calendar): a number, or ``Lists``
            of one row.
        histories: columns ``[T]`` of each history (``[T, W]`` of tokens) as available at the timestamp.
        knowledge: vectors available at the timestamp, by ``embedding`` feature: ``[1, W]`` of a user, ``[C, W]`` of the
            items.
        candidates: encoded values of each candidate feature, C entries each.
    """

    user: int
    items: NDArray[Any]
    timestamp: int
    events: Mapping[str, Any]
    histories: Mapping[str, Mapping[str, NDArray[Any] | Lists]]
    knowledge: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    candidates: Mapping[str, NDArray[Any] | Lists] = field(default_factory=dict)


def build_request(fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample) -> dict[str, Any]:
    """Build the request of an impression."""
    keys: dict[str, Any] = {}
    if fitted.schema.user is not None:
        keys["user"] = users.key(sample.user)
    if fitted.schema.item is not None:
        keys["candidates"] = [items.key(row) for row in np.asarray(sample.items).tolist()]
    request: dict[str, Any] = {
        **keys,
        "at": format_request_time(fitted, sample.timestamp),
        "context": {column: values[0] for column, values in _decode_columns(fitted, sample.events, "context").items()},
    }
    raw_candidates = _decode_columns(fitted, sample.candidates, "candidate")
    if raw_candidates:
        missing = [None] * len(sample.items)
        request["candidate_context"] = {column: values or missing for column, values in raw_candidates.items()}
    if fitted.schema.prejoined:
        request["history"] = {
            name: {column: decode_values(fitted.encoders[column], ids) for column, ids in columns.items()}
            for name, columns in sample.histories.items()
            if fitted.schema.histories[name].source is None
        }
    return request


def build_recommend_request(
    fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample, k: int, exclude_seen: bool
) -> dict[str, Any]:
    """Build the request for k items at the time of an impression."""
    request = build_request(fitted, users, items, sample)
    for name in ("candidates", "candidate_context"):
        request.pop(name, None)
    return {**request, "k": k, "exclude_seen": exclude_seen}


def choose_decoded_features(fitted: FittedSchema, side: str) -> dict[str, str | None]:
    """Choose, for each raw column of the context (``context``) or of the candidates, the feature to decode.

    If several features read a column, the first that is not a hash is chosen. None for a column that is read only by
    crosses, lookups or hashes, and for a column of weights.
    """
    columns = list_context_columns(fitted) if side == "context" else list_candidate_columns(fitted)
    chosen: dict[str, str | None] = {}
    for column, features in columns.items():
        invertible = [name for name in features if not isinstance(fitted.encoders[name], HashEncoder)]
        chosen[column] = next(iter([*invertible, *features]), None)
    return chosen


def _decode_columns(fitted: FittedSchema, encoded: Mapping[str, Any], side: str) -> dict[str, list[Any]]:
    """Return raw values of the columns of a request: one row for the context, C rows for the candidates."""
    columns, decoded = choose_decoded_features(fitted, side), dict[str, list[Any]]()
    for column, name in columns.items():
        if name is None:
            decoded.setdefault(column, [None] if side == "context" else [])
            continue
        value, encoder, feature = encoded[name], fitted.encoders[name], fitted.schema.features[name]
        if not isinstance(value, Lists):
            decoded[column] = decode_values(encoder, value)
            continue
        cuts = value.offsets[1:-1].tolist()
        values: list[Any] = _split_at(decode_values(encoder, value), cuts)
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
    """Return the encoded values of a decoded request: those of a hash or a cross are missing."""
    return np.full_like(encoded, MISSING) if isinstance(encoder, (HashEncoder, CrossEncoder)) else encoded
