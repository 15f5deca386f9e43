"""What a client may ask: typed, strict, and told exactly what is wrong."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from longrec.errors import RequestError, nearest
from longrec.features.schema import TimeColumn
from longrec.features.timestamp import BadTimestamp, grammar, read_iso, read_timestamp

MAX_CANDIDATES = 100_000
"""Candidates of one request, at most."""

_Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Key = _Whole | str


class RankRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Rank candidates for a user.

    Attributes:
        user: key of the user, as the log has it.
        candidates: keys of the items to rank.
        at: the moment to rank for, ISO 8601 text or a number in the unit of the log's time column; now when null.
            Nothing that happened at this moment or later is looked at.
        context: raw values of the impression's own event columns; null where one is missing.
        candidate_context: for schemas with columns of the candidate, ``{column: [a raw value a candidate]}``; null for
            a value that is missing, or in place of the list where all are.
        history: for schemas with pre-joined rows, ``{history: {feature: [values, oldest first]}}``.
        allow_unknown: rank for a user, or items, that the log does not know.
    """

    user: Key
    candidates: list[Key]
    at: int | float | str | None = None
    context: dict[str, Any] = {}
    candidate_context: dict[str, list[Any] | None] = {}
    history: dict[str, dict[str, list[Any]]] | None = None
    allow_unknown: bool = False


class EventRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Tell of an impression, or of what became known of one.

    Attributes:
        user, item: their keys, as the log has them.
        at: the moment of the event, as in ``RankRequest``; now when null.
        context: raw values of the impression's own event columns, and of those of its candidate; null where one is
            missing. It may be left out for an event that was told before: what was made of it then stays, and the
            feedback is added.
        feedback: raw values of what the user gave, by column (or ``label``, or a feature): what stands here is known
            from now on, null included; what is left out is not known yet.
        request: in a log with requests, the moment of the request that showed the item; ``at`` when null.
        allow_unknown: take an item that the log does not know.
    """

    user: Key
    item: Key
    at: int | float | str | None = None
    context: dict[str, Any] | None = None
    feedback: dict[str, Any] = {}
    request: int | float | str | None = None
    allow_unknown: bool = False


FIELDS = tuple(RankRequest.__struct_fields__)
_DECODER, _EVENTS = msgspec.json.Decoder(RankRequest), msgspec.json.Decoder(EventRequest)
_ERROR_PATTERN = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_RESPONSE_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T.*(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})")
_TYPE_NAMES = {
    "int": "whole number",
    "str": "text",
    "float": "number",
    "object": "mapping",
    "array": "list",
    "bool": "true or false",
}


def decode_request(body: bytes) -> RankRequest:
    """A request from JSON.

    Raises:
        RequestError: 400 for what is no JSON (NaN and Infinity are none), 422 for another form.
    """
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise build_validation_error(error, FIELDS) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise build_json_error(error) from None
    count = len(request.candidates)
    if not count:
        raise RequestError("candidates", "an empty list", f"1 to {MAX_CANDIDATES:,} items", status=422)
    if count > MAX_CANDIDATES:
        raise RequestError(
            "candidates", f"{count:,} items", f"at most {MAX_CANDIDATES:,}", "ask in several requests", 413
        )
    if len(set(request.candidates)) != count:
        raise _build_duplicate_error(request.candidates)
    return request


def decode_event(body: bytes) -> EventRequest:
    """An event from JSON.

    Raises:
        RequestError: 400 for what is no JSON, 422 for another form.
    """
    try:
        request = _EVENTS.decode(body)
    except msgspec.ValidationError as error:
        raise build_validation_error(error, EventRequest.__struct_fields__) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise build_json_error(error) from None
    if request.context is None and not request.feedback:
        do = "send the context of a new event; for one that was told before, what became known"
        raise RequestError("event", "neither context nor feedback", "one of them", do, 422)
    return request


def build_json_error(error: Exception) -> RequestError:
    """A body that is no JSON."""
    message = "nested too deep" if isinstance(error, RecursionError) else str(error)
    return RequestError("body", f"not JSON ({message})", "one JSON object (NaN and Infinity are not JSON)")


def build_validation_error(error: msgspec.ValidationError, fields: tuple[str, ...]) -> RequestError:
    """JSON of another form, in our words."""
    match = _ERROR_PATTERN.match(str(error))
    assert match is not None  # the pattern takes any text
    what, path = match["what"], match["path"] or "body"
    if details := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        near = nearest(details[1], fields)
        do = f"did you mean {near!r}?" if near else ""
        return RequestError(path, f"the unknown key {details[1]!r}", ", ".join(fields), do, 422)
    if details := re.fullmatch(r"Object missing required field `(.*)`", what):
        return RequestError(details[1] if path == "body" else f"{path}.{details[1]}", "nothing", "a value", status=422)
    if details := re.fullmatch(r"Expected `(.*)`, got `(.*)`", what):
        wanted = [_TYPE_NAMES.get(word, word) for word in details[1].split(" | ")]
        return RequestError(
            path, f"a value of type {_TYPE_NAMES.get(details[2], details[2])}", " or ".join(wanted), status=422
        )
    if re.fullmatch(r"Expected `int` (<=|>=) -?\d+", what):
        return RequestError(
            path, "an integer of more than 64 bits", "signed 64-bit integers or text", "write it as text", 422
        )
    return RequestError(path, what[:1].lower() + what[1:], status=422)


def _build_duplicate_error(candidates: list[Key]) -> RequestError:
    first: dict[Key, int] = {}
    for index, key in enumerate(candidates):
        if key in first:
            return RequestError(
                "candidates", f"{key!r} twice, at {first[key]} and {index}", "each item once", "drop the copies", 422
            )
        first[key] = index
    raise AssertionError("no copy")


def parse_request_time(at: int | float | str | None, time: TimeColumn | None, now: int, where: str = "at") -> int:
    """The moment of a request as the log keeps it: milliseconds UTC, or a step.

    Args:
        at: what the log's time column could hold, read by the same rule (``features/timestamp.py``); beside a
            ``time.format`` also ISO 8601 text with ``T`` and an offset, as answers have it.
        time: the schema's time column; without one there is no moment, and 0 is given.
        now: milliseconds UTC, taken when ``at`` is null.
        where: what is named in a message.

    Raises:
        RequestError: a moment that is none, or a number in another unit.
    """
    if time is None:
        if at is not None:
            raise RequestError(where, repr(at), "nothing: the schema has no time column", "leave it out", 422)
        return 0
    if at is None and time.unit != "step":
        return now
    try:
        if at is None:
            raise BadTimestamp("nothing", "a whole number, as the log counts its steps")
        if isinstance(at, str) and time.format is not None and _RESPONSE_TIME.fullmatch(at):
            timestamp = read_iso(at)
            if timestamp is not None and grammar(time.format).read(at) is None:
                return timestamp
        return read_timestamp(at, time.unit, time.format)
    except BadTimestamp as bad:
        raise RequestError(where, bad.found, bad.expected, bad.do, 422) from None
