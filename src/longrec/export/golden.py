"""Golden requests: what a bundle must answer, and how an impression of a log becomes one.

A prepared log keeps encoded values, a request brings raw ones; so each encoded value is turned back into a raw
value that encodes to it. A hash cannot be turned back: null stands for it, on both sides of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from longrec.export.request import context_columns, request_time
from longrec.features.decode import raw_values
from longrec.features.encode import MISSING, Encoder, HashEncoder, Lists
from longrec.features.fitted import FittedSchema
from longrec.features.table import EntityTable


class Golden(msgspec.Struct, frozen=True):
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
    """

    user: int
    items: NDArray[Any]
    moment: int
    events: Mapping[str, Any]
    histories: Mapping[str, Mapping[str, NDArray[Any] | Lists]]
    knowledge: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def request_of(fitted: FittedSchema, users: EntityTable, items: EntityTable, sample: Sample) -> dict[str, Any]:
    """The request that asks for an impression."""
    request: dict[str, Any] = {
        "user": users.key(sample.user),
        "candidates": [items.key(row) for row in np.asarray(sample.items).tolist()],
        "at": request_time(fitted, sample.moment),
        "context": _raw_context(fitted, sample.events),
    }
    if fitted.schema.prejoined:
        request["history"] = {
            name: {column: raw_values(fitted.encoders[column], ids) for column, ids in columns.items()}
            for name, columns in sample.histories.items()
            if fitted.schema.histories[name].source is None
        }
    return request


def _raw_context(fitted: FittedSchema, encoded: Mapping[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = {}
    for column, features in context_columns(fitted).items():
        for name in features[:1]:  # where two features read one column, the first decides
            value, encoder = encoded[name], fitted.encoders[name]
            context[column] = raw_values(encoder, value)
            if not isinstance(value, Lists):
                context[column] = context[column][0]
            elif (weights := fitted.schema.features[name].weights) is not None:
                context[weights] = [] if value.weights is None else value.weights.tolist()
        context.setdefault(column, None)
    return context


def answerable(encoder: Encoder, encoded: NDArray[Any]) -> NDArray[Any]:
    """Encoded values as the request of ``raw_value`` brings them: those of a hash are missing."""
    return np.full_like(encoded, MISSING) if isinstance(encoder, HashEncoder) else encoded
