"""Store of the raw values of recorded events: what the next log is written from.

Histories store ids of one bundle. The log of the next bundle needs raw values, and both times of an event: its own, and
that from which the server read it. One record per event holds all of this as JSON. A record is cut into slices of equal
length, because stores hold numbers. It replaces the record before it, so that a call can be retried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.config import upgrade
from longrec.errors import StoreError
from longrec.exporting.store_copies import is_remote
from longrec.features.schema import Schema
from longrec.features.token_columns import compute_instance_ids
from longrec.serve.live_store import store_exists
from longrec.store import backends
from longrec.store.amend import mask_reached
from longrec.store.history_store import Events
from longrec.store.remote_client import mask_password

FORMAT = "longrec-recorded-1"
_NAME = "recorded"
_WIDTH = 256
"""Bytes of a slice, about those of a short record."""
_FEW = 16
_TYPES: dict[str, Any] = {
    "slice": np.int64,
    "event": np.int64,
    "number": np.int32,
    "size": np.int64,
    "text": np.dtype((np.uint8, (_WIDTH,))),
}


def locate_recorded(state: str) -> str:
    """Return the location of the recorded events of a state.

    >>> locate_recorded("shop.state"), locate_recorded("redis://host/0/shop?cap=500")
    ('shop.state/recorded', 'redis://host/0/shop-recorded')
    """
    if not is_remote(state):
        return str(Path(state, _NAME))
    url = urlsplit(state)  # without a cap, which counts the slices of a record one by one
    return urlunsplit(url._replace(path=f"{url.path}-{_NAME}", query=""))


@dataclass(frozen=True)
class RecordedEvent:
    """One recorded event with raw values. Times are milliseconds UTC, or steps.

    Attributes:
        user, item: keys.
        at: timestamp of the event.
        request: timestamp of the page view that showed the item.
        context: values by column, those that no history reads included.
        feedback: values by column.
        available_at: time from which each value of feedback is available.
        visible: time from which the last revision is visible.
        recorded_at: time of the last call that changed the event.
    """

    user: int | str
    item: int | str
    at: int
    request: int
    context: Mapping[str, Any]
    visible: int
    recorded_at: int
    feedback: Mapping[str, Any] = field(default_factory=dict)
    available_at: Mapping[str, int] = field(default_factory=dict)

    def add(self, old: RecordedEvent | None, *, overwrites: bool) -> RecordedEvent:
        """Return this event with what was recorded before. Feedback that did not change is available as before.

        Args:
            old: the record before this call.
            overwrites: feedback is available as of this call, because there is no clock.
        """
        if old is None:
            return self
        available_at = dict(self.available_at)
        for column, value in self.feedback.items():
            if not overwrites and column in old.feedback and old.feedback[column] == value:
                available_at[column] = old.available_at[column]
        feedback = {**old.feedback, **self.feedback}
        available_at = {**old.available_at, **available_at}
        context = self.context or old.context
        added = RecordedEvent(
            self.user, self.item, self.at, self.request, context, self.visible, self.recorded_at, feedback, available_at
        )
        is_same = (context, feedback, self.visible) == (old.context, old.feedback, old.visible)
        return old if is_same else added


class RecordedEvents:
    """Store of recorded events.

    Args:
        backend: the opened store.

    Attributes:
        schema: schema of the bundle whose server records.

    Raises:
        StoreError: if it is a store of something else.
    """

    def __init__(self, backend: backends.Backend) -> None:
        self.backend = backend
        attributes = backend.attributes
        if attributes.get("format") != FORMAT:
            do = "give the location of a state, as longrec serve --state has it"
            raise StoreError("recorded events", f"the format {attributes.get('format')!r}", FORMAT, do)
        self.schema = Schema.model_validate(upgrade(Schema, attributes["schema"]))

    @classmethod
    def open(cls, location: str, bundle: str, schema: Schema) -> RecordedEvents:
        """Open a store for writing, or create it.

        Args:
            location: a folder or an address.
            bundle: digest of the bundle whose server records.
            schema: schema of that bundle.

        Raises:
            StoreError: if the store belongs to another bundle, or another process writes to it.
        """
        dumped = schema.model_dump(mode="json", exclude_unset=True)
        if not store_exists(location):
            attributes = {"format": FORMAT, "bundle": bundle, "schema": dumped}
            return cls(backends.create(location, _TYPES, "slice", attributes))
        backend = backends.open_store(location, writable=True)
        if backend.attributes.get("bundle") != bundle:
            backend.close()
            do = "give another location with --state. The old events stay unchanged"
            raise StoreError(mask_password(location), "events of another bundle", "those of the served bundle", do)
        return cls(backend)

    @classmethod
    def open_for_reading(cls, location: str) -> RecordedEvents:
        """Open an existing store, which a server may be writing to.

        Raises:
            StoreError: if there is no store.
        """
        return cls(backends.open_store(location, writable=False))

    def find(self, user: int, at: int, instance: int) -> RecordedEvent | None:
        """Return the record of an event, or None.

        Args:
            user: key number.
            at: timestamp of the event.
            instance: name of the event.
        """
        count = _FEW
        while True:
            events = self.backend.last(user, at + 1, count)
            if len(events) < count or events.times[0] < at:
                break
            count *= 8
        own = np.flatnonzero((events.times == at) & (events.columns["event"] == instance))
        return _join_slices(events, own)

    def find_many(
        self, users: NDArray[np.int64], times: NDArray[np.int64], instances: NDArray[np.int64]
    ) -> list[RecordedEvent | None]:
        """Return the records of N events, as ``find`` for each. Arguments are ``[N]``."""
        reached = mask_reached(self.backend, users, times)
        rows = zip(reached.tolist(), users.tolist(), times.tolist(), instances.tolist())
        return [self.find(user, at, instance) if one else None for one, user, at, instance in rows]

    def write(self, users: Sequence[int], instances: Sequence[int], events: Sequence[RecordedEvent]) -> None:
        """Write the records of events durably, all or none. They replace those before.

        Args:
            users: key numbers.
            instances: names of the events.
        """
        if not events:
            return
        texts = [orjson.dumps(event, default=str) for event in events]
        sizes = np.array([len(text) for text in texts], np.int64)
        counts = -(-sizes // _WIDTH)
        starts = np.cumsum(counts) - counts
        numbers = np.arange(counts.sum()) - np.repeat(starts, counts)
        names = np.repeat(np.array(instances, np.int64), counts)
        times = np.repeat(np.array([event.at for event in events], np.int64), counts)
        padded = b"".join([text.ljust(int(count) * _WIDTH) for text, count in zip(texts, counts)])
        columns: dict[str, NDArray[Any]] = {
            "slice": compute_instance_ids(names, numbers, times, seen=False),
            "event": names,
            "number": numbers,
            "size": np.repeat(sizes, counts),
            "text": np.frombuffer(padded, np.uint8).reshape(-1, _WIDTH),
        }
        self.backend.append(np.repeat(np.array(users, np.int64), counts), times, columns)

    def scan(self) -> Iterator[RecordedEvent]:
        """Yield all recorded events, user by user."""
        for _, events in self.backend.scan():
            for instance in np.unique(events.columns["event"]).tolist():
                event = _join_slices(events, np.flatnonzero(events.columns["event"] == instance))
                if event is not None:
                    yield event

    def compact(self) -> None:
        """Compact the store."""
        self.backend.compact()

    def close(self) -> None:
        """Close the store."""
        self.backend.close()


def _join_slices(events: Events, at: NDArray[np.int64]) -> RecordedEvent | None:
    """Return the event whose slices are at some positions, None if one is missing. Slices beyond its size are old."""
    numbers = events.columns["number"][at]
    order = at[np.argsort(numbers)]
    if not len(order) or int(events.columns["number"][order[0]]) != 0:
        return None
    size = int(events.columns["size"][order[0]])
    text = np.ascontiguousarray(events.columns["text"][order]).tobytes()[:size]
    return None if len(text) < size else RecordedEvent(**orjson.loads(text))
