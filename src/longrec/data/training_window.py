"""The training window: labels may train and validate only if they were available before anything is measured.

A label trains if it was available strictly before the first measured timestamp. It validates if it was available
strictly before the first timestamp of test. If the split runs along time, that timestamp is one line for all users.
Otherwise each user has its own: that of the user's first row in valid or test (in test). Rows of one user that are
tied with that row, or later, or whose label was not available at it, are then left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.data.splits import TEST, TRAIN, VALID
from longrec.features.history_columns import NEVER


@dataclass(frozen=True)
class TrainingWindow:
    """The timestamps before which a label must be available.

    Attributes:
        train: int64 ``[users]`` (rows of the user table) or ``[1]`` for all: the end of training.
        valid: the same of validation; ``NEVER`` where nothing is measured later.
        first_measured: first timestamp of valid and test together; ``NEVER`` if both are empty.
        first_test: first timestamp of test; ``NEVER`` if it is empty.
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
    """Labeled rows of one split that are left out.

    Attributes:
        rows: int64, rising.
        unknown: how many lie before the end of the window, with a label that became available only later.
        later: how many lie at or after it themselves.
    """

    rows: NDArray[np.int64]
    unknown: int = 0
    later: int = 0


def window_by_lines(lines: tuple[int, int], valid: int, test: int) -> TrainingWindow:
    """Return the window of a split by time.

    Args:
        lines: first timestamps of valid and of test.
        valid, test: number of labeled rows of each; an empty split ends nothing.
    """
    measured = lines[0] if valid else lines[1] if test else NEVER
    tested = lines[1] if test else NEVER
    return TrainingWindow(np.array([measured]), np.array([tested]), measured, tested)


def window_of_rows(
    codes: NDArray[np.int8],
    labeled: NDArray[np.bool_],
    times: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> TrainingWindow:
    """Return the window of a split that is decided row by row (by user, leave-one-out, by column, by files).

    It is one line for all users if the splits follow each other in time, and one timestamp per user otherwise.

    Args:
        codes: the split of each row, as in ``SPLITS``.
        labeled: mask of the rows that are samples.
        times, timestamps: time of the event, and time as of which its features are taken.
        offsets: int64 ``[users + 1]``.
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
