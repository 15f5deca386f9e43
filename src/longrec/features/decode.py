"""Decoding of ids and numbers to raw values, for golden requests and for explanations of a score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.features.feature_encoders import (
    FIRST,
    MISSING,
    BucketizedEncoder,
    CrossEncoder,
    Encoder,
    HashEncoder,
    IdEncoder,
    Lists,
    LogSquareEncoder,
    NumericEncoder,
    NumericListEncoder,
)


def decode_values(encoder: Encoder, encoded: NDArray[Any] | Lists | float) -> list[Any]:
    """Decode values. For a feature of several numbers per row, return one list per row."""
    if isinstance(encoder, NumericListEncoder):
        one = NumericEncoder(encoder.scale, 0.0, 1.0, encoder.missing)
        rows = np.asarray(encoded, np.float64).reshape(-1, encoder.width)
        return [[decode_value(one, number) for number in row] for row in rows.tolist()]
    flat = encoded.values if isinstance(encoded, Lists) else np.atleast_1d(np.asarray(encoded))
    return [decode_value(encoder, value) for value in flat.tolist()]


def decode_value(encoder: Encoder, value: Any) -> Any:
    """Return a raw value that an encoder maps to ``value``. None for a missing value, and for every value of a hash or
    a cross.

    >>> decode_value(BucketizedEncoder((10.0, 20.0)), 3)
    10.0
    """
    if isinstance(encoder, NumericEncoder):
        number = float(value) * encoder.spread + encoder.shift
        return math.copysign(math.expm1(abs(number)), number) if encoder.scale == "log" else number
    if isinstance(encoder, (HashEncoder, CrossEncoder)) or value == MISSING:
        return None
    index = int(value) - FIRST
    if isinstance(encoder, IdEncoder):
        return encoder.keys.values[index].as_py() if index >= 0 else _make_unseen_value(encoder)
    if isinstance(encoder, BucketizedEncoder):
        return encoder.edges[index - 1] if index > 0 else encoder.edges[0] - 1.0
    assert isinstance(encoder, LogSquareEncoder)
    cut = index + encoder.low
    # Just inside the bucket: its lower edge may round to either side.
    return float(cut + 2) if cut <= 0 else math.exp(math.sqrt(cut)) * (1 + 1e-9)


def _make_unseen_value(encoder: IdEncoder) -> Any:
    """Return a value that is not in a vocabulary."""
    vocabulary = set(encoder.keys.values.to_pylist())
    numbers = range(len(vocabulary) + 1)
    return next(
        value for n in numbers if (value := -1 - n if encoder.keys.numeric else f"unseen-{n}") not in vocabulary
    )
