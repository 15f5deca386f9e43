"""Availability column of a log, and selection of the history events that were available at a timestamp.

A late event is in no history before it became available. A candidate (``candidate`` of the schema) is no event, and is
never available. A log without both has no availability column, and its histories are contiguous ranges of rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.data.array_writer import ArrayWriter
from longrec.data.sorted_log import AVAILABLE_AT, TIME
from longrec.features.entity_table import open_array
from longrec.features.fields import AVAILABLE
from longrec.features.history_columns import NEVER
from longrec.features.schema import Schema
from longrec.store.visibility import select_last_visible


class AvailabilityFile:
    """Writer of the availability column of a log.

    It writes no file if the schema has no such column, or if no event is late and no row is a candidate.

    Args:
        folder: folder of the prepared events.
        where: name of the log in warnings.

    Attributes:
        columns: columns of the sorted log that ``append`` reads in addition to the time.
    """

    def __init__(self, folder: Path, schema: Schema, where: str) -> None:
        self._column = None if schema.time is None else schema.time.available_at
        self._candidate = None if schema.candidate is None else f"c.{schema.candidate}"
        self._path, self._where = folder / f"{AVAILABLE}.npy", where
        self.columns = [] if self._column is None else [AVAILABLE_AT]
        self.columns += [] if self._candidate is None else [self._candidate]
        self._writer = ArrayWriter(self._path, np.int64) if self.columns else None
        self._rows = self._late = self._early = 0

    def append(self, chunk: pa.RecordBatch) -> None:
        """Append a chunk. Null counts as the event time, and a value before the event is raised to the event time."""
        if self._writer is None:
            return
        times = chunk[TIME].to_numpy(zero_copy_only=False)
        available = times
        if self._column is not None:
            available = pc.coalesce(chunk[AVAILABLE_AT], chunk[TIME]).to_numpy(zero_copy_only=False)
        if self._candidate is not None:
            flags = pc.fill_null(chunk[self._candidate].cast(pa.float64()), 0).to_numpy(zero_copy_only=False)
            available = np.where(flags > 0, NEVER, available)
        self._rows += len(times)
        self._late += int((available > times).sum())
        self._early += int((available < times).sum())
        self._writer.append(np.maximum(available, times))

    def close(self) -> list[str]:
        """Close the file and return warnings."""
        if self._writer is None:
            return []
        self._writer.close()
        if not self._late:
            self._path.unlink()
        if not self._early:
            return []
        share = f"{self._early:,} of {self._rows:,} events became available before they happened"
        return [
            f"{self._where}: by column {self._column!r} (time.available_at) {share}; they count as available at their "
            "own time. Check the clocks and time zones of both columns."
        ]


def list_event_types(folder: Path) -> dict[str, str]:
    """Return the types of the prepared event columns that are not features: item and availability."""
    names = ("item", AVAILABLE)
    return {name: str(open_array(path).dtype) for name in names if (path := folder / f"{name}.npy").exists()}


def select_available_events(folder: Path, cutoffs: tuple[int, int] | None) -> NDArray[np.bool_] | bool:
    """Return a mask of the events that were available before the first cutoff of a split by time, or True for all.

    Candidates are among them: their values were available at their own time.
    """
    path = folder / f"{AVAILABLE}.npy"
    if cutoffs is None or not path.exists():
        return True
    available = open_array(path)
    return (available < cutoffs[0]) | (available == NEVER)


def select_events(where: NDArray[np.uint8] | None, available: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the rows that pass the filter of a history and that are events and no candidates.

    Args:
        where: 1 for each row that passes, ``[n]``. None without a filter.
        available: availability of each row, int64 ``[n]``. None if all are events.
    """
    if available is None:
        assert where is not None
        return np.flatnonzero(where)
    events = available != NEVER
    return np.flatnonzero(events if where is None else events & (where > 0))


def clamp_to_available(timestamps: NDArray[np.int64], available: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the later of two timestamps of each row. Those of a candidate, which is no event, stay as they are."""
    return np.where(available == NEVER, timestamps, np.maximum(timestamps, available))


def select_last_available(
    first: NDArray[np.int64],
    stop: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    n: int,
    available: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the last ``n`` positions per range whose event was available strictly before a timestamp.

    Args:
        first, stop: start and end of each range of positions, int64 ``[B]``.
        timestamps: timestamp of each range, int64 ``[B]``.
        n: maximum number of positions per range.
        available: availability of the event at each position, int64.

    Returns:
        Positions, int64 ``[N]``, concatenated by range and sorted in each, and their offsets ``[B + 1]``.
    """
    pending, width = np.arange(len(first)), n
    owners, kept_positions = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    while len(pending):
        low = np.maximum(first[pending], stop[pending] - width)
        lengths = np.maximum(stop[pending] - low, 0)
        positions, offsets = expand_ranges(low, lengths)
        available_mask = available.take(positions) < np.repeat(timestamps[pending], lengths)
        total = np.concatenate([[0], np.cumsum(available_mask)])
        done = (np.diff(total[offsets]) >= n) | (low == first[pending])
        at = select_last_visible(available_mask & np.repeat(done, lengths), offsets, n)
        owners.append(np.repeat(pending, lengths)[at])
        kept_positions.append(positions[at])
        pending, width = pending[~done], width * 2
    owner, position = np.concatenate(owners), np.concatenate(kept_positions)
    order = np.argsort(owner, kind="stable")
    return position[order], np.searchsorted(owner[order], np.arange(len(first) + 1))


def expand_ranges(first: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the concatenated positions of all ranges, and their offsets, int64 ``[B + 1]``.

    >>> expand_ranges(np.array([3, 7]), np.array([2, 1]))
    (array([3, 4, 7]), array([0, 2, 3]))
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1]), offsets
