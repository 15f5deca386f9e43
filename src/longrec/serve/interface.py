"""Common interface of all clients of a bundle, and the encoding of requests as JSON.

Both kinds of clients send JSON to the service, so both raise the same errors with the same messages.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import RequestError
from longrec.serve.user_history import HistoryEvent, UserHistory

_DATATYPES = {np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}


class RankedItem(NamedTuple):
    """One ranked candidate.

    Attributes:
        id: key of the item.
        score: probability, or the score of a retriever. None for an item without one, in a pipeline without a ranker.
        via: source of the candidate, several joined with ``+``.
        scores: scores of a recommended item by stage.
    """

    id: int | str
    score: float
    via: str
    scores: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Ranking(Sequence[RankedItem]):
    """Candidates, best first.

    Attributes:
        at: timestamp of the ranking.
        new_user: True if the log does not contain the user (only with ``allow_unknown``).
        new_items: items that the log does not contain (only with ``allow_unknown``).
        request: identity of a request for recommendations, the same in the log of shown items.
        fallbacks: stages of a pipeline that were left out because they were late.
        explore: what exploration did, with the keys ``bucket``, ``seed`` and ``item`` (the explored one). None of a
            pipeline without exploration.
    """

    items: tuple[RankedItem, ...]
    at: str | int | None
    new_user: bool
    new_items: tuple[int | str, ...]
    request: str | None = None
    fallbacks: tuple[str, ...] = ()
    explore: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> RankedItem: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedItem, ...]: ...
    def __getitem__(self, index: int | slice) -> RankedItem | tuple[RankedItem, ...]:
        return self.items[index]

    def __iter__(self) -> Iterator[RankedItem]:
        return iter(self.items)


@dataclass(frozen=True)
class RecordedEvent:
    """A recorded event.

    Attributes:
        at: timestamp of the event. Later feedback of the event is sent with the same value.
        instance: name of its token.
        visible: time from which rankings read the last revision. A log stores it as ``available_at``.
        replaced: True if the event was recorded before.
        new_user, new_item: True if the log does not contain them.
        recorded_at: time of the call by the server's clock. A log stores it as ``available_at`` of the feedback.
        ignored: columns of its context that are not used.
    """

    at: str | int | None
    instance: int
    visible: str | int | None
    replaced: bool
    new_user: bool
    new_item: bool
    recorded_at: str | int | None = None
    ignored: tuple[str, ...] = ()


class Client(ABC):
    """Client of one bundle, for one thread at a time. Close it, or use it in a ``with`` block."""

    def rank(
        self,
        user: int | str | None = None,
        candidates: Sequence[int | str] | NDArray[Any] | None = None,
        at: int | float | str | datetime | None = None,
        context: Mapping[str, Any] | None = None,
        history: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
        allow_unknown: bool = False,
        candidate_context: Mapping[str, Sequence[Any] | NDArray[Any] | None] | None = None,
        recent: Sequence[Mapping[str, Any]] | None = None,
        user_context: Mapping[str, Any] | None = None,
    ) -> Ranking:
        """Rank candidates for a user.

        Args:
            user: key of the user. None for a schema without a user.
            candidates: keys of the items to rank. None for a schema without an item: the ids of the answer are then
                the numbers of the rows.
            at: timestamp: ISO 8601 text, a datetime (UTC if naive), or a number in the unit of the log. Default now.
            context: raw values of all event columns of the impression, None for a missing value.
            history: for pre-joined schemas, ``{history: {feature: values, oldest first}}``.
            allow_unknown: rank for a user or items that the log does not contain.
            candidate_context: raw values of all columns of the candidate, ``{column: values}``, one per candidate, None
                for a missing value.
            recent: events of the user that are read after the stored ones, for this request only, each with the keys
                ``item``, ``at``, and if needed ``context`` and ``feedback``.
            user_context: raw values of columns of the user, in place of those of the user table.

        Raises:
            RequestError: if the request is invalid.
        """
        request: dict[str, Any] = {"context": context or {}}
        request.update({"user": user} if user is not None else {})
        request.update({"candidates": candidates} if candidates is not None else {})
        request.update({"at": _format_time(at)} if at is not None else {})
        request.update({"history": history} if history is not None else {})
        request.update({"candidate_context": candidate_context} if candidate_context else {})
        request.update(_describe_user(recent, user_context))
        request.update({"allow_unknown": True} if allow_unknown else {})
        answer = parse_response(self._request("/rank", _encode_body(request)))
        items = tuple(RankedItem(item["id"], item["score"], item["via"]) for item in answer["items"])
        return Ranking(items, answer["at"], answer["unknown"]["user"], tuple(answer["unknown"]["candidates"]))

    def recommend(
        self,
        user: int | str,
        k: int = 10,
        at: int | float | str | datetime | None = None,
        context: Mapping[str, Any] | None = None,
        history: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
        exclude_seen: bool | None = None,
        allow_unknown: bool = False,
        recent: Sequence[Mapping[str, Any]] | None = None,
        user_context: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Ranking:
        """Return the k best items for a user.

        Args:
            at, context, history, recent, user_context: as in ``rank``.
            exclude_seen: leave out the items of the events of the user that the bundle stores. Default True, or
                ``filter.seen`` of a pipeline.
            allow_unknown: recommend to a user that the log does not contain.
            seed: seed of an earlier answer of a pipeline that explores, whose draws are repeated.

        Raises:
            RequestError: if the request is invalid, or a ranker is served without a retriever.
        """
        body = encode_recommend_request(
            user, k, at, context, history, exclude_seen, allow_unknown, recent, user_context, seed
        )
        answer = parse_response(self._request("/recommend", body))
        items = tuple(RankedItem(item["id"], item["score"], item["via"], item["scores"]) for item in answer["items"])
        is_new, fallbacks = answer["unknown"]["user"], tuple(answer["fallbacks"])
        return Ranking(items, answer["at"], is_new, (), answer["request"], fallbacks, answer.get("explore"))

    def event(
        self,
        user: int | str,
        item: int | str,
        at: int | float | str | datetime | None = None,
        context: Mapping[str, Any] | None = None,
        feedback: Mapping[str, Any] | None = None,
        request: int | float | str | datetime | None = None,
        allow_unknown: bool = False,
    ) -> RecordedEvent:
        """Record an event durably. Later rankings of the user read it.

        Args:
            at: timestamp of the event. Default now.
            context: raw values of the impression's event columns. None for an event that was recorded before. Columns
                of the candidate that the item table has may be left out.
            feedback: values by column (or ``label``). Missing columns are not yet available.
            request: in a log with requests, the timestamp of the request that showed the item.
            allow_unknown: accept an item that the log does not contain.

        Raises:
            RequestError: if the event is invalid, or the server records none.
        """
        optional = {"at": _format_time(at), "context": context, "feedback": feedback, "request": _format_time(request)}
        event: dict[str, Any] = {"user": user, "item": item}
        event |= {name: value for name, value in optional.items() if value is not None}
        event.update({"allow_unknown": True} if allow_unknown else {})
        # Without a timestamp, a repeated call would record a second event.
        answer = parse_response(self._request("/events", _encode_body(event), again=at is not None))
        unknown = answer["unknown"]
        instance, is_new = int(answer["instance"]), (unknown["user"], unknown["item"])
        ignored = tuple(answer.get("ignored", ()))  # an earlier server names none
        times = answer["at"], instance, answer["visible"]
        return RecordedEvent(*times, answer["replaced"], *is_new, answer["recorded_at"], ignored)

    def history(
        self,
        user: int | str,
        at: int | float | str | datetime | None = None,
        recent: Sequence[Mapping[str, Any]] | None = None,
        last: int = 50,
        allow_unknown: bool = False,
    ) -> tuple[UserHistory, ...]:
        """Return the events that a score of a user reads, by model and history. A server needs an admin key for it.

        Args:
            at, recent: as in ``rank``.
            last: largest number of events per history, the newest ones, 1 to 1,000.
            allow_unknown: accept a user, or items of recent events, that the log does not contain.

        Raises:
            RequestError: if the request is invalid, or the bundle stores no histories of users.
        """
        request: dict[str, Any] = {"user": user, "last": last, **_describe_user(recent, None)}
        request.update({"at": _format_time(at)} if at is not None else {})
        request.update({"allow_unknown": True} if allow_unknown else {})
        read = parse_response(self._request("/history", _encode_body(request)))["histories"]
        return tuple(
            UserHistory(
                one["model"],
                one["name"],
                one["events"],
                one["folded"],
                tuple(HistoryEvent(*map(event.get, HistoryEvent._fields)) for event in one["newest"]),
            )
            for one in read
        )

    def infer(self, tensors: Mapping[str, NDArray[Any]], program: str | None = None) -> NDArray[np.float32]:
        """Run a program on its own named inputs (see ``metadata``) and return its output, float32.

        Args:
            program: name of one of several programs of a retriever, ``users`` or ``items``.

        Raises:
            RequestError: if the tensors do not fit the ONNX model.
        """
        inputs = [
            {
                "name": name,
                "shape": list(tensor.shape),
                "datatype": _DATATYPES.get(tensor.dtype, str(tensor.dtype)),
                "data": tensor.ravel(),
            }
            for name, tensor in tensors.items()
        ]
        output = parse_response(self._infer(_encode_body({"inputs": inputs}), program))["outputs"][0]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    @abstractmethod
    def metadata(self, program: str | None = None) -> dict[str, Any]:
        """Return name, inputs and outputs of the only program, or of one of several."""

    @abstractmethod
    def health(self) -> dict[str, Any]:
        """Return facts about the served bundle, if the server runs."""

    @abstractmethod
    def close(self) -> None:
        """Close connections and stores of the client."""

    @abstractmethod
    def _request(self, path: str, body: bytes, again: bool = True) -> bytes: ...

    @abstractmethod
    def _infer(self, body: bytes, program: str | None = None) -> bytes: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_response(content: bytes) -> dict[str, Any]:
    """Parse a response of a server. JSON of LongRec always has the expected keys.

    Raises:
        RequestError: if the response is not from LongRec.
    """
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise RequestError("server", "a response that is not from LongRec", "JSON", "check the address", 502)
    return answer


def encode_recommend_request(
    user: int | str,
    k: int = 10,
    at: int | float | str | datetime | None = None,
    context: Mapping[str, Any] | None = None,
    history: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    exclude_seen: bool | None = None,
    allow_unknown: bool = False,
    recent: Sequence[Mapping[str, Any]] | None = None,
    user_context: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> bytes:
    """Return the JSON of a request for recommendations."""
    request: dict[str, Any] = {"user": user, "k": k, "context": context or {}}
    request.update({"at": _format_time(at)} if at is not None else {})
    request.update({"history": history} if history is not None else {})
    request.update({"exclude_seen": exclude_seen} if exclude_seen is not None else {})
    request.update({"seed": seed} if seed is not None else {})
    request.update(_describe_user(recent, user_context))
    request.update({"allow_unknown": True} if allow_unknown else {})
    return _encode_body(request)


def _describe_user(
    recent: Sequence[Mapping[str, Any]] | None, user_context: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what a request says about its user beside the key."""
    described: dict[str, Any] = {}
    if recent:
        described["recent"] = [{**one, "at": _format_time(one["at"])} if "at" in one else one for one in recent]
    return {**described, "user_context": user_context} if user_context else described


def _encode_body(content: Mapping[str, Any]) -> bytes:
    """Encode a request as JSON. Values that JSON cannot hold are refused, not replaced by null."""
    try:
        return orjson.dumps(_to_plain(content, ""))
    except TypeError as error:
        raise RequestError(
            "request", f"a value that JSON cannot hold ({error})", "numbers, text, lists", status=422
        ) from None


def _format_time(at: Any) -> Any:
    """Convert a timestamp for JSON: dates and times to ISO 8601 text with their offset, numbers unchanged."""
    if isinstance(at, datetime):
        return at.isoformat() if at.tzinfo is not None else f"{at.isoformat()}Z"
    if isinstance(at, date):
        return f"{at.isoformat()}T00:00:00Z"
    if isinstance(at, np.datetime64):
        unit = np.datetime_data(at.dtype)[0]
        return f"{np.datetime_as_string(at, unit='ns' if unit in ('ns', 'us', 'ms') else 's')}Z"
    return str(at) if isinstance(at, Decimal) else at


def _to_plain(value: Any, where: str) -> Any:
    """Convert a value to types that JSON holds exactly."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or np.isfinite(value).all():
            return value.tolist()
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(where or "request", f"the number {value}", "a finite number, or null", status=422)
    if isinstance(value, Mapping):
        return {str(key): _to_plain(inner, f"{where}.{key}" if where else str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        if all(type(inner) is int or type(inner) is str for inner in value):
            return value  # the common case: a list of keys
        return [_to_plain(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    return value.isoformat() if isinstance(value, (datetime, date)) else value
