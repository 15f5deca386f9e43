"""Reading of what a request says about its user: recent events, and attributes in place of those of the user table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longrec.errors import RequestError, describe_unknown_names
from longrec.features.schema import TimeColumn
from longrec.pipeline.recent_event import RecentEvent
from longrec.serve.event_context import EventContext
from longrec.serve.feedback import FeedbackReader
from longrec.serve.live_catalog import LiveCatalog
from longrec.serve.live_events import keeps_events
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import RecentEventRequest
from longrec.serve.request_time import parse_request_time

MAX_RECENT = 1_000
"""Largest number of recent events per request."""


class RequestUserReader:
    """Reader of recent events and of attributes of the user, for all bundles of a service.

    Args:
        models: encoders of the bundles, each with its catalog.
        source: encoder of the source model of recorded events, whose columns are accepted too.
        time: time column of the log.
    """

    def __init__(
        self,
        models: Sequence[tuple[RequestEncoder, LiveCatalog]],
        source: RequestEncoder | None,
        time: TimeColumn | None,
    ) -> None:
        encoders = [encoder for encoder, _ in models]
        self._time, self._encoders = time, encoders
        self._readers = [one for one in encoders if one.bundle.store is not None and keeps_events(one.fitted)]
        every = [*encoders, *([] if source is None else [source])]
        self._context = EventContext(None, every, self._readers, models)
        self._feedback = FeedbackReader([one.fitted.schema for one in every])
        self._user_columns = dict.fromkeys(column for one in encoders for column in one.user_columns)

    def read(
        self, recent: Sequence[RecentEventRequest], timestamp: int, allow_unknown: bool
    ) -> tuple[RecentEvent, ...]:
        """Return the recent events of a request, each once: the last of those with the same item and timestamp.

        Args:
            timestamp: timestamp of the request.
            allow_unknown: accept items that the log does not contain.

        Raises:
            RequestError: 404 if an item is unknown, 422 for other faults, such as an event that is not before the
                request.
        """
        if not recent:
            return ()
        if not self._readers:
            problem, do = f"{len(recent):,} events", "leave them out, or send pre-joined histories in history"
            raise RequestError("recent", problem, "none: no bundle here stores the events of its histories", do, 422)
        if len(recent) > MAX_RECENT:
            do = "send the last ones"
            raise RequestError("recent", f"{len(recent):,} events", f"at most {MAX_RECENT:,}", do, 413)
        events = {}
        for number, one in enumerate(recent):
            try:
                event = self._read_event(one, timestamp, allow_unknown)
            except RequestError as error:
                where = f"recent[{number}].{error.where}"
                raise RequestError(where, error.found, error.expected, error.do, error.status) from None
            events[event.item, event.at] = event
        return tuple(events.values())

    def _read_event(self, one: RecentEventRequest, timestamp: int, allow_unknown: bool) -> RecentEvent:
        if one.at is None:
            raise RequestError("at", "nothing", "the timestamp of the event", status=422)
        at = parse_request_time(one.at, self._time, timestamp)
        if at >= timestamp:
            do = "send events that are earlier than the request"
            raise RequestError("at", "a timestamp that is not before the request", "an earlier one", do, 422)
        for encoder in self._encoders:
            encoder.look_up_item(one.item, allow_unknown)
        context, _ = self._context.complete(one.context, one.item)
        return RecentEvent(one.item, at, context, self._feedback.read(one.feedback, at, at).values)

    def check_user_context(self, user_context: Mapping[str, Any]) -> None:
        """Refuse columns that are not those of the user in any bundle.

        Raises:
            RequestError: 422 if a name is unknown.
        """
        if user_context:
            unknown = [name for name in user_context if name not in self._user_columns]
            faults = describe_unknown_names(unknown, self._user_columns)
            if faults:
                expected, do = ", ".join(self._user_columns), "columns of the impression belong to the context"
                raise RequestError("user_context", "; ".join(faults), expected or "no columns of the user", do, 422)
