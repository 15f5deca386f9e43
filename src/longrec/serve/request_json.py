"""Requests of clients as typed, strict JSON, with exact error messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from longrec.errors import RequestError, nearest, quote
from longrec.features.schema import Schema
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.explore import SEED_BITS
from longrec.pipeline.recent_event import RecentEvent
from longrec.pipeline.stage import Query
from longrec.pipeline.trace import Trace

MAX_CANDIDATES = 100_000
"""Largest number of candidates per request."""
MAX_ITEMS = 1_000
"""Largest number of recommended items per request."""
MAX_CHANGES = 10_000
"""Largest number of changed items per request."""
MAX_NAMES = 10_000
"""Largest number of names of fields and columns per request. ``/items`` may have 100 more per item."""
MAX_LISTS = 1_000_000
"""Largest number of lists per request."""

_Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Key = _Whole | str
DecodedT = TypeVar("DecodedT")


class RecentEventRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Event of the user of a request, which is read after the stored events, for this request only.

    Attributes:
        item: key of the item.
        at: timestamp of the event, before that of the request.
        context: raw values of the event columns that histories read, as in an event of ``/events``.
        feedback: raw values by column (or ``label``, or a feature). Missing columns are not yet available.
    """

    item: Key
    at: int | float | str | None = None
    context: dict[str, Any] = {}
    feedback: dict[str, Any] = {}


class RankRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Request to rank candidates for a user.

    Attributes:
        user: key of the user, in the type of the log. None for a schema without a user.
        candidates: keys of the items to rank. For a schema without an item, the numbers 0, 1, ... of the rows to score.
        at: timestamp of the ranking, ISO 8601 text or a number in the unit of the log's time column. Default now. Only
            earlier events are read.
        context: raw values of the impression's own event columns, null for a missing value.
        candidate_context: for schemas with columns of the candidate, ``{column: [one raw value per candidate]}``. Null
            for a missing value, and in place of the list if all values are missing.
        history: for schemas with pre-joined rows, ``{history: {feature: [values, oldest first]}}``.
        recent: events of the user that are read after the stored ones, for this request only. Nothing is stored.
        user_context: raw values of columns of the user, used for this request in place of those of the user table.
        allow_unknown: accept a user, or items, that the log does not contain.
    """

    user: Key | None = None
    candidates: list[Key] = []
    at: int | float | str | None = None
    context: dict[str, Any] = {}
    candidate_context: dict[str, list[Any] | None] = {}
    history: dict[str, dict[str, list[Any]]] | None = None
    recent: list[RecentEventRequest] = []
    user_context: dict[str, Any] = {}
    allow_unknown: bool = False

    def build_query(self, timestamp: int, recent: Sequence[RecentEvent] = ()) -> Query:
        """Return the query of a pipeline, at a timestamp of the log.

        Args:
            recent: the recent events, validated.
        """
        return Query(
            self.user,
            timestamp,
            self.context,
            self.history,
            self.allow_unknown,
            recent=recent,
            user_context=self.user_context,
        )

    def build_candidates(self) -> Candidates:
        """Return the candidates of a pipeline."""
        return Candidates.of(self.candidates, "request", self.candidate_context)


class RecommendRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Request for the items with the highest scores.

    Attributes:
        user, at, context, history, recent, user_context: as in ``RankRequest``.
        k: number of items.
        exclude_seen: leave out the items of the events of the user that the bundle stores. Default true, or
            ``filter.seen`` of a pipeline.
        allow_unknown: accept a user that the log does not contain.
        seed: seed of an earlier answer of a pipeline that explores, whose draws are repeated.
    """

    user: Key
    k: int = 10
    at: int | float | str | None = None
    context: dict[str, Any] = {}
    history: dict[str, dict[str, list[Any]]] | None = None
    recent: list[RecentEventRequest] = []
    user_context: dict[str, Any] = {}
    exclude_seen: bool | None = None
    allow_unknown: bool = False
    seed: int | None = None

    def build_query(
        self,
        timestamp: int,
        exclude_seen: bool = True,
        further_context: frozenset[str] = frozenset(),
        trace: Trace | None = None,
        recent: Sequence[RecentEvent] = (),
    ) -> Query:
        """Return the query of a pipeline, at a timestamp of the log.

        Args:
            exclude_seen: value for a request without one.
            recent: the recent events, validated.
        """
        return Query(
            self.user,
            timestamp,
            self.context,
            self.history,
            self.allow_unknown,
            self.k,
            exclude_seen if self.exclude_seen is None else self.exclude_seen,
            further_context,
            recent,
            self.user_context,
            trace=trace,
            seed=self.seed,
        )


class EventRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Request to record an impression, or feedback on one.

    Attributes:
        user, item: keys, in the type of the log.
        at: timestamp of the event, as in ``RankRequest``. Default now.
        context: raw values of the impression's own event columns and of the columns of its candidate, null for a
            missing value. Columns of the candidate that the item table has may be left out. May be left out for an
            event that was recorded before. Its encoded values then stay, and the feedback is added.
        feedback: raw values by column (or ``label``, or a feature). They are available from now on, null included.
            Missing columns are not yet available.
        request: timestamp of the page view that showed the item, for a log whose rows are grouped by page view. Default
            ``at``.
        allow_unknown: accept an item that the log does not contain.
    """

    user: Key
    item: Key
    at: int | float | str | None = None
    context: dict[str, Any] | None = None
    feedback: dict[str, Any] = {}
    request: int | float | str | None = None
    allow_unknown: bool = False


class ItemsRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Request to add, withdraw and change items of the served bundles.

    Attributes:
        items: raw columns of each item by name, with its key. ``withdrawn: true`` withdraws an item.
    """

    items: list[dict[str, Any]]


FIELDS = tuple(RankRequest.__struct_fields__)
_DECODER, _EVENTS = msgspec.json.Decoder(RankRequest), msgspec.json.Decoder(EventRequest)
_ITEMS = msgspec.json.Decoder(ItemsRequest)
_RECOMMENDATIONS = msgspec.json.Decoder(RecommendRequest)
_PATH_START, _UNKNOWN_FIELD = " - at `$", "Object contains unknown field `"
_PATH, _LONGEST_PATH = re.compile(r"[\w.\[\]]*"), 200
_TYPE_NAMES = {
    "int": "whole number",
    "str": "text",
    "float": "number",
    "object": "mapping",
    "array": "list",
    "bool": "true or false",
}


def decode_request(body: bytes, schema: Schema | None = None) -> RankRequest:
    """Decode a ranking request from JSON.

    Args:
        schema: schema of the bundle, which may have no user or no item. None: it has both.

    Raises:
        RequestError: 400 if the body is not JSON (NaN and Infinity are not JSON), 422 if a field is invalid, 413 if
            there are too many candidates.
    """
    request = decode_json(_DECODER, body, FIELDS)
    has_user, has_item = schema is None or schema.user is not None, schema is None or schema.item is not None
    if has_user != (request.user is not None):
        expected = "a value" if has_user else "no user: the schema has none"
        raise RequestError("user", "nothing" if has_user else quote(request.user), expected, status=422)
    if not has_item:
        return _number_candidates(request)
    count = len(request.candidates)
    if not count:
        raise RequestError("candidates", "an empty list", f"1 to {MAX_CANDIDATES:,} items", status=422)
    if count > MAX_CANDIDATES:
        raise RequestError(
            "candidates", f"{count:,} items", f"at most {MAX_CANDIDATES:,}", "split it into several requests", 413
        )
    if len(set(request.candidates)) != count:
        raise _build_duplicate_error(request.candidates)
    return request


def _number_candidates(request: RankRequest) -> RankRequest:
    """Return a request to score rows without items, with the numbers of the rows as the keys of the candidates."""
    if request.candidates:
        do = "leave them out; each answer has the number of its row"
        raise RequestError("candidates", f"{len(request.candidates):,} items", "none: the schema has no item", do, 422)
    counts = [len(values) for values in request.candidate_context.values() if values is not None]
    count = max(counts, default=1)
    if not 1 <= count <= MAX_CANDIDATES:
        raise RequestError(
            "candidate_context", f"{count:,} rows", f"1 to {MAX_CANDIDATES:,}", "", 413 if count else 422
        )
    return msgspec.structs.replace(request, candidates=list(range(count)))


def decode_recommend_request(body: bytes) -> RecommendRequest:
    """Decode a request for recommendations from JSON.

    Raises:
        RequestError: 400 if the body is not JSON, 422 if a field is invalid.
    """
    request = decode_json(_RECOMMENDATIONS, body, RecommendRequest.__struct_fields__)
    if not 1 <= request.k <= MAX_ITEMS:
        do = "ask for fewer items" if request.k > 0 else "ask for one item or more"
        raise RequestError("k", f"{request.k:,} items", f"1 to {MAX_ITEMS:,}", do, 422)
    if request.seed is not None and not 0 <= request.seed < 2**SEED_BITS:
        do = "send the seed of an earlier answer, or none"
        raise RequestError("seed", str(request.seed), f"0 to 2 ** {SEED_BITS} - 1", do, 422)
    return request


def decode_event(body: bytes) -> EventRequest:
    """Decode an event from JSON.

    Raises:
        RequestError: 400 if the body is not JSON, 422 if a field is invalid.
    """
    return decode_json(_EVENTS, body, EventRequest.__struct_fields__)


def decode_items(body: bytes) -> list[dict[str, Any]]:
    """Decode changes of items from JSON.

    Raises:
        RequestError: 400 if the body is not JSON, 422 if a field is invalid.
    """
    items = decode_json(_ITEMS, body, ItemsRequest.__struct_fields__, names_per_object=100).items
    if len(items) > MAX_CHANGES:
        do = "split it into several requests"
        raise RequestError("items", f"{len(items):,} items", f"at most {MAX_CHANGES:,}", do, 413)
    return items


def decode_json(
    decoder: msgspec.json.Decoder[DecodedT], body: bytes, fields: tuple[str, ...], names_per_object: int = 0
) -> DecodedT:
    """Decode a request from JSON.

    Args:
        fields: its fields, for messages.
        names_per_object: number of names that each of its objects may add to those of the request.

    Raises:
        RequestError: 400 if the body is not JSON, 422 if a field is invalid, 413 if it has too many names or lists.
    """
    if body.count(b":") > MAX_NAMES or body.count(b"[") > MAX_LISTS:
        _check_size(body, names_per_object)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise build_validation_error(error, fields) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise build_json_error(error) from None


def _check_size(body: bytes, names_per_object: int) -> None:
    """Refuse a body of too many names or lists before it is decoded, which costs far more than a refusal may."""
    names, objects, lists = count_marks(body, ":{[")
    limit = MAX_NAMES + names_per_object * objects
    if names > limit:
        message, do = f"{names:,} names of fields and columns", "send the columns that the schema reads"
        raise RequestError("body", message, f"at most {limit:,}", do, 413)
    if lists > MAX_LISTS:
        do = "split it into several requests"
        raise RequestError("body", f"{lists:,} lists", f"at most {MAX_LISTS:,}", do, 413)


def count_marks(body: bytes, marks: str) -> list[int]:
    """Count the marks outside the texts of a JSON document without decoding it.

    >>> count_marks(b'{"a": ":", "b": {"c:": [1]}}', ":{[")
    [3, 2, 1]
    """
    if b"\\" in body:
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    letters = np.frombuffer(body, np.uint8)
    is_outside = ~np.bitwise_xor.accumulate(letters == ord('"'))
    return [int(np.count_nonzero((letters == ord(mark)) & is_outside)) for mark in marks]


def build_json_error(error: Exception) -> RequestError:
    """Return the error of a body that is no JSON."""
    message = "nested too deep" if isinstance(error, RecursionError) else str(error)
    return RequestError("body", f"not JSON ({message})", "one JSON object (NaN and Infinity are not JSON)")


def build_validation_error(error: msgspec.ValidationError, fields: tuple[str, ...]) -> RequestError:
    """Return the error of an invalid field, in the wording of LongRec."""
    what, path = _split_path(str(error))
    if what.startswith(_UNKNOWN_FIELD):
        name = what[len(_UNKNOWN_FIELD) : -1]
        near = nearest(name, fields)
        do = f"did you mean {near!r}?" if near else ""
        return RequestError(path, f"the unknown key {quote(name)}", ", ".join(fields), do, 422)
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
    expected = "a number of 64 bits" if what.endswith("out of range") else "the documented form of a request"
    return RequestError(path, what[:1].lower() + what[1:], expected, status=422)


def _split_path(message: str) -> tuple[str, str]:
    """Split a message into what is wrong and the path of the field. A name in it may be long and hold anything."""
    at = message.rfind(_PATH_START)
    path = message[at + len(_PATH_START) : -1]
    if at < 0 or len(path) > _LONGEST_PATH or not _PATH.fullmatch(path):
        return message, "body"
    return message[:at], path.removeprefix(".") or "body"


def _build_duplicate_error(candidates: list[Key]) -> RequestError:
    first: dict[Key, int] = {}
    for index, key in enumerate(candidates):
        if key in first:
            return RequestError(
                "candidates",
                f"{quote(key)} twice, at {first[key]} and {index}",
                "each item once",
                "drop the copies",
                422,
            )
        first[key] = index
    raise AssertionError("no copy")
