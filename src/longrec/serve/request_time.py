"""Timestamps of requests and events, read as timestamps of the log."""

from __future__ import annotations

import re
from time import time_ns

from longrec.errors import RequestError, quote
from longrec.features.schema import TimeColumn
from longrec.features.timestamp_grammar import TimestampError, build_grammar, read_iso, read_timestamp

_LONGEST_TIME = 100
"""Characters of the longest text of a timestamp."""
_RESPONSE_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T.*(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})")


def read_clock() -> int:
    """Return the current time in milliseconds UTC."""
    return time_ns() // 1_000_000


def parse_request_time(at: int | float | str | None, time: TimeColumn | None, now: int, where: str = "at") -> int:
    """Parse the time of a request as a timestamp of the log: milliseconds UTC, or a step.

    Args:
        at: a value of the log's time column, read by the rule of ``features/timestamp_grammar.py``. With a
            ``time.format`` also ISO 8601 text with ``T`` and an offset, as in responses.
        time: time column of the schema. Without one there is no timestamp, and 0 is returned.
        now: milliseconds UTC, used if ``at`` is null.
        where: field of the request, for errors.

    Raises:
        RequestError: if the timestamp is invalid, or a number in another unit.
    """
    if time is None:
        if at is not None:
            raise RequestError(where, quote(at), "nothing: the schema has no time column", "leave it out", 422)
        return 0
    if at is None and time.unit != "step":
        return now
    if isinstance(at, str) and len(at) > _LONGEST_TIME:  # the patterns of timestamps read short texts fast
        message = f"a text of {len(at):,} characters"
        raise RequestError(where, message, f"a timestamp of at most {_LONGEST_TIME}", status=422)
    try:
        if at is None:
            raise TimestampError("nothing", "a whole number, as the log counts its steps")
        if isinstance(at, str) and time.format is not None and _RESPONSE_TIME.fullmatch(at):
            timestamp = read_iso(at)
            if timestamp is not None and build_grammar(time.format).read(at) is None:
                return timestamp
        return read_timestamp(at, time.unit, time.format)
    except TimestampError as bad:
        raise RequestError(where, bad.actual, bad.expected, bad.do, 422) from None
