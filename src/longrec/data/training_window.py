"""Training window: the timestamps before which labels must be available for training and for validation.

A label is used for training if it was available strictly before the first timestamp of valid and test. It is used for
validation if it was available strictly before the first timestamp of test. If the splits follow each other in time,
this cutoff is the same for all users. Otherwise each user has a separate cutoff: the timestamp of the user's first row
in valid or test (for validation: in test). Rows of the user at or after the cutoff are excluded, and so are rows whose
label was not yet available at the cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.data.splits import TEST, TRAIN, VALID
from longrec.features.history_columns import NEVER


@dataclass(frozen=True)
class TrainingWindow:
    """Timestamps before which a label must be available.

    Attributes:
        train: end of the training window, int64 ``[users]`` (one per row of the user table) or ``[1]`` (one for all).
        valid: end of the validation window, in the same form. ``NEVER`` for a user or log without test rows.
        first_measured: first timestamp of valid and test together. ``NEVER`` if both are empty.
        first_test: first timestamp of test. ``NEVER`` if it is empty.
    """

    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    first_measured: int
    first_test: int

    def end(self, split: str, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64 ``[users]`` or ``[1]``: the timestamp before which labels of a split must be available."""
        ends = self.train if split == "train" else self.valid
        return ends if len(ends) == 1 else ends.take(users)


@dataclass(frozen=True)
class ExcludedRows:
    """Labeled rows of one split that training or validation must not use.

    Attributes:
        rows: sorted row indices, int64.
        late_labels: number of rows before the end of the window whose label became available only at or after the end.
        late_rows: number of rows at or after the end of the window.
    """

    rows: NDArray[np.int64]
    late_labels: int = 0
    late_rows: int = 0


def window_from_cutoffs(cutoffs: tuple[int, int], valid: int, test: int) -> TrainingWindow:
    """Return the training window of a split by time, which has the same cutoffs for all users.

    Args:
        cutoffs: first timestamps of valid and of test.
        valid, test: number of labeled rows in each split. The cutoff of an empty split has no effect.
    """
    measured = cutoffs[0] if valid else cutoffs[1] if test else NEVER
    tested = cutoffs[1] if test else NEVER
    return TrainingWindow(np.array([measured]), np.array([tested]), measured, tested)


def window_from_rows(
    codes: NDArray[np.int8],
    labeled: NDArray[np.bool_],
    times: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> TrainingWindow:
    """Return the training window of a split that is given per row (by user, leave-one-out, by column, by files).

    It has one cutoff for all users if the splits follow each other in time, else one cutoff per user.

    Args:
        codes: split code of each row, as in ``SPLITS``.
        labeled: mask of the rows that are samples.
        times: timestamp of each event.
        timestamps: timestamp as of which the features of each row are read.
        offsets: first row of each user, int64 ``[users + 1]``.
    """

    def ends(split: int, later: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        if not len(later):
            return np.array([NEVER]), NEVER
        first = int(timestamps.take(later).min())
        own = times[labeled & (codes == split)]
        if not len(own) or int(own.max()) < first:
            return np.array([first]), first
        users = np.searchsorted(offsets, later, side="right") - 1
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        each = np.full(len(offsets) - 1, NEVER)
        each[users[starts]] = np.minimum.reduceat(timestamps.take(later), starts)
        return each, first

    train, measured = ends(TRAIN, np.flatnonzero(labeled & (codes > TRAIN)))
    valid, tested = ends(VALID, np.flatnonzero(labeled & (codes == TEST)))
    return TrainingWindow(train, valid, measured, tested)
