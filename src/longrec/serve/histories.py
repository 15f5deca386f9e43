"""Histories of a request: events of the bundle (and later ones), or the lists in the request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError, RequestError, describe_unknown_names
from longrec.exporting.bundle import Bundle
from longrec.features.feature_encoders import Lists
from longrec.features.history_columns import (
    HistoryEvents,
    build_history_columns,
    compute_filter_delay,
    list_event_columns,
)
from longrec.features.raw_columns import encode_list
from longrec.pipeline.recent_event import RecentEvent
from longrec.serve.live_events import LiveEvents, read_base_last
from longrec.serve.recent_events import RecentColumns, drop_stored, encode_recent
from longrec.serve.user_states import UserHistory, UserStates
from longrec.store.history_store import Events

Columns = dict[str, NDArray[Any] | Lists]
_ALL = 1 << 40
"""A number of events that no user has."""


@dataclass(frozen=True)
class _History:
    """Parameters of reading one history, fixed when the service starts."""

    name: str
    last: int
    where: str | None
    delay: int


class EventHistories:
    """Reader of the event histories of a bundle's ONNX model, without state between requests.

    Attributes:
        live: events since the bundle, if events are recorded.
        items: features of the items.
        states: states of the users, from which histories go on. None: histories are read from their first event.
    """

    def __init__(self, bundle: Bundle, live: LiveEvents | None = None) -> None:
        self.items = bundle.items
        self.bundle, self.fitted, self.live = bundle, bundle.fitted, live
        schema = self.fitted.schema
        read = {entry.group for entry in bundle.manifest.inputs}
        self._event_histories = {name: history for name, history in schema.histories.items() if history.source is None}
        self._read = [
            _History(
                name,
                history.max_length,
                f"where.{name}" if history.where else None,
                0 if schema.prejoined else compute_filter_delay(self.fitted, name),
            )
            for name, history in self._event_histories.items()
            if f"h.{name}" in read
        ]
        self._values = list_event_columns(self.fitted)
        timed = [name for name in self._values if schema.features[name].available_at is not None]
        if live is not None:  # late feedback is available later than the schema says
            timed = live.feedback
        self._availability_columns = {name: f"known.{name}" for name in timed}
        self._columns = ["item", *self._values, *self._availability_columns.values()]
        self._by_name = {history.name: history for history in self._read}
        self.states: UserStates | None = None

    def encode_recent(
        self, recent: Sequence[RecentEvent], rows: NDArray[np.int64], user: Any, row: int, timestamp: int
    ) -> RecentColumns | None:
        """Encode the recent events of a request that are not stored. None if the bundle stores no events.

        Args:
            rows: ``[R]``, rows of the items.
            user: key of the user.
            row: row of the user in the bundle, 0 for a new user.

        Raises:
            RequestError: 422 if a value has the wrong type.
        """
        if self.bundle.store is None or self.fitted.schema.prejoined:
            return None
        try:
            encode_recent(self.fitted, user, recent, rows)  # of stored ones too, so that an error never depends on them
        except DataError as error:
            raise to_request_error(error) from None
        new = drop_stored(recent, rows, user, row, timestamp, self.bundle.store, self.live)
        return encode_recent(self.fitted, user, [one for one, own in zip(recent, new) if own], rows[new])

    def read_stored(
        self, user: int, row: int, timestamp: int, recent: RecentColumns | None = None
    ) -> dict[str, Columns]:
        """Return the histories of a user as available strictly before a timestamp.

        Args:
            user, row, timestamp, recent: as of ``read_events``.
        """
        every = self.read_events(user, row, timestamp, recent)
        return {name: self.encode(name, events, timestamp) for name, events in every.items()}

    def read_events(
        self, user: int, row: int, timestamp: int, recent: RecentColumns | None = None
    ) -> dict[str, Events]:
        """Return the events of the histories of a user as visible strictly before a timestamp, oldest first.

        Args:
            user: key number.
            row: row of the user in the bundle, 0 for a new user.
            timestamp: milliseconds UTC, or a step.
            recent: further events of the user.
        """
        if self.bundle.store is None:
            return {}
        every = {history.name: self._read_last(user, row, timestamp, history) for history in self._read}
        return {name: self._merge(name, events, timestamp, recent) for name, events in every.items()}

    def read_after_states(
        self, user: int, row: int, timestamp: int, recent: RecentColumns | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Columns]]:
        """Return the states of a user by the inputs of the program, and the histories after them.

        Args:
            user, row, timestamp, recent: as of ``read_stored``.
        """
        assert self.states is not None
        states, every = self.states.read(self, UserHistory(user, row), timestamp, _find_earliest(recent))
        merged = {name: self._merge(name, events, timestamp, recent) for name, events in every.items()}
        return states, {name: self.encode(name, events, timestamp) for name, events in merged.items()}

    def read_whole(
        self, user: int, row: int, timestamp: int, recent: RecentColumns | None = None
    ) -> tuple[dict[str, Events], dict[str, int]]:
        """Return all events of a user that a score reads, from a state or after it, and how many are in the state.

        Nothing is folded.

        Args:
            user, row, timestamp, recent: as of ``read_events``.

        Returns:
            The events by history, oldest first, and the numbers of those that are folded.
        """
        assert self.states is not None
        earliest = _find_earliest(recent)
        every, since = self.states.read_whole(self, UserHistory(user, row), timestamp, earliest)
        folded = {name: int((events.times < since[name]).sum()) for name, events in every.items()}
        return {name: self._merge(name, events, timestamp, recent) for name, events in every.items()}, folded

    def _merge(self, name: str, events: Events, timestamp: int, recent: RecentColumns | None) -> Events:
        """Return stored events of a history and recent ones."""
        if recent is not None:
            history = self._by_name[name]
            last = history.last if self.states is None else len(events) + len(recent.times)
            events = recent.merge(events, name, timestamp - history.delay, last)
        return events

    def encode(self, history: str, events: Events, now: int) -> Columns:
        """Return the columns of events as available at a timestamp."""
        columns, items = events.columns, events.columns["item"]
        if int(items.max(initial=0)) >= len(self.items):  # of an added item, whose changes were removed since
            items = np.where(items < len(self.items), items, 0)
        seen = HistoryEvents(
            events.times,
            items,
            {name: columns[name] for name in self._values},
            {name: columns[column] for name, column in self._availability_columns.items()},
        )
        return build_history_columns(self.fitted, history, self.items, seen, np.array([now], np.int64))

    def read_last(self, user: int, row: int, before: int, now: int, history: str, n: int) -> Events:
        """Return the last ``n`` events of a history before a timestamp as visible at another one."""
        own = self._by_name[history]
        before = min(before, now - own.delay)
        if self.live is not None:
            return self.live.last(user, row, before, n, own.where, self._columns, now)
        assert self.bundle.store is not None
        events = read_base_last(self.bundle.store, row, before, now, n, own.where)
        return Events(events.offsets, events.times, {name: events.columns[name] for name in self._columns})

    def read_seen_items(
        self, user: int, row: int, timestamp: int, recent: RecentColumns | None = None
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the rows of the items, and the times, of all events of a user visible strictly before a timestamp."""
        store = self.bundle.store
        if store is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        if self.live is not None:
            events = self.live.last(user, row, timestamp, _ALL, None, ["item"], timestamp)
        else:
            events = read_base_last(store, row, timestamp, timestamp, _ALL, None)
        if recent is not None:
            events = recent.merge(events, "", timestamp, _ALL)
        return events.columns["item"], events.times

    def _read_last(self, user: int, row: int, timestamp: int, history: _History) -> Events:
        before = timestamp - history.delay
        if self.live is not None:
            return self.live.last(user, row, before, history.last, history.where, self._columns, timestamp)
        assert self.bundle.store is not None
        return read_base_last(self.bundle.store, row, before, timestamp, history.last, history.where)

    def encode_request_histories(
        self, received: Mapping[str, Mapping[str, Sequence[Any]]] | None
    ) -> dict[str, Columns]:
        """Encode the histories of a request, cut to their last events.

        Raises:
            RequestError: 422 if names are unknown or missing, lists have different lengths, or values have the wrong
                type.
        """
        if not self._read and received is None:
            return {}
        do = "send each history oldest first, {history: {feature: [values]}}, an empty list if there are no events"
        check_names("history", received or {}, dict.fromkeys(self._event_histories), do)
        histories: dict[str, Columns] = {}
        for name, history in self._event_histories.items():
            columns = (received or {})[name]
            check_names(f"history.{name}", columns, dict.fromkeys(history.features), do)
            lengths = {column: len(values) for column, values in columns.items()}
            if len(set(lengths.values())) > 1:
                message = ", ".join(f"{count} of {column}" for column, count in lengths.items())
                raise RequestError(
                    f"history.{name}", message, "lists of one length", "send all columns of every event", 422
                )
            try:
                histories[name] = {
                    column: encode_list(self.fitted, column, values[-history.max_length :], f"history.{name}.{column}")
                    for column, values in columns.items()
                }
            except DataError as error:
                raise to_request_error(error) from None
        return {history.name: histories[history.name] for history in self._read}


def _find_earliest(recent: RecentColumns | None) -> int | None:
    """Return the timestamp of the first event that a request brings."""
    return None if recent is None or not len(recent.times) else int(recent.times[0])


def to_request_error(error: DataError) -> RequestError:
    """Convert an encoder's error to an error of the request."""
    return RequestError(error.where, error.found, error.expected, error.do, 422)


def check_names(where: str, received: Iterable[str], expected: Mapping[str, Any], do: str) -> None:
    """Reject unknown and missing names, with an error that lists the expected names.

    Raises:
        RequestError: 422 if a name is unknown or missing.
    """
    names = dict.fromkeys(received)
    missing = [name for name in expected if name not in names]
    faults = describe_unknown_names([name for name in names if name not in expected], missing)
    faults += [f"no {name!r}" for name in missing]
    if faults:
        raise RequestError(where, "; ".join(faults), ", ".join(expected) or "nothing", do, 422)
