"""Request for the events that a score reads of a user, as strict JSON."""

from __future__ import annotations

import msgspec

from longrec.errors import RequestError
from longrec.serve.request_json import Key, RecentEventRequest, decode_json

HISTORY = "/history"
"""Route of the request."""
MAX_LAST = 1_000
"""Largest number of events per history in one response."""


class HistoryRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Request for the events that a score reads of a user.

    Attributes:
        user, at, recent: as in ``RankRequest``.
        last: number of events per history in the response, the newest ones.
        allow_unknown: accept a user, or items of recent events, that the log does not contain.
    """

    user: Key
    at: int | float | str | None = None
    recent: list[RecentEventRequest] = []
    last: int = 50
    allow_unknown: bool = False


_DECODER = msgspec.json.Decoder(HistoryRequest)


def decode_history_request(body: bytes) -> HistoryRequest:
    """Decode a request for the events of a user from JSON.

    Raises:
        RequestError: 400 if the body is not JSON, 422 if a field is invalid.
    """
    request = decode_json(_DECODER, body, HistoryRequest.__struct_fields__)
    if not 1 <= request.last <= MAX_LAST:
        raise RequestError("last", f"{request.last:,} events", f"1 to {MAX_LAST:,}", "ask for fewer events", 422)
    return request
