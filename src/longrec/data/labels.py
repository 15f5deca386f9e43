"""Labels of a whole log: which there are, and whether a model can learn from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.data import split
from longrec.errors import DataError
from longrec.features.label import labels_of

__all__ = ["check_labels", "labels_of"]


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
            "look at the label's condition, and at the split"
            + ("; a log of clicks alone needs rows with label 0: what was shown and not clicked" if train[0] else ""),
        )
