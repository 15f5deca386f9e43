"""What a client may ask: typed, strict, and told exactly what is wrong."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from longrec.errors import RequestError, nearest
from longrec.features.schema import TimeColumn
from longrec.features.timestamp import BadTimestamp, grammar, read_iso, read_timestamp

MOST = 100_000
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
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<place>.*)`)?$", re.DOTALL)
_ANSWERED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T.*(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})")
_PLAIN = {
    "int": "whole number",
    "str": "text",
    "float": "number",
    "object": "mapping",
    "array": "list",
    "bool": "true or false",
}


def decode(body: bytes) -> RankRequest:
    """A request from JSON.

    Raises:
        RequestError: 400 for what is no JSON (NaN and Infinity are none), 422 for another form.
    """
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise form_fault(error, FIELDS) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise json_fault(error) from None
    count = len(request.candidates)
    if not count:
        raise RequestError("candidates", "an empty list", f"1 to {MOST:,} items", status=422)
    if count > MOST:
        raise RequestError("candidates", f"{count:,} items", f"at most {MOST:,}", "ask in several requests", 413)
    if len(set(request.candidates)) != count:
        raise _twice(request.candidates)
    return request


def decode_event(body: bytes) -> EventRequest:
    """An event from JSON.

    Raises:
        RequestError: 400 for what is no JSON, 422 for another form.
    """
    try:
        request = _EVENTS.decode(body)
    except msgspec.ValidationError as error:
        raise form_fault(error, EventRequest.__struct_fields__) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise json_fault(error) from None
    if request.context is None and not request.feedback:
        do = "send the context of a new event; for one that was told before, what became known"
        raise RequestError("event", "neither context nor feedback", "one of them", do, 422)
    return request


def json_fault(error: Exception) -> RequestError:
    """A body that is no JSON."""
    found = "nested too deep" if isinstance(error, RecursionError) else str(error)
    return RequestError("body", f"not JSON ({found})", "one JSON object (NaN and Infinity are not JSON)")


def form_fault(error: msgspec.ValidationError, fields: tuple[str, ...]) -> RequestError:
    """JSON of another form, in our words."""
    match = _PLACE.match(str(error))
    assert match is not None  # the pattern takes any text
    what, place = match["what"], match["place"] or "body"
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        near = nearest(found[1], fields)
        do = f"did you mean {near!r}?" if near else ""
        return RequestError(place, f"the unknown key {found[1]!r}", ", ".join(fields), do, 422)
    if found := re.fullmatch(r"Object missing required field `(.*)`", what):
        return RequestError(found[1] if place == "body" else f"{place}.{found[1]}", "nothing", "a value", status=422)
    if found := re.fullmatch(r"Expected `(.*)`, got `(.*)`", what):
        wanted = [_PLAIN.get(word, word) for word in found[1].split(" | ")]
        return RequestError(place, f"a value of type {_PLAIN.get(found[2], found[2])}", " or ".join(wanted), status=422)
    if re.fullmatch(r"Expected `int` (<=|>=) -?\d+", what):
        return RequestError(
            place, "an integer of more than 64 bits", "signed 64-bit integers or text", "write it as text", 422
        )
    return RequestError(place, what[:1].lower() + what[1:], status=422)


def _twice(candidates: list[Key]) -> RequestError:
    first: dict[Key, int] = {}
    for place, key in enumerate(candidates):
        if key in first:
            return RequestError(
                "candidates", f"{key!r} twice, at {first[key]} and {place}", "each item once", "drop the copies", 422
            )
        first[key] = place
    raise AssertionError("no copy")


def moment(at: int | float | str | None, time: TimeColumn | None, now: int, where: str = "at") -> int:
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
        if isinstance(at, str) and time.format is not None and _ANSWERED.fullmatch(at):
            told = read_iso(at)
            if told is not None and grammar(time.format).read(at) is None:
                return told
        return read_timestamp(at, time.unit, time.format)
    except BadTimestamp as bad:
        raise RequestError(where, bad.found, bad.expected, bad.do, 422) from None
