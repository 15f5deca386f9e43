"""Counts of rows per user and per item, and samples of rows, in chunks that never hold the whole log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log

_ROWS = 1 << 20
"""Number of rows that are counted together, unless there are more items."""


@dataclass
class RowCounts:
    """Numbers of some rows of a log.

    Attributes:
        rows, positives: number of rows, and of those with a positive label.
        users, items: number of rows per row of the tables of users and items, int64.
    """

    rows: int
    positives: int
    users: NDArray[np.int64]
    items: NDArray[np.int64]

    @classmethod
    def of(cls, log: Log, codes: NDArray[np.int8], wanted: Sequence[int]) -> RowCounts:
        """Count the rows of some codes.

        Args:
            codes: code of each row, such as its split, int8 ``[n]``.
        """
        counts = cls(0, 0, np.zeros(len(log.users), np.int64), np.zeros(len(log.items), np.int64))
        offsets, items = log.events.offsets, log.events.columns["item"]
        step = max(_ROWS, len(log.items))
        for at, rows in _select(codes, wanted, step):
            first, stop = np.searchsorted(offsets, at, side="right") - 1, np.searchsorted(offsets, at + step)
            counts.users[first:stop] += np.diff(np.searchsorted(rows, offsets[first : stop + 1]))
            counts.items += np.bincount(items.take(rows), minlength=len(log.items))
            counts.rows += len(rows)
            counts.positives += int(np.count_nonzero(log.labels.take(rows) > 0.5))
        return counts


def sample_rows(codes: NDArray[np.int8], wanted: int, count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` evenly spaced rows of one code, int64.

    Args:
        count: number of rows of this code.
    """
    step, before = max(-(-count // most), 1), 0
    chosen = [np.zeros(0, np.int64)]
    for _, rows in _select(codes, (wanted,), _ROWS):
        chosen.append(rows[-before % step :: step])
        before += len(rows)
    return np.concatenate(chosen)


def _select(codes: NDArray[np.int8], wanted: Sequence[int], step: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the start of each chunk and its rows of some codes."""
    for at in range(0, len(codes), step):
        chunk = codes[at : at + step]
        mask = chunk == wanted[0]
        for code in wanted[1:]:
            mask |= chunk == code
        yield at, at + np.flatnonzero(mask)
