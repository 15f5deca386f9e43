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
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import DataError, RequestError
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import NEVER
from longrec.features.raw_columns import build_raw_column, format_request_time
from longrec.features.schema import Schema
from longrec.features.token_columns import compute_instance_ids
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.serve import feedback
from longrec.serve.feedback import Feedback, FeedbackReader
from longrec.serve.histories import check_names, to_request_error
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_events import LiveEvents, StoredEvent
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import EventRequest, Key, parse_request_time
from longrec.serve.state import ServiceState
from longrec.store.amend import Token, find_token
from longrec.store.token_store import TokenStore


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
            }
        )


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


@dataclass(frozen=True)
class _Event:
    """One decoded event.

    Attributes:
        user: key number.
        at: timestamp of the event.
        start: timestamp of its request.
        instance: name of its token.
        feedback: its feedback.
    """

    request: EventRequest
    user: int
    at: int
    start: int
    instance: int
    feedback: Feedback


class EventRecorder:
    """Records events for one bundle, one at a time: each is written before the next is prepared.

    Args:
        state: stores to write to.
        encoder: encoder of the requests of the bundle that is served.
        encoders: encoders of all bundles, by their digests.
        clock: function that returns milliseconds UTC.
    """

    def __init__(
        self,
        state: ServiceState,
        encoder: RequestEncoder,
        encoders: Mapping[str, RequestEncoder],
        clock: Callable[[], int],
    ) -> None:
        self.state, self.source, self._encoder, self._clock = state, state.source, encoder, clock
        self._time = encoder.fitted.schema.time
        self._steps = self._time is not None and self._time.unit == "step"
        own = [] if self.source is None else [self.source.encoder]
        self._encoders = list(dict.fromkeys([*own, encoder, *encoders.values()]))
        schemas = [one.fitted.schema for one in self._encoders]
        self._requests = any(schema.request is not None for schema in (schemas[:1] if own else schemas))
        self._feedback = FeedbackReader(schemas)
        self._live_stores = [(live, encoders[digest]) for digest, live in state.live.items()]
        if self.source is not None and self.source.live is not None:
            self._live_stores.append((self.source.live, self.source.encoder))
        self._context = dict.fromkeys(column for one in own for column in [*one.context, *one.candidate_context])
        for live, live_encoder in self._live_stores:
            schema = live_encoder.fitted.schema
            plain = [
                column
                for name in live.values
                if name not in live.feedback
                for column in _list_required_columns(schema, name)
            ]
            self._context |= dict.fromkeys([*plain, *feedback.list_filter_columns(schema)])

    def prepare(self, request: EventRequest) -> PendingEvent:
        """Validate and encode an event without writing it.

        Raises:
            RequestError: if the event is invalid. Nothing is written then.
        """
        event = self._read(request)
        request = event.request
        stores = list(self.state.stores.values())
        tokens = [find_token(store, event.user, event.at, event.instance) for store in stores]
        before = [self._find_stored_event(event, *live_store) for live_store in self._live_stores]
        if request.context is None and not (all(tokens) and all(old is not None and old.recorded for old in before)):
            do = "send its context, or the value of at from its response"
            raise RequestError(
                "event", "no event of this user, item and timestamp", "an event that was recorded before", do, 404
            )
        try:
            sides = [self._encode_sides(event, store, token) for store, token in zip(stores, tokens)]
            columns = [
                self._encode_columns(event, *live_store, old) for live_store, old in zip(self._live_stores, before)
            ]
            vectors = None if request.context is None else [self._encode_token(event, store) for store in stores]
        except DataError as error:
            raise to_request_error(error) from None
        now = event.at if self._steps else max(event.feedback.now, event.at)
        writes: list[Callable[[], None]] = []
        visible: list[int] = []
        for (live, encoder), own_columns, old in zip(self._live_stores, columns, before):
            row = encoder.look_up_user(request.user)
            update = live.prepare_update(event.user, row, event.at, own_columns, old, now, overwrite=self._steps)
            visible.append(update.available)
            writes += update.writes
        for index, (store, token, (side_ids, available_at)) in enumerate(zip(stores, tokens, sides)):
            vector = None if vectors is None else vectors[index]
            visible_at, write = self._plan_token_write(event, store, token, vector, side_ids, available_at, now)
            # A token of the log may wait for the visibility delay of its store. The event itself does not.
            if (
                not self._live_stores
                or token is None
                or visible_at != token.visible
                or token.instance != event.instance
            ):
                visible.append(visible_at)
            writes += write
        replaced = any(tokens) or any(old is not None and old.recorded for old in before)
        return PendingEvent(writes, self._build_response(event, max(visible), now, replaced))

    def _plan_token_write(
        self,
        event: _Event,
        store: TokenStore,
        token: Token | None,
        vectors: NDArray[Any] | None,
        side_ids: Mapping[str, int],
        available_at: Mapping[str, int],
        now: int,
    ) -> tuple[int, list[Callable[[], None]]]:
        """Return the time from which this revision of a token is visible, and the functions that write it.

        Args:
            token: the recorded token, or None.
            vectors: its new vector ``[1, W]``, or None if the call has no context.
            side_ids, available_at: id and availability time of each side column.
            now: time of recording.
        """
        if token is None or (self._steps and vectors is not None):
            assert vectors is not None
            visible_at = now if token is None else token.visible
            return visible_at, [
                partial(self._append, event, store, vectors, visible_at, event.instance, side_ids, available_at)
            ]
        visible_at = max(now, token.visible)
        if vectors is not None and not token.holds(vectors):
            return visible_at, [
                partial(self._append, event, store, vectors, visible_at, token.instance + 1, side_ids, available_at)
            ]
        if not self._steps and any(
            token.available_at[name] != NEVER and token.sides[name] != side_ids[name] for name in side_ids
        ):
            return visible_at, [partial(token.amend, side_ids, available_at, visible_at)]
        changed = side_ids != token.sides or available_at != token.available_at
        return token.visible, [partial(token.amend, side_ids, available_at)] if changed else []

    def _find_stored_event(self, event: _Event, live: LiveEvents, encoder: RequestEncoder) -> StoredEvent | None:
        request = event.request
        item = encoder.look_up_item(request.item)
        return live.find(event.user, encoder.look_up_user(request.user), event.at, event.instance, item)

    def _read(self, request: EventRequest) -> _Event:
        """Decode and validate keys, timestamps and names of an event.

        Raises:
            RequestError: 404 if the item is unknown, 422 for other faults.
        """
        if request.context is None and not self._context:
            request = msgspec.structs.replace(request, context={})  # without columns every call is the whole event
        if request.context is None and not request.feedback:
            do = "send the context of a new event, or feedback on an event that was recorded before"
            raise RequestError("event", "neither context nor feedback", "one of them", do, 422)
        for encoder in self._encoders:
            encoder.look_up_user(request.user)  # a key of the wrong type is refused, a new user is not
            encoder.look_up_item(request.item, request.allow_unknown)
        if request.context is not None and request.context.keys() != self._context.keys():
            check_names("context", request.context, self._context, "write null for a missing value")
        if request.at is None and request.context is None:
            do = "send the value of at from the response to the event"
            raise RequestError("at", "nothing", "the timestamp of an event that was recorded before", do, 422)
        now = self._clock()
        at = parse_request_time(request.at, self._time, now)
        start = at
        if request.request is not None:
            if not self._requests:
                problem = "the timestamp of a request"
                raise RequestError("request", problem, "nothing: the log has no requests", "leave it out", 422)
            start = parse_request_time(request.request, self._time, now, "request")
            if start > at:
                raise RequestError("request", "a timestamp after the event", "one at or before it", status=422)
        user, item = key_number(request.user), key_number(request.item)
        users, items, times = (np.array([number], np.int64) for number in (user, item, at))
        event_feedback = self._feedback.read(request.feedback, at, at if self._steps else now)
        return _Event(request, user, at, start, int(compute_instance_ids(users, items, times)[0]), event_feedback)

    def _encode_token(self, event: _Event, store: TokenStore) -> NDArray[Any]:
        """Encode an event as a token of a store, ``[1, W]``."""
        request, source = event.request, self.source
        assert request.context is not None
        assert source is not None
        context = {column: request.context[column] for column in source.encoder.context}
        own: dict[str, list[Any] | None] = {
            column: [request.context[column]] for column in source.encoder.candidate_context
        }
        query = Query(request.user, event.start, context, allow_unknown=True)
        return source.encode(query, Candidates.of([request.item], "event", own), store.info.codec)

    def _encode_sides(
        self, event: _Event, store: TokenStore, token: Token | None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Return ids and availability times of the side columns. Feedback that was available before stays."""
        assert self.source is not None
        side_ids, available_at = {}, {}
        for name, ids in store.info.sides.items():
            encoded = feedback.encode_side(self.source.encoder.fitted, name, event.feedback)
            old = (ids, NEVER) if token is None else (token.sides[name], token.available_at[name])
            unchanged = encoded is not None and encoded[0] == old[0] and old[1] != NEVER and not self._steps
            side_ids[name], available_at[name] = old if encoded is None or unchanged else encoded
        return side_ids, available_at

    def _append(
        self,
        event: _Event,
        store: TokenStore,
        vectors: NDArray[Any],
        visible: int,
        instance: int,
        side_ids: Mapping[str, int],
        available_at: Mapping[str, int],
    ) -> None:
        assert self.source is not None
        store.append(
            np.array([event.user], np.int64),
            np.array([event.at], np.int64),
            instance=np.array([instance], np.int64),
            visible=np.array([visible], np.int64),
            version=np.array([self.source.facts.version], np.int64),
            vectors=vectors,
            sides={name: np.array([code], np.int64) for name, code in side_ids.items()},
            available_at={name: np.array([since], np.int64) for name, since in available_at.items()},
        )

    def _encode_columns(
        self, event: _Event, live: LiveEvents, encoder: RequestEncoder, old: StoredEvent | None
    ) -> dict[str, int]:
        """Return the columns of an event in a store of live events.

        Values that are missing now, or that are unchanged, stay as recorded before.
        """
        fitted, request = encoder.fitted, event.request
        schema, context = fitted.schema, request.context
        columns = {"instance": event.instance, "item": encoder.look_up_item(request.item)}
        for name in live.values:
            if name in live.feedback:
                code, available_at = feedback.encode_feature(fitted, name, event.feedback)
                if old is not None:
                    previous = old[name], old[f"known.{name}"]
                    unchanged = code == previous[0] and previous[1] != NEVER and not self._steps
                    if unchanged or schema.column(name) not in event.feedback.values:
                        code, available_at = previous
                columns |= {name: code, f"known.{name}": available_at}
            elif context is not None:
                columns[name] = _encode_feature(fitted, name, {**_list_keys(schema, request), **context})
            else:
                assert old is not None
                columns[name] = old[name]
        values = {**_list_keys(schema, request), **(context or {}), **event.feedback.values}
        for name, conditions in live.filters.items():
            bits = 0 if old is None else old[f"met.{name}"]
            columns[f"met.{name}"] = feedback.evaluate_conditions(schema, name, conditions, values, bits)
        return columns

    def _build_response(self, event: _Event, visible: int, now: int, replaced: bool) -> EventResponse:
        request, fitted = event.request, self._encoder.fitted
        return EventResponse(
            request.user,
            request.item,
            format_request_time(fitted, event.at),
            event.instance,
            format_request_time(fitted, visible),
            format_request_time(fitted, now),
            replaced,
            bool(event.feedback.values),
            not self._encoder.look_up_user(request.user),
            not self._encoder.look_up_item(request.item),
        )


def _list_required_columns(schema: Schema, name: str) -> list[str]:
    """List the columns of a feature that an event must contain.

    Keys of user and item are available to a cross, a lookup and a candidate feature anyway.
    """
    own = schema.columns(name)
    keyed = schema.features[name].composed or schema.side(name) == "candidate"
    return [column for column in own if not (keyed and column in (schema.user, schema.item))]


def _encode_feature(fitted: FittedSchema, name: str, values: Mapping[str, Any]) -> int:
    """Encode a feature of one event from raw values by column."""

    def locate(column: str) -> str:
        return f"context.{column}"

    columns = {column: build_raw_column([values[column]], locate(column)) for column in fitted.schema.columns(name)}
    return int(fitted.encode_row(name, columns, locate)[0])  # type: ignore[index]  # a history has no lists of a row


def _list_keys(schema: Schema, request: EventRequest) -> dict[str, Any]:
    """Return the keys of an event by their columns."""
    keys = {schema.user: request.user, schema.item: request.item}
    return {column: key for column, key in keys.items() if column is not None}
