"""Reading of events: keys, timestamps and names of columns are validated before anything is encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from longrec.errors import RequestError
from longrec.features.schema import Schema
from longrec.features.token_columns import compute_instance_ids
from longrec.serve import feedback
from longrec.serve.feedback import Feedback, FeedbackReader
from longrec.serve.histories import check_names
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_events import LiveEvents
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import EventRequest, parse_request_time


@dataclass(frozen=True)
class Event:
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


class EventReader:
    """Reader of the events of one service.

    Args:
        encoder: encoder of the requests of the bundle that is served.
        source: encoder of the source model, if there is one.
        encoders: encoders of all other bundles.
        live_stores: stores of live events, each with the encoder of its bundle.
        clock: function that returns milliseconds UTC.

    Attributes:
        context: columns that an event must contain.
        steps: True for a log that counts in steps.
    """

    def __init__(
        self,
        encoder: RequestEncoder,
        source: RequestEncoder | None,
        encoders: Sequence[RequestEncoder],
        live_stores: Sequence[tuple[LiveEvents, RequestEncoder]],
        clock: Callable[[], int],
    ) -> None:
        self._clock, self._time = clock, encoder.fitted.schema.time
        self.steps = self._time is not None and self._time.unit == "step"
        own = [] if source is None else [source]
        self._encoders = list(dict.fromkeys([*own, encoder, *encoders]))
        schemas = [one.fitted.schema for one in self._encoders]
        self._requests = any(schema.request is not None for schema in (schemas[:1] if own else schemas))
        self._feedback = FeedbackReader(schemas)
        self.context = dict.fromkeys(column for one in own for column in [*one.context, *one.candidate_context])
        for live, live_encoder in live_stores:
            schema = live_encoder.fitted.schema
            plain = [
                column
                for name in live.values
                if name not in live.feedback
                for column in _list_required_columns(schema, name)
            ]
            self.context |= dict.fromkeys([*plain, *feedback.list_filter_columns(schema)])

    def read(self, request: EventRequest) -> Event:
        """Decode and validate keys, timestamps and names of an event.

        Raises:
            RequestError: 404 if the item is unknown, 422 for other faults.
        """
        if request.context is None and not self.context:
            request = msgspec.structs.replace(request, context={})  # without columns every call is the whole event
        if request.context is None and not request.feedback:
            do = "send the context of a new event, or feedback on an event that was recorded before"
            raise RequestError("event", "neither context nor feedback", "one of them", do, 422)
        for encoder in self._encoders:
            encoder.look_up_user(request.user)  # a key of the wrong type is refused, a new user is not
            encoder.look_up_item(request.item, request.allow_unknown)
        if request.context is not None and request.context.keys() != self.context.keys():
            check_names("context", request.context, self.context, "write null for a missing value")
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
        event_feedback = self._feedback.read(request.feedback, at, at if self.steps else now)
        return Event(request, user, at, start, int(compute_instance_ids(users, items, times)[0]), event_feedback)


def _list_required_columns(schema: Schema, name: str) -> list[str]:
    """List the columns of a feature that an event must contain.

    Keys of user and item are available to a cross, a lookup and a candidate feature anyway.
    """
    own = schema.columns(name)
    keyed = schema.features[name].composed or schema.side(name) == "candidate"
    return [column for column in own if not (keyed and column in (schema.user, schema.item))]
