"""States of the users of one bundle: the events that are final, folded into a state of constant size.

A state is folded up to a timestamp (the watermark): the request's, less the longest delay of what a history reads, and
less the allowed lateness. The later events of the user go to the program as its history. An event that is recorded or
changed before the watermark removes the state, which the next request folds again from the stored events. Scores are
the same with a state as without one, and those of the whole life: ``max_length`` of a history does not cut it.

Shapes: B users, W width of the states of a history, N events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.exporting.bundle import Bundle
from longrec.exporting.inputs import STATE, UPDATE, make_tensors
from longrec.exporting.runtime import Program
from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import concat_lists, gather_lists
from longrec.serve.state_store import StateStore, StoredState
from longrec.store.history_store import Events

Columns = Mapping[str, "NDArray[Any] | Lists"]
LATER = np.iinfo(np.int64).max - 1
"""Timestamp at which everything that was ever stored is visible."""
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
        events: the events, by history.
        columns: their columns, by history.
    """

    start: Mapping[str, NDArray[np.float32]]
    events: Mapping[str, Events]
    columns: Mapping[str, Columns]


@dataclass(frozen=True)
class _Reading:
    """Reading of the events of one user between a state and the watermark."""

    reader: EventReader
    own: UserHistory
    stored: StoredState | None
    until: int

    def read(self, history: str, now: int) -> Events:
        """Return the events as visible at a timestamp."""
        since = None if self.stored is None else self.stored.until
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
        self._starts = {name: np.array(one.start, np.float32) for name, one in facts.items()}
        self._programs = {name: programs[f"{UPDATE}{name}"] for name in facts}
        inputs = {name: bundle.manifest.programs[f"{UPDATE}{name}"].inputs for name in facts}
        self._numbers = {entry.field for own in inputs.values() for entry in own if entry.datatype == "FP32"}

    @property
    def bytes_per_user(self) -> int:
        """Bytes of the state of one user."""
        return sum(start.nbytes for start in self._starts.values())

    def remove(self, user: int, time: int) -> None:
        """Remove the state of a user if an event at a timestamp would be in it."""
        self.store.remove(user, time)

    def read(
        self, reader: EventReader, own: UserHistory, timestamp: int
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Events]]:
        """Return the states of a user, ``[1, W]`` by input, and the events after them, by history, as of a timestamp.

        Final events are folded and stored first if there are many of them.
        """
        stored = self.store.get(own.user)
        if stored is not None and stored.at > timestamp:
            stored = None  # a request about an earlier time reads all events before it
            return self._build_inputs(None), self._read_after(reader, own, None, timestamp)
        later = self._read_after(reader, own, stored, timestamp)
        until = timestamp - self.delay
        final = max(int((events.times < until).sum()) for events in later.values())
        if final >= self.fold_at:
            folded = self.fold(reader, [own], timestamp, {own.user: stored})
            if own.user in folded:
                stored = folded[own.user]
                later = {name: _keep_from(events, stored.until) for name, events in later.items()}
        return self._build_inputs(stored), later

    def read_whole(self, reader: EventReader, own: UserHistory, timestamp: int) -> tuple[dict[str, Events], int]:
        """Return all events of a user before a timestamp, by history, and the time before which they are in the state.

        It is below all times if a request at the timestamp uses no state. Nothing is folded.
        """
        stored = self.store.get(own.user)
        until = stored.until if stored is not None and stored.at <= timestamp else np.iinfo(np.int64).min
        return self._read_after(reader, own, None, timestamp), int(until)

    def fold(
        self,
        reader: EventReader,
        users: Sequence[UserHistory],
        now: int,
        stored: Mapping[int, StoredState | None] | None = None,
    ) -> dict[int, StoredState]:
        """Fold the final events of users into their states, all users at once, and store the states.

        A user with an event before the watermark of which a later timestamp sees something else has no new state.

        Args:
            now: timestamp from which the states can be used.
            stored: their present states. None: read them.

        Returns:
            The new states by user.
        """
        until, foldings, read = now - self.delay, dict[int, _Folding](), dict[int, _Reading]()
        for one in users:
            present = self.store.get(one.user) if stored is None else stored[one.user]
            if present is not None and (present.at > now or present.until >= until):
                continue
            reading = _Reading(reader, one, present, until)
            events = {name: reading.read(name, now) for name in self.histories}
            if not all(_are_equal(events[name], reading.read(name, LATER)) for name in self.histories):
                continue
            columns = {name: reader.encode(name, own, now) for name, own in events.items()}
            foldings[one.user], read[one.user] = _Folding(self._split(present), events, columns), reading
        if not foldings:
            return {}
        states = {name: self._run(name, list(foldings.values())) for name in self.histories}
        new = {
            user: StoredState(until, now, b"".join(states[name][at].tobytes() for name in self.histories))
            for at, user in enumerate(foldings)
        }
        self.store.put(new)
        for user, folding in foldings.items():  # another process may have recorded an event meanwhile
            if not all(_are_equal(own, read[user].read(name, LATER)) for name, own in folding.events.items()):
                self.store.remove(user, -1)
                del new[user]
        return new

    def _run(self, history: str, foldings: Sequence[_Folding]) -> NDArray[np.float32]:
        """Return the states ``[B, W]`` after the events of each user, one step of all users after the other."""
        states_BW = np.stack([one.start[history] for one in foldings])
        lengths_B = np.array([_count(one.columns[history]) for one in foldings])
        order_B = np.argsort(-lengths_B, kind="stable")
        offsets_B = np.concatenate([[0], np.cumsum(lengths_B)])[order_B]
        columns = {
            name: _concatenate([one.columns[history][name] for one in foldings])
            for name in foldings[0].columns[history]
        }
        program, sorted_BW = self._programs[history], states_BW[order_B]
        for step in range(int(lengths_B.max(initial=0))):
            count = int((lengths_B > step).sum())
            at = offsets_B[:count] + step
            tensors: dict[str, NDArray[Any]] = {f"s.{history}": np.ascontiguousarray(sorted_BW[:count])}
            for name, column in columns.items():
                taken = gather_lists(column, at) if isinstance(column, Lists) else column[at]
                tensors |= make_tensors(f"h.{history}.{name}", taken, f"h.{history}.{name}" in self._numbers)
            sorted_BW[:count] = program.run(tensors, STATE)
        states_BW[order_B] = sorted_BW
        return states_BW

    def _read_after(
        self, reader: EventReader, own: UserHistory, stored: StoredState | None, timestamp: int
    ) -> dict[str, Events]:
        """Return the events after a state, by history."""
        since = None if stored is None else stored.until
        return {name: _read_since(reader, own, name, since, timestamp, timestamp) for name in self.histories}

    def _build_inputs(self, stored: StoredState | None) -> dict[str, NDArray[np.float32]]:
        """Return the states of one user as inputs of the score program."""
        return {f"s.{name}": state[None] for name, state in self._split(stored).items()}

    def _split(self, stored: StoredState | None) -> dict[str, NDArray[np.float32]]:
        """Return the states of one user by history, ``[W]``. Without a stored one those of a user without events."""
        if stored is None:
            return dict(self._starts)
        packed, states, at = np.frombuffer(stored.content, np.float32), {}, 0
        for name, start in self._starts.items():
            states[name] = packed[at : at + len(start)]
            at += len(start)
        return states


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


def _are_equal(one: Events, other: Events) -> bool:
    """Return True for the same events with the same values."""
    same = np.array_equal(one.times, other.times)
    return same and all(np.array_equal(column, other.columns[name]) for name, column in one.columns.items())


def _take(events: Events, some: slice) -> Events:
    times = events.times[some]
    return Events(np.array([0, len(times)]), times, {name: column[some] for name, column in events.columns.items()})


def _count(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _concatenate(columns: Sequence[NDArray[Any] | Lists]) -> NDArray[Any] | Lists:
    lists = [column for column in columns if isinstance(column, Lists)]
    return concat_lists(lists) if lists else np.concatenate([one for one in columns if not isinstance(one, Lists)])
