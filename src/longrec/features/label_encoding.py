"""Labels (0, 1 or missing) of the label column and its condition, and their ids in the side column of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.features import feature_encoders
from longrec.features.history_columns import match_condition
from longrec.features.schema import Condition, Label

LABEL = "label"
"""Name of the side column."""
NONE, NEGATIVE, POSITIVE = 0, 1, 2
"""Ids of the side column. 3 means that the label is not yet available."""


def compute_labels(label: Label, array: pa.Array, where: str) -> NDArray[np.float32]:
    """Compute labels as float32 ``[n]``: 0, 1, or NaN if the column is null.

    Raises:
        DataError: if a value is neither 0 nor 1 and the label has no condition.
    """
    if label.equals is not None:
        met = match_condition(Condition(equals=label.equals), array, where).astype(np.float32)
        return np.where(array.is_null().to_numpy(zero_copy_only=False), np.float32(np.nan), met)
    values = feature_encoders.cast_numbers(array, where)
    if label.at_least is not None:
        return np.where(np.isnan(values), np.nan, values >= label.at_least).astype(np.float32)
    odd = ~np.isnan(values) & (values != 0) & (values != 1)
    if odd.any():
        raise DataError(
            where,
            f"the label {values[odd][0]:g}",
            "0, 1 or null",
            "set label: {column: ..., at_least: ...} to make it one",
        )
    return values.astype(np.float32)


def encode_labels(labels: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Encode available labels to the ids of the side column, uint8 ``[n]``.

    >>> encode_labels(np.array([1.0, 0.0, np.nan])).tolist()
    [2, 1, 0]
    """
    return np.where(np.isnan(labels), NONE, np.where(labels > 0.5, POSITIVE, NEGATIVE)).astype(np.uint8)
