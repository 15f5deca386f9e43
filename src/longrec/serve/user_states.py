"""States of the users of one bundle: the events that are final, folded into a state of constant size.

A state is folded up to a timestamp (the watermark): the request's, less the longest delay of what a history reads, and
less the allowed lateness. The later events of the user go to the program as its history. An event that is recorded or
changed before the watermark removes the state, which the next request folds again from the stored events. Scores are
the same with a state as without one, and those of the whole life: ``max_length`` of a history does not cut it.

Of a history whose newest event is not final until the next one is there, the newest one before the watermark stays
outside the state, with those of its timestamp. Every request reads them again.

Shapes: B users, W width of the states of a history, N events.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.exporting.bundle import Bundle
from longrec.exporting.inputs import START, UPDATE
from longrec.exporting.runtime import Program
from longrec.serve.state_store import StateStore, StoredState
from longrec.serve.state_updates import Columns, StateUpdate
from longrec.store.history_store import Events

LATER = np.iinfo(np.int64).max - 1
"""Timestamp at which everything that was ever stored is visible."""
_SINCE = struct.Struct("<q")
"""After the states: the timestamp of the first event outside each state whose newest event is not final."""
_FEW = 64
"""Number of events that are read at first."""


class EventReader(Protocol):
    """Reader of the stored events of a user, for one history."""

    def read_last(self, user: int, row: int, before: int, now: int, history: str, n: int) -> Events:
        """Return the last ``n`` events before a timestamp as visible at another one."""
        ...

    def encode(self, history: str, events: Events, now: int) -> Columns:
        """Return the columns of events as available at a timestamp."""
        ...


@dataclass(frozen=True)
class UserHistory:
    """A user whose events are read.

    Attributes:
        user: key number.
        row: row of the user in the bundle, 0 for a new user.
    """

    user: int
    row: int


@dataclass(frozen=True)
class _Folding:
    """Events of one user that enter a state.

    Attributes:
        start: states before them, by history ``[W]``.
        events: the events before the watermark, by history.
        counts: how many of them enter the state.
        columns: their columns, by history.
    """

    start: Mapping[str, NDArray[np.float32]]
    events: Mapping[str, Events]
    counts: Mapping[str, int]
    columns: Mapping[str, Columns]


@dataclass(frozen=True)
class _Reading:
    """Reading of the events of one user between a state and the watermark.

    Attributes:
        since: timestamps from which on events are not in the state, by history. None without a state.
    """

    reader: EventReader
    own: UserHistory
    since: Mapping[str, int] | None
    until: int

    def read(self, history: str, now: int) -> Events:
        """Return the events as visible at a timestamp."""
        since = None if self.since is None else self.since[history]
        return _read_since(self.reader, self.own, history, since, self.until, now)


class UserStates:
    """States of the users of one bundle.

    Args:
        bundle: a bundle with states.
        programs: its programs.
        store: store of the states.
        lateness: time by which events may be recorded late without removing a state, in milliseconds or steps.
        fold_at: number of final events after which a request folds them.
    """

    def __init__(
        self,
        bundle: Bundle,
        programs: Mapping[str, Program],
        store: StateStore,
        lateness: int = 0,
        fold_at: int = 64,
    ) -> None:
        facts = bundle.manifest.states
        self.histories = list(facts)
        self.store, self.fold_at = store, fold_at
        self.delay = max(one.delay for one in facts.values()) + lateness
        self._starts = {name: one.make_start() for name, one in facts.items()}
        self._holding = [name for name, one in facts.items() if one.holds_newest]
        self._updates = {
            name: StateUpdate(name, programs[f"{UPDATE}{name}"], bundle.manifest.programs[f"{UPDATE}{name}"], one)
            for name, one in facts.items()
        }

    @property
    def bytes_per_user(self) -> int:
        """Bytes of the state of one user."""
        return sum(start.nbytes for start in self._starts.values()) + _SINCE.size * len(self._holding)

    def remove(self, user: int, time: int) -> None:
        """Remove the state of a user if an event at a timestamp would be in it."""
        self.store.remove(user, time)

    def read(
        self, reader: EventReader, own: UserHistory, timestamp: int, earliest: int | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Events]]:
        """Return the states of a user, ``[1, W]`` by input, and the events after them, by history, as of a timestamp.

        Final events are folded and stored first if there are many of them.

        Args:
            earliest: timestamp of the first event that the request brings. The state has no later one.
        """
        stored, until = self.store.get(own.user), timestamp - self.delay
        if earliest is not None:
            until = min(until, earliest)
        if stored is not None and not self._is_usable(stored, timestamp, earliest):
            return self._build_inputs(None), self._read_after(reader, own, None, timestamp)
        later = self._read_after(reader, own, stored, timestamp)
        final = max(self._count_final(name, _keep_before(events, until)) for name, events in later.items())
        if final >= self.fold_at:
            folded = self.fold(reader, [own], timestamp, {own.user: stored}, until)
            if own.user in folded:
                stored = folded[own.user]
                since = self._list_since(stored)
                later = {name: _keep_from(events, since[name]) for name, events in later.items()}
        return self._build_inputs(stored), later

    def read_whole(
        self, reader: EventReader, own: UserHistory, timestamp: int, earliest: int | None = None
    ) -> tuple[dict[str, Events], dict[str, int]]:
        """Return all events of a user before a timestamp, by history, and the time before which they are in the state.

        It is below all times if a request at the timestamp uses no state. Nothing is folded.

        Args:
            earliest: as of ``read``.
        """
        stored, since = self.store.get(own.user), dict.fromkeys(self.histories, int(np.iinfo(np.int64).min))
        if stored is not None and self._is_usable(stored, timestamp, earliest):
            since = self._list_since(stored)
        return self._read_after(reader, own, None, timestamp), since

    @staticmethod
    def _is_usable(stored: StoredState, timestamp: int, earliest: int | None) -> bool:
        """Return False for a request about an earlier time, or with an earlier event, which reads all events."""
        return stored.at <= timestamp and (earliest is None or earliest >= stored.until)

    def fold(
        self,
        reader: EventReader,
        users: Sequence[UserHistory],
        now: int,
        stored: Mapping[int, StoredState | None] | None = None,
        until: int | None = None,
    ) -> dict[int, StoredState]:
        """Fold the final events of users into their states, all users at once, and store the states.

        A user with an event before the watermark of which a later timestamp sees something else has no new state.

        Args:
            now: timestamp from which the states can be used.
            stored: their present states. None: read them.
            until: events before this timestamp are folded, if they are final. Default all that are.

        Returns:
            The new states by user.
        """
        until = now - self.delay if until is None else min(until, now - self.delay)
        foldings, read = dict[int, _Folding](), dict[int, _Reading]()
        for one in users:
            present = self.store.get(one.user) if stored is None else stored[one.user]
            if present is not None and (present.at > now or present.until >= until):
                continue
            reading = _Reading(reader, one, None if present is None else self._list_since(present), until)
            events = {name: reading.read(name, now) for name in self.histories}
            if not all(_are_equal(events[name], reading.read(name, LATER)) for name in self.histories):
                continue
            columns = {name: reader.encode(name, own, now) for name, own in events.items()}
            counts = {name: self._count_final(name, own) for name, own in events.items()}
            foldings[one.user], read[one.user] = _Folding(self._split(present), events, counts, columns), reading
        if not foldings:
            return {}
        every = list(foldings.values())
        states = {
            name: update.run(
                [one.start[name] for one in every],
                [one.columns[name] for one in every],
                [one.counts[name] for one in every],
            )
            for name, update in self._updates.items()
        }
        new = {
            user: StoredState(until, now, self._join([states[name][at] for name in states], folding.events, until))
            for at, (user, folding) in enumerate(foldings.items())
        }
        self.store.put(new)
        for user, folding in foldings.items():  # another process may have recorded an event meanwhile
            if not all(_are_equal(own, read[user].read(name, LATER)) for name, own in folding.events.items()):
                self.store.remove(user, -1)
                del new[user]
        return new

    def _read_after(
        self, reader: EventReader, own: UserHistory, stored: StoredState | None, timestamp: int
    ) -> dict[str, Events]:
        """Return the events after a state, by history."""
        reading = _Reading(reader, own, None if stored is None else self._list_since(stored), timestamp)
        return {name: reading.read(name, timestamp) for name in self.histories}

    def _build_inputs(self, stored: StoredState | None) -> dict[str, NDArray[np.float32]]:
        """Return the states of one user as inputs of the score program."""
        return {f"{START}{name}": state[None] for name, state in self._split(stored).items()}

    def _split(self, stored: StoredState | None) -> dict[str, NDArray[np.float32]]:
        """Return the states of one user by history, ``[W]``. Without a stored one those of a user without events."""
        if stored is None:
            return dict(self._starts)
        count = sum(map(len, self._starts.values()))
        packed, states, at = np.frombuffer(stored.content, np.float32, count), {}, 0
        for name, start in self._starts.items():
            states[name] = packed[at : at + len(start)]
            at += len(start)
        return states

    def _list_since(self, stored: StoredState) -> dict[str, int]:
        """Return the timestamps from which on events are not in a state, by history."""
        last = stored.content[len(stored.content) - _SINCE.size * len(self._holding) :]
        own = {name: since for name, (since,) in zip(self._holding, _SINCE.iter_unpack(last), strict=True)}
        return {name: own.get(name, stored.until) for name in self.histories}

    def _join(self, states: Sequence[NDArray[np.float32]], events: Mapping[str, Events], until: int) -> bytes:
        """Return the content of a stored state, after the events before the watermark."""
        newest = [events[name].times[-1:].tolist() or [until] for name in self._holding]
        return b"".join([*(state.tobytes() for state in states), *(_SINCE.pack(own[0]) for own in newest)])

    def _count_final(self, history: str, events: Events) -> int:
        """Return how many of the events before the watermark may enter a state."""
        times = events.times
        return int(np.searchsorted(times, times[-1])) if history in self._holding and len(times) else len(times)


def _read_since(
    reader: EventReader, own: UserHistory, history: str, since: int | None, before: int, now: int
) -> Events:
    """Return the events from ``since`` on and before a timestamp, as visible at ``now``."""
    n = _FEW
    while True:
        events = reader.read_last(own.user, own.row, before, now, history, n)
        if len(events) < n or (since is not None and events.times[0] < since):
            return events if since is None else _keep_from(events, since)
        n *= 8


def _keep_from(events: Events, since: int) -> Events:
    return _take(events, slice(int(np.searchsorted(events.times, since)), None))


def _keep_before(events: Events, until: int) -> Events:
    return _take(events, slice(None, int(np.searchsorted(events.times, until))))


def _are_equal(one: Events, other: Events) -> bool:
    """Return True for the same events with the same values."""
    same = np.array_equal(one.times, other.times)
    return same and all(np.array_equal(column, other.columns[name]) for name, column in one.columns.items())


def _take(events: Events, some: slice) -> Events:
    times = events.times[some]
    return Events(np.array([0, len(times)]), times, {name: column[some] for name, column in events.columns.items()})
