"""Live events: events recorded after a bundle was written, stored durably and read as part of its histories.

They are kept in a separate store by the raw keys of users, so that users whom the bundle does not contain have
histories too. Ids are those of the bundle, so the store is rejected for any other bundle. Every event has the time from
which it is visible (``store/visibility.py`` defines how revisions of one event are stored).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.exporting.bundle import Bundle
from longrec.features.fields import AVAILABLE
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import NEVER, list_event_columns
from longrec.serve.live_store import open_live
from longrec.store.amend import find, find_many, mask_reached
from longrec.store.disk_store import DiskStore
from longrec.store.history_store import Events
from longrec.store.visibility import read_visible_events

_ALL = 1 << 40
_BITS = 31


@dataclass(frozen=True)
class StoredEvent:
    """An event that was recorded before.

    Attributes:
        columns: columns of the store, ``[1]`` each.
        recorded: True if the event is in the store, False if it is in the bundle alone.
    """

    columns: Mapping[str, NDArray[Any]]
    recorded: bool

    def __getitem__(self, name: str) -> int:
        return int(self.columns[name][0])


@dataclass(frozen=True)
class EventUpdate:
    """Update of the store for a recorded event.

    Attributes:
        available: time from which the new revision is visible.
        row: columns of the store to write. None if it has them.
        writes: functions that write it.
    """

    available: int
    row: Mapping[str, int] | None = None
    writes: list[Callable[[], None]] = field(default_factory=list)


class LiveEvents:
    """Store of the events since a bundle was written, and histories merged from the bundle and this store.

    Args:
        location: a folder or an address. A missing store is created.
        bundle: a bundle whose histories are read from its own events.

    Attributes:
        bundle_digest: digest of the bundle.
        removals: functions of the users of events that are written, with the earliest timestamp of each, which remove
            what they change.

    Raises:
        StoreError: if the store belongs to another bundle, or another process writes to it.
    """

    def __init__(self, location: str, bundle: Bundle) -> None:
        assert bundle.store is not None
        self._base: DiskStore = bundle.store
        self._fitted, self.bundle_digest = bundle.fitted, bundle.digest
        schema = bundle.fitted.schema
        self.values = list_event_columns(bundle.fitted)
        self.feedback = [name for name in self.values if schema.features[name].feedback]
        self._availability_columns = [f"known.{name}" for name in self.feedback]
        self.filters = {name: list(history.where) for name, history in schema.histories.items() if history.where}
        for name, columns in self.filters.items():
            if len(columns) > _BITS:
                raise StoreError(f"histories.{name}.where", f"{len(columns)} conditions", f"at most {_BITS}")
        self.removals: list[Callable[[Mapping[int, int]], None]] = []
        self.backend = open_live(location, self._list_column_types(), bundle.digest)

    def _list_column_types(self) -> dict[str, Any]:
        types: dict[str, Any] = {"instance": np.int64, "item": np.int32, "replaces": np.uint8, AVAILABLE: np.int64}
        types |= dict.fromkeys(self.values, np.int32)
        types |= {f"known.{name}": np.int64 for name in self.feedback}
        for name in self.filters:
            types |= {f"where.{name}": np.uint8, f"met.{name}": np.int32, f"since.{name}": np.int64}
        return types

    def find(self, user: int, row: int, time: int, instance: int, item: int) -> StoredEvent | None:
        """Return the newest revision of a recorded event, or the event of the bundle, or None.

        Args:
            user: key number.
            row, item: rows of user and item in the bundle, 0 if it does not contain them.
        """
        columns = find(self.backend, user, time, instance)
        if columns is not None:
            return StoredEvent(columns, True)
        own = self._find_in_base(row, time, item)
        return None if own is None else StoredEvent(own, False)

    def find_many(
        self,
        users: NDArray[np.int64],
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        instances: NDArray[np.int64],
        items: NDArray[np.int64],
    ) -> list[StoredEvent | None]:
        """Return what is stored of N events, as ``find`` for each. Arguments are ``[N]``."""
        recorded = find_many(self.backend, users, times, instances)
        in_base = mask_reached(self._base, rows, times) & (rows > 0)
        stored: list[StoredEvent | None] = []
        for at, columns in enumerate(recorded):
            if columns is not None:
                stored.append(StoredEvent(columns, True))
                continue
            own = self._find_in_base(int(rows[at]), int(times[at]), int(items[at])) if in_base[at] else None
            stored.append(None if own is None else StoredEvent(own, False))
        return stored

    def prepare_update(
        self,
        user: int,
        row: int,
        time: int,
        columns: Mapping[str, int],
        old: StoredEvent | None,
        now: int,
        *,
        overwrite: bool,
    ) -> EventUpdate:
        """Prepare the record of an event. Missing values are added, and changed values create a new revision.

        Args:
            user: key number.
            row: row of the user in the bundle, 0 for a new user.
            columns: ``instance``, ``item`` (row), ids by event feature, ``known.*`` by feedback feature, and ``met.*``,
                the bits of the conditions that hold, by filtered history.
            old: result of ``find``.
            now: time of recording, never before the event.
            overwrite: replace the event, because there is no clock.
        """
        passes = {n: columns[f"met.{n}"] == (1 << len(conditions)) - 1 for n, conditions in self.filters.items()}
        if old is None or overwrite:
            first = old is not None and (not old.recorded or bool(old["replaces"]))
            return self._write(user, time, columns, now, {n: now for n in passes if passes[n]}, replaces=first)
        further = old.recorded and old["instance"] != columns["instance"]
        same = all(columns[name] == old[name] for name in self.values if name not in self.feedback)
        lost = any(not passed and old[f"since.{name}"] != NEVER for name, passed in passes.items())
        feedback_unchanged = all(columns[n] == old[n] or old[f"known.{n}"] == NEVER for n in self.feedback)
        if old.recorded and same and feedback_unchanged and not lost:  # nothing is changed, at most something is added
            if all(columns[name] == old[name] for name in columns if name != "instance"):
                return EventUpdate(old[AVAILABLE])
            since = {n: old[f"since.{n}"] if old[f"since.{n}"] != NEVER else now for n in passes if passes[n]}
            own = {**columns, "instance": old["instance"]}
            first = bool(old["replaces"])
            return self._write(user, time, own, old[AVAILABLE], since, replaces=first, further=further)
        alike = all(columns[n] == old[n] for n in (*self.values, *self._availability_columns))
        if not old.recorded and alike and all(passed == (old[f"since.{n}"] != NEVER) for n, passed in passes.items()):
            return EventUpdate(old[AVAILABLE])
        available = max(now, old[AVAILABLE])
        since = {n: available for n in passes if passes[n]}
        if not old.recorded:
            return self._write(user, time, columns, available, since, replaces=True)
        own = {**columns, "instance": old["instance"] + 1}
        return self._write(user, time, own, available, since, replaces=False, further=True)

    def _write(
        self,
        user: int,
        time: int,
        columns: Mapping[str, int],
        available: int,
        since: Mapping[str, int],
        *,
        replaces: bool,
        further: bool = False,
    ) -> EventUpdate:
        """Prepare one row of the store.

        Args:
            since: time from which the event passes each filter, by history.
            further: True for every revision after the first.
        """
        row_columns = {**columns, AVAILABLE: available, "replaces": int(replaces)}
        for name in self.filters:
            # Every filter reads a later revision, because it replaces one that may pass.
            row_columns[f"where.{name}"] = int(name in since or further)
            row_columns[f"since.{name}"] = since.get(name, NEVER)
        return EventUpdate(available, row_columns, [partial(self.write, [user], [time], [row_columns])])

    def write(self, users: Sequence[int], times: Sequence[int], rows: Sequence[Mapping[str, int]]) -> None:
        """Write rows of ``EventUpdate`` durably, all or none, and remove the states that they change."""
        if not rows:
            return
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        # Before too, so that a state without the events does not outlive a crash between both.
        self.remove_states(users, times)
        self.backend.append(np.array(users, np.int64), np.array(times, np.int64), columns)
        self.remove_states(users, times)

    def remove_states(self, users: Sequence[int], times: Sequence[int]) -> None:
        """Remove the states of users that events at some timestamps change."""
        earliest: dict[int, int] = {}
        for user, time in zip(users, times) if self.removals else ():
            earliest[user] = min(time, earliest.get(user, time))
        for remove in self.removals:
            remove(earliest)

    def last(
        self,
        user: int,
        row: int,
        before: int,
        n: int,
        where: str | None,
        columns: Sequence[str],
        now: int | None = None,
    ) -> Events:
        """Return the last ``n`` events of a user that are visible at a timestamp, from the bundle and since.

        Args:
            user: key number.
            row: row of the user in the bundle, 0 for a new user.
            before: exclusive upper bound of event timestamps.
            n: number of events.
            where: column of a filter, or None.
            columns: columns of the bundle's history. ``known.*`` of every feedback feature are added.
            now: timestamp of the request. Default ``before``, which is earlier if a filter waits.
        """
        now = before if now is None else now
        wanted = list(dict.fromkeys([*columns, *self._availability_columns]))
        since = [AVAILABLE] if where is None else [AVAILABLE, f"since.{where.removeprefix('where.')}"]
        new = read_visible_events(self.backend, user, before, now, n, where, [*wanted, *since, "instance"], since)
        gone = self.backend.last(user, before, _ALL, "replaces", ["item", AVAILABLE])
        taken = _list_replaced(gone, now) if len(gone) else []
        old = read_base_last(self._base, row, before, now, n + len(taken), where)
        kept = _mask_remaining(old, taken) if taken else slice(None)
        times = old.times[kept]
        both = np.concatenate([times, new.times])
        order: slice | NDArray[np.int64] = slice(max(len(both) - n, 0), None)
        if len(times) and len(new) and times[-1] > new.times[0]:  # some happened before the last one of the bundle
            order = np.argsort(both, kind="stable")[order]
        merged = {}
        for name in wanted:
            own = old.columns[name][kept] if name in old.columns else self._compute_availability(name, times)
            merged[name] = np.concatenate([own, new.columns[name]])[order]
        both = both[order]
        return Events(np.array([0, len(both)]), both, merged)

    def _compute_availability(self, name: str, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Compute availability times of feedback from the schema."""
        return times + self._fitted.schema.available_after(name.removeprefix("known."))

    def _find_in_base(self, row: int, time: int, item: int) -> dict[str, NDArray[Any]] | None:
        """Return an event of the bundle in the columns of the store, or None."""
        count = 64
        while row:
            events = self._base.last(row, time + 1, count)
            at = np.flatnonzero((events.times == time) & (events.columns["item"] == item))[:1]
            if len(at):
                own = {name: column[at] for name, column in events.columns.items()}
                own.setdefault(AVAILABLE, events.times[at])
                for name in self._availability_columns:
                    own.setdefault(name, self._compute_availability(name, events.times[at]))
                for name, conditions in self.filters.items():
                    passed = own[f"where.{name}"] > 0
                    own[f"since.{name}"] = np.where(passed, own[AVAILABLE], NEVER)
                    own[f"met.{name}"] = np.where(passed, (1 << len(conditions)) - 1, 0)
                return own
            if len(events) < count or events.times[0] < time:
                break
            count *= 8
        return None

    def compact(self) -> None:
        """Compact the store."""
        self.backend.compact()

    def close(self) -> None:
        """Close the store."""
        self.backend.close()


def read_base_last(base: DiskStore, row: int, before: int, now: int, n: int, where: str | None) -> Events:
    """Return the last ``n`` events of a bundle's own history that are visible at a timestamp."""
    if AVAILABLE not in base.types:
        return base.last(row, before, n, where)
    return read_visible_events(base, row, before, now, n, where, None, [AVAILABLE])


def keeps_events(fitted: FittedSchema) -> bool:
    """Return True for a schema with histories of events that the bundle stores."""
    own = [history for history in fitted.schema.histories.values() if history.source is None]
    return bool(own) and not fitted.schema.prejoined


def _list_replaced(gone: Events, now: int) -> list[tuple[int, int]]:
    """List time and item of the events of the bundle that were recorded again before a timestamp."""
    replaced = gone.columns[AVAILABLE] < now
    return list(zip(gone.times[replaced].tolist(), gone.columns["item"][replaced].tolist()))


def _mask_remaining(old: Events, taken: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return the mask of the events that were not recorded again. Each recorded one masks the first equal event."""
    kept = np.ones(len(old), bool)
    for time, item in taken:
        first = np.flatnonzero(kept & (old.times == time) & (old.columns["item"] == item))[:1]
        kept[first] = False
    return kept
