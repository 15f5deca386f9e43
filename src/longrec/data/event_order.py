"""Declared order of events with equal timestamps (``time.order``): which events precede a row, and its file.

A prepared log of such a schema has the file ``tie.npy``: for each row, the first row of the same user with an equal
timestamp and an equal order. The events before that row are strictly before the row in (time, order).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.array_writer import ArrayWriter
from longrec.data.sorted_log import ORDER, TIME, USER
from longrec.features.entity_table import open_array
from longrec.features.schema import Schema

_FILE = "tie.npy"


class EventOrder:
    """Order of the rows of a log by (user, time, order).

    Attributes:
        first_tied: first row of the user with equal time and order, int64 ``[n]``.
    """

    def __init__(self, first_tied: NDArray[np.int64]) -> None:
        self.first_tied = first_tied

    @classmethod
    def open(cls, folder: Path) -> EventOrder | None:
        """Open the order of a prepared log, or return None if its schema declares none."""
        return cls(open_array(folder / _FILE)) if (folder / _FILE).exists() else None

    def differs(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each row but the first has another time or order than the row before it."""
        return np.diff(self.first_tied.take(rows)) != 0

    def find_cutoffs(self, later: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first row of each user that is not before all of the user's later rows, int64 ``[users]``.

        Args:
            later: mask of the rows, for example those of valid and test. A user without any has the user's end.
            offsets: first row of each user, int64 ``[users + 1]``.
        """
        rows, cutoffs = np.flatnonzero(later), offsets[1:].astype(np.int64)
        users = np.searchsorted(offsets, rows, side="right") - 1
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        cutoffs[users[starts]] = self.first_tied.take(rows[starts])
        return cutoffs


class OrderFile:
    """Writer of ``tie.npy``. It writes no file if the schema declares no order.

    Attributes:
        columns: columns of the sorted log that ``append`` reads in addition to user and time.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        declared = schema.time is not None and schema.time.order is not None
        self.columns = [ORDER] if declared else []
        self._writer = ArrayWriter(folder / _FILE, np.int64) if declared else None
        self._last: tuple[object, ...] | None = None
        self._rows = self._first = 0

    def append(self, chunk: pa.RecordBatch, ends: NDArray[np.int64]) -> None:
        """Append a chunk.

        Args:
            ends: end of the rows of each user in the chunk.
        """
        if self._writer is None:
            return
        time, order = (chunk[column].to_numpy(zero_copy_only=False) for column in (TIME, ORDER))
        starts = np.ones(len(time), bool)
        starts[1:] = (np.diff(time) != 0) | (np.diff(order) != 0)
        starts[ends[:-1]] = True
        begin, last = (tuple(chunk[column][at].as_py() for column in (USER, TIME, ORDER)) for at in (0, -1))
        starts[0] = begin != self._last
        rows = self._rows + np.arange(len(time), dtype=np.int64)
        first = np.maximum.accumulate(np.where(starts, rows, self._first))
        self._writer.append(first)
        self._last, self._rows, self._first = last, self._rows + len(time), int(first[-1])

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def order_warnings(schema: Schema) -> list[str]:
    """Return what to consider about scores of a log with a declared order."""
    if schema.time is None or schema.time.order is None:
        return []
    return [
        f"events with equal timestamps are read in the order of column {schema.time.order!r} (time.order): scores are "
        "comparable with published protocols, and not with a server, which reads strictly earlier events only"
    ]
