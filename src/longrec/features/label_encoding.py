"""Labels: 0, 1 or nothing, from the label column and its condition; and the side column that tells them of a token."""

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
"""Its ids; 3 means that the label is not known yet."""


def compute_labels(label: Label, array: pa.Array, where: str) -> NDArray[np.float32]:
    """float32 ``[n]``: 0, 1, or NaN where the column is null.

    Raises:
        DataError: another value than 0 and 1 where the label has no condition.
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
            "say label: {column: ..., at_least: ...} to make it one",
        )
    return values.astype(np.float32)


def encode_labels(labels: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """uint8 ``[n]``: the side column of labels that are known.

    >>> label_ids(np.array([1.0, 0.0, np.nan])).tolist()
    [2, 1, 0]
    """
    return np.where(np.isnan(labels), NONE, np.where(labels > 0.5, POSITIVE, NEGATIVE)).astype(np.uint8)
