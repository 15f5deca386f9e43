"""A prepared log extended by new rows: each new row has the history that it would have had in the log.

Only the events of the users of the new rows are copied. A new row with the user, item and timestamp of an event of the
log is that event: it is scored as it is in the new input, and histories have the event of the log, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.array_writer import ArrayWriter
from longrec.data.availability import expand_ranges
from longrec.data.event_order import EventOrder
from longrec.data.log import Log
from longrec.data.new_rows import NewRows
from longrec.data.sample_weights import open_weights
from longrec.data.splits import TEST
from longrec.features.entity_table import load_lists, open_array
from longrec.features.entity_versions import find_first_from
from longrec.features.feature_encoders import Lists
from longrec.features.fields import AVAILABLE
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import list_event_columns
from longrec.store.column_types import format_type
from longrec.store.segment import Segment, write_manifest

_CHUNK = 1 << 20
"""Number of events that are merged together."""


class ExtendedLog(Log):
    """Events of the users of new rows, from a prepared log and from the new rows.

    Attributes:
        new: row of each new row, in the order of user and time, int64 ``[n]``, ascending.
        hidden: mask of the rows that no history has, bool. None if histories have all rows.
        repeated: number of new rows that are events of the prepared log.
        has_label: True if the new rows have labels.
    """

    new: NDArray[np.int64]
    hidden: NDArray[np.bool_] | None
    repeated: int
    has_label: bool

    def select_filtered(self, name: str) -> NDArray[np.int64] | None:
        """Return the row indices of the events that a history may have, or None for all."""
        if self.hidden is None:
            return super().select_filtered(name)
        if name not in self._filtered_rows:
            shown = np.flatnonzero(~self.hidden)
            if self.schema.histories[name].where:
                shown = shown[self.events.columns[f"where.{name}"].take(shown) > 0]
            self._filtered_rows[name] = shown
        return self._filtered_rows[name]


def extend_log(log: Log, rows: NewRows, folder: Path, *, candidates: bool = False) -> ExtendedLog:
    """Merge new rows with the events of their users in a prepared log, in a folder of its own.

    Args:
        candidates: the new rows are candidates to score and not events, so that no history has them.
    """
    merge = _Merge(log, rows, folder)
    extended = merge.write()
    repeated = merge.match >= 0
    extended.repeated = int(repeated.sum())
    if candidates or extended.repeated:
        extended.hidden = np.zeros(len(extended), bool)
        extended.hidden[extended.new] = True if candidates else repeated
    extended.open_stores()
    return extended


@dataclass(frozen=True)
class _Group:
    """Consecutive users whose events are merged together.

    Attributes:
        at: rows of the prepared log, int64.
        new: new rows.
        old_positions, new_positions: where each of them is among the merged rows of the group.
    """

    at: NDArray[np.int64]
    new: slice
    old_positions: NDArray[np.int64]
    new_positions: NDArray[np.int64]


class _Merge:
    def __init__(self, log: Log, rows: NewRows, folder: Path) -> None:
        self.log, self.rows, self.folder = log, rows, folder
        self.events = Segment.open(rows.folder / "events")
        old = log.events
        # The histories of pre-joined rows are columns of these rows.
        reads = not log.schema.prejoined and log.schema.time is not None and bool(log.schema.histories)
        self.first, stop = old.offsets.take(rows.user_rows), old.offsets.take(rows.user_rows + 1)
        self.counts = stop - self.first if reads else np.zeros_like(stop)
        stop = self.first + self.counts
        self.before = np.concatenate([[0], np.cumsum(self.counts)])
        users = np.repeat(np.arange(self.events.rows), np.diff(self.events.offsets))
        first, stop, times = self.first[users], stop[users], self.events.times
        self.users = users
        # Events of the log before each new row, and those up to its timestamp.
        self.low = find_first_from(old.times, first, stop, times)
        self.high = find_first_from(old.times, self.low, stop, times + 1)
        self.new = self.high - first + self.before[users] + np.arange(len(times))
        self.match = self._match()

    def _match(self) -> NDArray[np.int64]:
        """Return the event of the log with the user, item and timestamp of each new row, or -1. Copies are paired."""
        match = np.full(len(self.low), -1)
        tied = np.flatnonzero(self.high > self.low)
        if not len(tied):
            return match
        low, which = np.unique(self.low[tied], return_index=True)
        at, offsets = expand_ranges(low, (self.high - self.low)[tied][which])
        old_items = self.log.events.columns["item"].take(at).astype(np.int64)
        new_items = self.events.columns["item"].take(tied).astype(np.int64)
        size = len(self.rows.items)
        old_codes = np.repeat(np.arange(len(low)), np.diff(offsets)) * size + old_items
        new_codes = np.searchsorted(low, self.low[tied]) * size + new_items
        old_order, new_order = np.argsort(old_codes, kind="stable"), np.argsort(new_codes, kind="stable")
        new_sorted = new_codes[new_order]
        copy = np.arange(len(tied)) - np.searchsorted(new_sorted, new_sorted)
        left, right = (np.searchsorted(old_codes[old_order], new_sorted, side=side) for side in ("left", "right"))
        paired = left + copy < right
        match[tied[new_order[paired]]] = at[old_order[(left + copy)[paired]]]
        return match

    def write(self) -> ExtendedLog:
        """Write the merged columns, and return the log."""
        (self.folder / "events").mkdir(parents=True)
        old, new, size = self.log.events, self.events, int(self.before[-1]) + len(self.low)
        names = self._list_columns()
        own = {"item", *(name for n in list_event_columns(self.log.fitted) for name in (n, f"known.{n}"))}
        types: dict[str, str] = {}
        with ArrayWriter(self.folder / "events" / "times.npy", np.int64) as writer:
            for group in self._groups():
                writer.append(_merge(group, old.times, new.times))
        for name in names:
            one, other = (segment.columns.get(name) for segment in (old, new))
            kind = np.result_type(*(column for column in (one, other) if column is not None))
            shape = () if other is None else other.shape[1:]
            types[name] = format_type(np.dtype((kind, shape)))
            # Without a column, every event is available at its own time. What no history reads is not copied.
            copied = name in own or name.startswith("where.") or name == AVAILABLE
            one, other = (old.times if one is None else one), (new.times if other is None else other)
            with ArrayWriter(self.folder / "events" / f"{name}.npy", np.dtype((kind, shape))) as writer:
                for group in self._groups():
                    writer.append(_merge(group, one if copied else None, other))
        np.save(self.folder / "events" / "offsets.npy", self.before + new.offsets)
        write_manifest(self.folder / "events", types)
        return self._build(size)

    def _list_columns(self) -> list[str]:
        one, other = self.log.events.columns, self.events.columns
        late = [AVAILABLE] if AVAILABLE in one or AVAILABLE in other else []
        return [*(name for name in other if name != AVAILABLE), *late]

    def _groups(self) -> Iterator[_Group]:
        """Yield the groups of users, in order."""
        total = self.before + self.events.offsets
        cuts = np.unique(np.searchsorted(total, np.arange(0, int(total[-1]) + _CHUNK, _CHUNK)))
        cuts[0], cuts[-1] = 0, len(total) - 1
        for low, high in zip(cuts[:-1].tolist(), cuts[1:].tolist()):
            at, _ = expand_ranges(self.first[low:high], self.counts[low:high])
            new = slice(int(self.events.offsets[low]), int(self.events.offsets[high]))
            positions = self.new[new] - int(total[low])
            is_old = np.ones(len(at) + len(positions), bool)
            is_old[positions] = False
            yield _Group(at, new, np.flatnonzero(is_old), positions)

    def _build(self, size: int) -> ExtendedLog:
        log, rows, folder = self.log, self.rows, self.folder
        labels = np.full(size, np.nan, np.float32)
        labels[self.new] = open_array(rows.folder / "label.npy")
        np.save(folder / "label.npy", labels)
        np.save(folder / "split.npy", np.full(size, TEST, np.int8))
        rows.users.save(folder / "users")
        rows.items.save(folder / "items")
        if (rows.folder / "moment.npy").exists():
            timestamps = open_array(folder / "events" / "times.npy").copy()
            timestamps[self.new] = open_array(rows.folder / "moment.npy")
            np.save(folder / "moment.npy", timestamps)
        if log.order is not None:
            np.save(folder / "tie.npy", self._merge_order(size))
        extended = ExtendedLog(folder, FittedSchema(log.schema, log.fitted.encoders))
        extended.manifest = {"parts": {}, "lines": None, "source": {}}
        extended.new, extended.hidden, extended.has_label = self.new, None, rows.has_label
        lists = load_lists(rows.folder / "lists")
        extended.lists = {name: self._spread(column, size) for name, column in lists.items()}
        weights = open_weights(rows.folder, rows.weights)
        extended.weights = {name: self._scatter(weight, size) for name, weight in weights.items()}
        return extended

    def _spread(self, column: Lists, size: int) -> Lists:
        """Return a column of lists of the new rows as a column of all rows, with empty lists for the others."""
        lengths = np.zeros(size + 1, np.int64)
        lengths[self.new + 1] = np.diff(column.offsets)
        return Lists(column.values, np.cumsum(lengths), column.weights)

    def _scatter(self, values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        column = np.zeros(size, np.float32)
        column[self.new] = values
        return column

    def _merge_order(self, size: int) -> NDArray[np.int64]:
        """Return the first row that each row is tied with, see ``data/event_order.py``.

        The order of a new event among events of the log at the same timestamp is not known, unless it is one of them.
        So its history ends before all of them.
        """
        assert self.log.order is not None
        order = EventOrder.open(self.rows.folder)
        assert order is not None
        starts = np.ones(len(self.low), bool)
        starts[1:] = (np.diff(self.users) != 0) | (np.diff(self.events.times) != 0)
        same_time = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
        offset = self.before[self.users] - self.first[self.users] + same_time
        first = np.where(self.high > self.low, self.low + offset, self.new.take(order.first_tied))
        matched = self.match >= 0
        first[matched] = self.log.order.first_tied.take(self.match[matched]) + offset[matched]
        merged = np.arange(size)
        merged[self.new] = first
        return merged


def _merge(group: _Group, old: NDArray[Any] | None, new: NDArray[Any]) -> NDArray[Any]:
    """Return a column of a group of users. Without an ``old`` column the rows of the log have zeros."""
    own = new[group.new]
    kind = own.dtype if old is None else np.result_type(old, own)
    column = np.zeros((len(group.at) + len(own), *own.shape[1:]), kind)
    if old is not None:
        column[group.old_positions] = old.take(group.at, axis=0)
    column[group.new_positions] = own
    return column
