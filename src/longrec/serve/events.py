"""Events: an impression becomes a token, durably, before it is acknowledged; the next ranking of its user reads it.

An event can be read from the moment it was first told, never earlier. The same event told again changes no answer for
an earlier moment: feedback that was left out is added, known from when it was told, and other values than before make
a further version of the event, which replaces it from then on. In a log that counts steps there is no clock: an event
can be read from its own step, and what is told again replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import DataError, RequestError
from longrec.export.raw_columns import build_raw_column, format_request_time
from longrec.features.fitted import FittedSchema
from longrec.features.schema import Schema
from longrec.features.tokens import instance_ids
from longrec.features.view import NEVER
from longrec.serve import feedback
from longrec.serve.feedback import Feedback, FeedbackReader
from longrec.serve.histories import check_names, to_request_error
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_events import LiveEvents, StoredEvent
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import EventRequest, Key, RankRequest, parse_request_time
from longrec.serve.state import ServiceState
from longrec.store.amend import Token, find_token
from longrec.store.token_store import TokenStore


@dataclass(frozen=True)
class EventResponse:
    """What became of an event.

    Attributes:
        at: its moment, as a request names it: tell feedback of it with the same.
        instance: the name of its token.
        visible: from when on it can be read as it was last told, as a request names it: what a log stores as
            ``available_at``.
        told: when it was told: from then on its feedback is known, unless the schema says later.
        replaced: whether it was told before.
        known: whether any feedback came with it.
        new_user, new_item: whether the log of the ranker does not know them.
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
        """The answer of ``/events``."""
        return orjson.dumps(
            {
                "user": self.user,
                "item": self.item,
                "at": self.at,
                "instance": str(self.instance),  # JSON readers of some languages hold 53 bits
                "visible": self.visible,
                "told": self.recorded_at,
                "replaced": self.replaced,
                "unknown": {"user": self.new_user, "item": self.new_item},
            }
        )


@dataclass(frozen=True)
class PendingEvent:
    """An event that was found good and is not kept yet."""

    writes: Sequence[Callable[[], None]]
    response: EventResponse

    def commit(self) -> EventResponse:
        """Make it part of the past, for good: this waits for the disk, or the server, and may run beside rankings.

        Raises:
            StoreError: a store that does not answer; the event may be kept in part, and telling it again mends that.
        """
        for write in self.writes:
            write()
        return self.response


@dataclass(frozen=True)
class _Event:
    """One event, read and looked up.

    Attributes:
        user: key number.
        at: its moment; ``start``: that of its request.
        instance: the name of its token.
        given: its feedback.
    """

    request: EventRequest
    user: int
    at: int
    start: int
    instance: int
    feedback: Feedback


class EventRecorder:
    """Takes events for one bundle, one at a time: each is kept before the next is prepared.

    Args:
        encoder: of the bundle.
        clock: milliseconds UTC.
    """

    def __init__(self, state: ServiceState, encoder: RequestEncoder, clock: Callable[[], int]) -> None:
        self.state, self.source, self._encoder, self._clock = state, state.source, encoder, clock
        fitted, own = encoder.fitted, self.source.encoder.fitted
        self._time = fitted.schema.time
        self._steps = self._time is not None and self._time.unit == "step"
        self._requests = own.schema.request is not None
        self._feedback = FeedbackReader([own.schema, fitted.schema])
        self._live_stores: list[tuple[LiveEvents, RequestEncoder]] = []
        if state.live is not None:
            self._live_stores.append((state.live, encoder))
        if self.source.live is not None:
            self._live_stores.append((self.source.live, self.source.encoder))
        self._context = dict.fromkeys([*self.source.encoder.context, *self.source.encoder.candidate_context])
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
        """Everything about an event except keeping it.

        Raises:
            RequestError: an event that cannot be taken; nothing is kept then.
        """
        event = self._read(request)
        stores = list(self.state.stores.values())
        tokens = [find_token(store, event.user, event.at, event.instance) for store in stores]
        before = [self._find_stored_event(event, *live_store) for live_store in self._live_stores]
        if request.context is None and not (all(tokens) and all(old is not None and old.recorded for old in before)):
            do = "send its context, or the at that it was answered with"
            raise RequestError("event", "no event of this user, item and moment", "one told before", do, 404)
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
        for index, (store, token, (codes, available_at)) in enumerate(zip(stores, tokens, sides)):
            vector = None if vectors is None else vectors[index]
            since, write = self._plan_token_write(event, store, token, vector, codes, available_at, now)
            # A token of the log may wait for the lag of its store; the event itself does not.
            if not self._live_stores or token is None or since != token.visible or token.instance != event.instance:
                visible.append(since)
            writes += write
        replaced = any(token is not None for token in tokens)
        return PendingEvent(writes, self._build_response(event, max(visible), now, replaced))

    def _plan_token_write(
        self,
        event: _Event,
        store: TokenStore,
        token: Token | None,
        vectors: NDArray[Any] | None,
        codes: Mapping[str, int],
        available_at: Mapping[str, int],
        now: int,
    ) -> tuple[int, list[Callable[[], None]]]:
        """From when on a token can be read as it is told now, and what is to be written for that."""
        if token is None or (self._steps and vectors is not None):
            assert vectors is not None
            since = now if token is None else token.visible
            return since, [partial(self._append, event, store, vectors, since, event.instance, codes, available_at)]
        since = max(now, token.visible)
        if vectors is not None and not token.holds(vectors):
            return since, [partial(self._append, event, store, vectors, since, token.instance + 1, codes, available_at)]
        if not self._steps and any(
            token.available_at[name] != NEVER and token.sides[name] != codes[name] for name in codes
        ):
            return since, [partial(token.amend, codes, available_at, since)]
        changed = codes != token.sides or available_at != token.available_at
        return token.visible, [partial(token.amend, codes, available_at)] if changed else []

    def _find_stored_event(self, event: _Event, live: LiveEvents, encoder: RequestEncoder) -> StoredEvent | None:
        request = event.request
        item = int(encoder.look_up_items([request.item], True, "item")[1][0])
        return live.find(event.user, encoder.look_up_user(request.user), event.at, event.instance, item)

    def _read(self, request: EventRequest) -> _Event:
        """Keys, moments and names of an event, held to what there is.

        Raises:
            RequestError: 404 an unknown item, 422 other faults.
        """
        source = self.source.encoder
        for encoder in (source, self._encoder):
            encoder.look_up_user(request.user)  # a key of the wrong type is refused; somebody new is not
            encoder.look_up_items([request.item], request.allow_unknown, "item")
        if request.context is not None and request.context.keys() != self._context.keys():
            check_names("context", set(request.context), self._context, "write null where a value is missing")
        if request.at is None and request.context is None:
            do = "send the at that the event was answered with"
            raise RequestError("at", "nothing", "the moment of an event told before", do, 422)
        now = self._clock()
        at = parse_request_time(request.at, self._time, now)
        start = at
        if request.request is not None:
            if not self._requests:
                problem = "the moment of a request"
                raise RequestError("request", problem, "nothing: the log has no requests", "leave it out", 422)
            start = parse_request_time(request.request, self._time, now, "request")
            if start > at:
                raise RequestError("request", "a moment after the event", "one at or before it", status=422)
        user, item = key_number(request.user), key_number(request.item)
        users, items, times = (np.array([number], np.int64) for number in (user, item, at))
        event_feedback = self._feedback.read(request.feedback, at, at if self._steps else now)
        return _Event(request, user, at, start, int(instance_ids(users, items, times)[0]), event_feedback)

    def _encode_token(self, event: _Event, store: TokenStore) -> NDArray[Any]:
        """What a store takes of an event, ``[1, W]``."""
        request = event.request
        assert request.context is not None
        context = {column: request.context[column] for column in self.source.encoder.context}
        own: dict[str, list[Any] | None] = {
            column: [request.context[column]] for column in self.source.encoder.candidate_context
        }
        rank_request = RankRequest(
            request.user, [request.item], context=context, candidate_context=own, allow_unknown=True
        )
        return self.source.encode(rank_request, event.start, store.info.codec)

    def _encode_sides(
        self, event: _Event, store: TokenStore, token: Token | None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Ids of the side columns and when they became known; what was known before stays."""
        codes, available_at = {}, {}
        for name, ids in store.info.sides.items():
            encoded = feedback.encode_side(self.source.encoder.fitted, name, event.feedback)
            old = (ids, NEVER) if token is None else (token.sides[name], token.available_at[name])
            unchanged = encoded is not None and encoded[0] == old[0] and old[1] != NEVER and not self._steps
            codes[name], available_at[name] = old if encoded is None or unchanged else encoded
        return codes, available_at

    def _append(
        self,
        event: _Event,
        store: TokenStore,
        vectors: NDArray[Any],
        visible: int,
        instance: int,
        codes: Mapping[str, int],
        available_at: Mapping[str, int],
    ) -> None:
        store.append(
            np.array([event.user], np.int64),
            np.array([event.at], np.int64),
            instance=np.array([instance], np.int64),
            visible=np.array([visible], np.int64),
            version=np.array([self.source.facts.version], np.int64),
            vectors=vectors,
            sides={name: np.array([code], np.int64) for name, code in codes.items()},
            available_at={name: np.array([since], np.int64) for name, since in available_at.items()},
        )

    def _encode_columns(
        self, event: _Event, live: LiveEvents, encoder: RequestEncoder, old: StoredEvent | None
    ) -> dict[str, int]:
        """The columns of an event in a store of live events; what was told before and is not told now, or told alike,
        stays.
        """
        fitted, request = encoder.fitted, event.request
        schema, context = fitted.schema, request.context
        columns = {"instance": event.instance, "item": int(encoder.look_up_items([request.item], True, "item")[1][0])}
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
                columns[name] = _encode_feature(
                    fitted, name, {schema.user: request.user, schema.item: request.item, **context}
                )
            else:
                assert old is not None
                columns[name] = old[name]
        values = {schema.user: request.user, schema.item: request.item, **(context or {}), **event.feedback.values}
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
            bool(self._encoder.look_up_items([request.item], True, "item")[2]),
        )


def _list_required_columns(schema: Schema, name: str) -> list[str]:
    """Columns of a feature that an event must bring: a cross or a lookup, and a candidate's column, know the keys."""
    own = schema.columns(name)
    keyed = schema.features[name].composed or schema.table(name) == "candidate"
    return [column for column in own if not (keyed and column in (schema.user, schema.item))]


def _encode_feature(fitted: FittedSchema, name: str, values: Mapping[str, Any]) -> int:
    """The id of a feature of one event, from raw values by column."""

    def locate(column: str) -> str:
        return f"context.{column}"

    columns = {column: build_raw_column([values[column]], locate(column)) for column in fitted.schema.columns(name)}
    return int(fitted.encode_row(name, columns, locate)[0])  # type: ignore[index]  # a history takes no lists of a row
