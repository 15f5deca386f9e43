"""Values of encoded history columns as a person reads them: the inverse of the encoders, as far as they have one.

A text in parentheses is no value of the log. It says what an id without a value means.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.features.decode import decode_values
from longrec.features.feature_encoders import (
    FIRST,
    MISSING,
    UNSEEN,
    BucketizedEncoder,
    CalendarEncoder,
    Encoder,
    IdEncoder,
    Lists,
    LogSquareEncoder,
)
from longrec.features.fields import COMPUTED, SESSION_RECENCY, TIME_GAP_ROWS
from longrec.features.fitted_schema import FittedSchema

UNSEEN_TEXT, NOT_YET_TEXT = "(unseen)", "(not yet available)"
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def read_column(fitted: FittedSchema, name: str, column: NDArray[Any] | Lists) -> list[Any]:
    """Return the values of a column of a history, one per event: numbers, texts, None for a missing value, or lists.

    Args:
        name: feature, or computed column.
        column: encoded values, as ``build_history_columns`` returns them.
    """
    if name in COMPUTED:
        read = _read_sessions if name == SESSION_RECENCY else _build_gap_reader(fitted.schema.per_second)
        return [read(value) for value in np.asarray(column).tolist()]
    encoder = fitted.encoders[name]
    if not isinstance(column, Lists) and column.dtype.kind == "f":
        return decode_values(encoder, column)
    not_yet = fitted.get_not_yet_id(name) if fitted.schema.features[name].feedback else None
    flat = column.values if isinstance(column, Lists) else column
    values = [NOT_YET_TEXT if value == not_yet else read_id(encoder, value) for value in flat.tolist()]
    if not isinstance(column, Lists):
        return values
    return [values[start:stop] for start, stop in pairwise(column.offsets.tolist())]


def read_id(encoder: Encoder, value: int) -> Any:
    """Return the value of an id: that of the vocabulary, a range of numbers, or the number of a hash bucket as text.

    >>> [read_id(BucketizedEncoder((10.0, 20.0)), value) for value in range(5)]
    [None, '(unseen)', 'below 10', '10 to 20', '20 or more']
    """
    if value == MISSING:
        return None
    if value == UNSEEN:
        return UNSEEN_TEXT
    index = value - FIRST
    if isinstance(encoder, IdEncoder):
        return encoder.keys.values[index].as_py()
    if isinstance(encoder, BucketizedEncoder):
        low, high = (f"{edge:.10g}" for edge in (-math.inf, *encoder.edges, math.inf)[index : index + 2])
        return f"below {high}" if index == 0 else f"{low} or more" if high == "inf" else f"{low} to {high}"
    if isinstance(encoder, LogSquareEncoder):
        cut = index + encoder.low
        low, high = (f"{math.exp(math.sqrt(max(one, 0))):.4g}" for one in (cut, cut + 1))
        return cut + 2 if cut <= 0 else f"{low} to {high}"
    return index if isinstance(encoder, CalendarEncoder) else f"(bucket {index})"


def _read_sessions(value: int) -> int | None:
    """Return the number of sessions between an event and the newest."""
    return None if value < FIRST else value - FIRST


def _build_gap_reader(per_second: int) -> Callable[[int], str | None]:
    """Return a function of the id of a time between two events, in the units of the log."""

    def read(value: int) -> str | None:
        if value < FIRST:
            return None
        low, high = (_format_gap(2.0**exponent - 1, per_second) for exponent in (value - FIRST, value - FIRST + 1))
        return f"{low} or more" if value == TIME_GAP_ROWS - 1 else f"{low} to {high}"

    return read


def _format_gap(seconds: float, per_second: int) -> str:
    """Return a time: in steps if the log counts those, else in the largest unit that it reaches."""
    if per_second == 1:
        return f"{seconds:.0f} steps"
    size, unit = next((own for own in _UNITS if seconds >= own[0]), (1, "s"))
    return f"{seconds / size:.3g} {unit}"
