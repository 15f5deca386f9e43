"""Reading of events: keys, timestamps and names of columns are validated before anything is encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from longrec.errors import RequestError
from longrec.features.token_columns import compute_instance_id
from longrec.serve.event_context import EventContext
from longrec.serve.feedback import Feedback, FeedbackReader
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_catalog import LiveCatalog
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import EventRequest
from longrec.serve.request_time import parse_request_time


@dataclass(frozen=True)
class Event:
    """One decoded event.

    Attributes:
        user: key number.
        at: timestamp of the event.
        start: timestamp of its request.
        instance: name of its token.
        feedback: its feedback.
        ignored: columns of its context that are not used.
        sent: all columns of its context, those that are not used included.
    """

    request: EventRequest
    user: int
    at: int
    start: int
    instance: int
    feedback: Feedback
    ignored: tuple[str, ...] = ()
    sent: Mapping[str, Any] = field(default_factory=dict)


class EventReader:
    """Reader of the events of one service.

    Args:
        encoder: encoder of the requests of the bundle that is served.
        source: encoder of the source model, if there is one.
        encoders: encoders of all other bundles.
        readers: encoders of the bundles whose histories read the events.
        catalogs: catalogs of the bundles, each with the encoder of its bundle.
        clock: function that returns milliseconds UTC.

    Attributes:
        context: columns of an event.
        steps: True for a log that counts in steps.
    """

    def __init__(
        self,
        encoder: RequestEncoder,
        source: RequestEncoder | None,
        encoders: Sequence[RequestEncoder],
        readers: Sequence[RequestEncoder],
        catalogs: Sequence[tuple[RequestEncoder, LiveCatalog]],
        clock: Callable[[], int],
    ) -> None:
        self._clock, self._time = clock, encoder.fitted.schema.time
        self.steps = self._time is not None and self._time.unit == "step"
        own = [] if source is None else [source]
        self._encoders = list(dict.fromkeys([*own, encoder, *encoders]))
        schemas = [one.fitted.schema for one in self._encoders]
        self._requests = any(schema.request is not None for schema in (schemas[:1] if own else schemas))
        self._feedback = FeedbackReader(schemas)
        self.context = EventContext(source, self._encoders, readers, catalogs)

    def read(self, request: EventRequest, sent_at: int | None = None) -> Event:
        """Decode and validate keys, timestamps and names of an event.

        Args:
            sent_at: timestamp of an event without one, in milliseconds UTC. Default now.

        Raises:
            RequestError: 404 if the item is unknown, 422 for other faults.
        """
        for encoder in self._encoders:
            encoder.look_up_user(request.user)  # a key of the wrong type is refused, a new user is not
            encoder.look_up_item(request.item, request.allow_unknown)
        context, sent = request.context, request.context or {}
        ignored: list[str] = []
        if context is not None:
            context, ignored = self.context.complete(context, request.item)
        elif not self.context.required or request.at is None or not request.feedback:
            context = self.context.complete_from_item(request.item)  # such a call is the whole event
        if context is None and not request.feedback:
            do = "send the context of a new event, or feedback on an event that was recorded before"
            raise RequestError("event", "neither context nor feedback", "one of them", do, 422)
        if request.at is None and context is None:
            do = "send the value of at from the response to the event"
            raise RequestError("at", "nothing", "the timestamp of an event that was recorded before", do, 422)
        request = msgspec.structs.replace(request, context=context)
        now = self._clock()
        at = parse_request_time(request.at, self._time, now if sent_at is None else sent_at)
        start = at
        if request.request is not None:
            if not self._requests:
                problem = "the timestamp of a request"
                raise RequestError("request", problem, "nothing: the log has no requests", "leave it out", 422)
            start = parse_request_time(request.request, self._time, now, "request")
            if start > at:
                raise RequestError("request", "a timestamp after the event", "one at or before it", status=422)
        user, item = key_number(request.user), key_number(request.item)
        event_feedback = self._feedback.read(request.feedback, at, at if self.steps else now)
        instance = compute_instance_id(user, item, at)
        return Event(request, user, at, start, instance, event_feedback, tuple(ignored), {**sent, **(context or {})})

    def complete(self, event: Event) -> Event | None:
        """Return an event without context with the columns of its item, or None if they are not in the catalog."""
        context = self.context.complete_from_item(event.request.item)
        if context is None:
            return None
        return replace(event, request=msgspec.structs.replace(event.request, context=context), sent=context)
