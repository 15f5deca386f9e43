"""Recording of events: an event is added to histories, and encoded as a token, durably before it is acknowledged.

The next ranking for its user includes it. An event is visible from the time it was first recorded, never earlier.
Recording the same event again changes no response for an earlier timestamp: missing feedback is added and is available
from then on, and changed values create a new revision of the event, which replaces it from then on. If the log's time
unit is ``step``, there is no clock: an event is visible from its own step, and recording it again overwrites it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from longrec.errors import DataError, RequestError
from longrec.features.raw_columns import format_request_time
from longrec.serve.event_columns import encode_event_columns
from longrec.serve.event_reader import Event, EventReader
from longrec.serve.event_tokens import EventTokens
from longrec.serve.histories import to_request_error
from longrec.serve.live_catalog import LiveCatalog
from longrec.serve.live_events import EventUpdate, LiveEvents, StoredEvent
from longrec.serve.recorded_events import RecordedEvent
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import EventRequest, Key
from longrec.serve.state import ServiceState
from longrec.store.amend import find_token


@dataclass(frozen=True)
class EventResponse:
    """Response to a recorded event.

    Attributes:
        at: timestamp of the event in the format of requests. Later feedback of the event is sent with the same value.
        instance: name of its token.
        visible: time from which the last revision is visible, in the format of requests. A log stores it as
            ``available_at``.
        recorded_at: time of the call. Its feedback is available from then on, unless the schema delays it.
        replaced: True if the event was recorded before.
        has_feedback: True if it came with feedback.
        new_user, new_item: True if the ranker's log does not contain them.
        ignored: columns of its context that are not used, because no history and no source model reads them.
    """

    user: Key
    item: Key
    at: str | int | None
    instance: int
    visible: str | int | None
    recorded_at: str | int | None
    replaced: bool
    has_feedback: bool
    new_user: bool
    new_item: bool
    ignored: tuple[str, ...] = ()

    def json(self) -> bytes:
        """Return the response of ``/events``."""
        return orjson.dumps(
            {
                "user": self.user,
                "item": self.item,
                "at": self.at,
                "instance": str(self.instance),  # JSON readers of some languages are limited to 53 bits
                "visible": self.visible,
                "recorded_at": self.recorded_at,
                "replaced": self.replaced,
                "unknown": {"user": self.new_user, "item": self.new_item},
                "ignored": self.ignored,
            }
        )


@dataclass(frozen=True)
class EventPlan:
    """What is to be written for a valid event.

    Attributes:
        updates: rows of the stores of live events, in their order.
        tokens: functions that write tokens.
        record: its raw values. None if they are written already, or not at all.
        visible: time from which its last revision is visible.
        now: time of recording.
        replaced: True if the event was recorded before.
    """

    event: Event
    updates: Sequence[EventUpdate]
    tokens: Sequence[Callable[[], None]]
    record: RecordedEvent | None
    visible: int
    now: int
    replaced: bool

    @property
    def changes(self) -> bool:
        """True if anything is to be written."""
        return bool(self.tokens) or self.record is not None or any(one.row is not None for one in self.updates)


@dataclass(frozen=True)
class PendingEvent:
    """A valid event that is not written yet."""

    writes: Sequence[Callable[[], None]]
    response: EventResponse

    def commit(self) -> EventResponse:
        """Write the event durably.

        This waits for the disk or the server. Rankings may run at the same time.

        Raises:
            StoreError: if a store does not respond. The event may be written in part until it is recorded again.
        """
        for write in self.writes:
            write()
        return self.response


class EventRecorder:
    """Records events for one bundle, one at a time: each is written before the next is prepared.

    Args:
        state: stores to write to.
        encoder: encoder of the requests of the bundle that is served.
        encoders: encoders of all bundles, by their digests.
        catalogs: catalogs of all bundles, each with the encoder of its bundle.
        clock: function that returns milliseconds UTC.

    Attributes:
        live_stores: stores of live events, each with the encoder of its bundle.
        reader: reader of events.
    """

    def __init__(
        self,
        state: ServiceState,
        encoder: RequestEncoder,
        encoders: Mapping[str, RequestEncoder],
        catalogs: Sequence[tuple[RequestEncoder, LiveCatalog]],
        clock: Callable[[], int],
    ) -> None:
        self.state, self._encoder = state, encoder
        source = state.source
        self.live_stores = [(live, encoders[digest]) for digest, live in state.live.items()]
        if source is not None and source.live is not None:
            self.live_stores.append((source.live, source.encoder))
        own = None if source is None else source.encoder
        readers = [reader for _, reader in self.live_stores]
        self.reader = EventReader(encoder, own, list(encoders.values()), readers, catalogs, clock)
        self._steps = self.reader.steps
        self._tokens = None if source is None else EventTokens(source, self._steps)

    def prepare(self, request: EventRequest) -> PendingEvent:
        """Validate and encode an event without writing it.

        Raises:
            RequestError: if the event is invalid. Nothing is written then.
        """
        event = self.reader.read(request)
        before = [self._find_stored_event(event, *live_store) for live_store in self.live_stores]
        records = self.state.recorded
        plan = self.plan(event, before, None if records is None else records.find(event.user, event.at, event.instance))
        writes = [write for update in plan.updates for write in update.writes] + list(plan.tokens)
        if records is not None and plan.record is not None:
            # Last, so that the next log has no event that the server did not read.
            writes.append(partial(records.write, [event.user], [event.instance], [plan.record]))
        return PendingEvent(writes, self._build_response(plan))

    def plan(self, event: Event, before: Sequence[StoredEvent | None], record: RecordedEvent | None) -> EventPlan:
        """Encode an event, and return what is to be written.

        Args:
            event: result of ``reader.read``.
            before: what the stores of live events have of it, in their order.
            record: its raw values as recorded before.

        Raises:
            RequestError: if the event is invalid.
        """
        request, stores = event.request, list(self.state.stores.values())
        tokens = [find_token(store, event.user, event.at, event.instance) for store in stores]
        if request.context is None and not (all(tokens) and all(old is not None and old.recorded for old in before)):
            complete = self.reader.complete(event)
            if complete is not None:
                event, request = complete, complete.request
        if request.context is None and not (all(tokens) and all(old is not None and old.recorded for old in before)):
            do = "send its context, or the value of at from its response"
            raise RequestError(
                "event", "no event of this user, item and timestamp", "an event that was recorded before", do, 404
            )
        try:
            columns = [
                encode_event_columns(event, *live_store, old, self._steps)
                for live_store, old in zip(self.live_stores, before)
            ]
            encoded = [] if self._tokens is None else self._tokens.encode_all(event, stores, tokens)
        except DataError as error:
            raise to_request_error(error) from None
        now = event.at if self._steps else max(event.feedback.now, event.at)
        updates: list[EventUpdate] = []
        for (live, encoder), own_columns, old in zip(self.live_stores, columns, before):
            row = encoder.look_up_user(request.user)
            updates.append(live.prepare_update(event.user, row, event.at, own_columns, old, now, overwrite=self._steps))
        visible, token_writes = [update.available for update in updates], list[Callable[[], None]]()
        for store, token, token_columns in zip(stores, tokens, encoded):
            assert self._tokens is not None  # it encoded them
            visible_at, write = self._tokens.plan_write(event, store, token, token_columns, now)
            # A token of the log may wait for the visibility delay of its store. The event itself does not.
            if not self.live_stores or token is None or visible_at != token.visible or token.instance != event.instance:
                visible.append(visible_at)
            token_writes += write
        replaced = any(tokens) or any(old is not None and old.recorded for old in before)
        new = self._update_record(event, record, max(visible), now)
        return EventPlan(event, updates, token_writes, new, max(visible), now, replaced)

    def _update_record(self, event: Event, old: RecordedEvent | None, visible: int, now: int) -> RecordedEvent | None:
        """Return the raw values of an event, or None if they did not change."""
        if self.state.recorded is None:
            return None
        request, sent = event.request, event.feedback.values
        new = RecordedEvent(
            request.user, request.item, event.at, event.start, event.sent, visible, now, sent, dict.fromkeys(sent, now)
        ).add(old, overwrites=self._steps)
        return None if new is old else new

    def _find_stored_event(self, event: Event, live: LiveEvents, encoder: RequestEncoder) -> StoredEvent | None:
        request = event.request
        item = encoder.look_up_item(request.item)
        return live.find(event.user, encoder.look_up_user(request.user), event.at, event.instance, item)

    def _build_response(self, plan: EventPlan) -> EventResponse:
        event, fitted = plan.event, self._encoder.fitted
        request = event.request
        return EventResponse(
            request.user,
            request.item,
            format_request_time(fitted, event.at),
            event.instance,
            format_request_time(fitted, plan.visible),
            format_request_time(fitted, plan.now),
            plan.replaced,
            bool(event.feedback.values),
            not self._encoder.look_up_user(request.user),
            not self._encoder.look_up_item(request.item),
            event.ignored,
        )
