"""Labels: 0, 1 or nothing, from the label column and its condition."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data import split
from longrec.errors import DataError
from longrec.features import encode
from longrec.features.schema import Condition, Label
from longrec.features.view import holds


def labels_of(label: Label, array: pa.Array, where: str) -> NDArray[np.float32]:
    """float32 ``[n]``: 0, 1, or NaN where the column is null.

    Raises:
        DataError: another value than 0 and 1 where the label has no condition.
    """
    if label.equals is not None:
        met = holds(Condition(equals=label.equals), array, where).astype(np.float32)
        return np.where(array.is_null().to_numpy(zero_copy_only=False), np.float32(np.nan), met)
    values = encode.numbers(array, where)
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


def check_labels(labels: NDArray[np.float32], codes: NDArray[np.int8], where: str) -> None:
    """Refuse a training window without labels, or with labels of one class.

    Args:
        codes: the part of each row, as in ``split``.
    """
    train = labels[(codes == split.TRAIN) & ~np.isnan(labels)]
    if not len(train):
        raise DataError(
            where, "no training row has a label", "labelled rows before the split line", "look at label and split"
        )
    if train.min() == train.max():
        raise DataError(
            where,
            f"every training label is {train[0]:g}",
            "both classes",
            "look at the label's condition, and at the split",
        )
