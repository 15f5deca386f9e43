"""What every client of a bundle can do, and how a request becomes JSON.

Both kinds of clients speak JSON to the service, so that what one refuses the other refuses in the same words.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, NamedTuple, Self, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import RequestError

_DATATYPES = {np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}


class RankedItem(NamedTuple):
    """One ranked candidate.

    Attributes:
        id: key of the item.
        score: probability.
        via: where the candidate came from.
    """

    id: int | str
    score: float
    via: str


@dataclass(frozen=True)
class Ranking(Sequence[RankedItem]):
    """Candidates, best first.

    Attributes:
        at: the moment that was ranked for.
        new_user, new_items: whom and what the log does not know (only with ``allow_unknown``).
    """

    items: tuple[RankedItem, ...]
    at: str | int | None
    new_user: bool
    new_items: tuple[int | str, ...]

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
    """What became of an event.

    Attributes:
        at: its moment; feedback of it is told later with the same.
        instance: the name of its token.
        visible: from when on rankings read it as it was last told: what a log stores as ``available_at``.
        replaced: whether it was told before.
        new_user, new_item: whether the log does not know them.
        told: when it was told, by the clock of the server: what a log stores as ``known_at`` of its feedback.
    """

    at: str | int | None
    instance: int
    visible: str | int | None
    replaced: bool
    new_user: bool
    new_item: bool
    recorded_at: str | int | None = None


class Client(ABC):
    """Asks one bundle. Close it, or use it in a ``with`` block; one thread at a time."""

    def rank(
        self,
        user: int | str,
        candidates: Sequence[int | str] | NDArray[Any],
        at: int | float | str | datetime | None = None,
        context: Mapping[str, Any] | None = None,
        history: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
        allow_unknown: bool = False,
        candidate_context: Mapping[str, Sequence[Any] | NDArray[Any] | None] | None = None,
    ) -> Ranking:
        """Rank candidates for a user.

        Args:
            at: the moment, ISO 8601 text, a datetime (UTC when naive), or a number in the unit of the log; now if None.
            context: raw values of the impression's event columns, all of them; None where one is missing.
            history: for pre-joined schemas ``{history: {feature: values, oldest first}}``.
            allow_unknown: rank for a user or items that the log does not know.
            candidate_context: raw values of the columns of the candidate, one a candidate, ``{column: values}``, all
                of them; None where one is missing.

        Raises:
            RequestError: a request that cannot be answered.
        """
        request: dict[str, Any] = {"user": user, "candidates": candidates, "context": context or {}}
        request.update({"at": _format_time(at)} if at is not None else {})
        request.update({"history": history} if history is not None else {})
        request.update({"candidate_context": candidate_context} if candidate_context else {})
        request.update({"allow_unknown": True} if allow_unknown else {})
        answer = parse_response(self._request("/rank", _encode_body(request)))
        items = tuple(RankedItem(item["id"], item["score"], item["via"]) for item in answer["items"])
        return Ranking(items, answer["at"], answer["unknown"]["user"], tuple(answer["unknown"]["candidates"]))

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
        """Tell of an impression; when this returns it is kept, and later rankings of the user read it.

        Args:
            at: the moment of the event; now if None.
            context: raw values of the impression's event columns; None for an event that was told before.
            feedback: what the user gave, by column (or ``label``); what is left out is not known yet.
            request: in a log with requests, the moment of the request that showed the item.
            allow_unknown: take an item that the log does not know.

        Raises:
            RequestError: an event that cannot be taken, or a server without a source.
        """
        optional = {"at": _format_time(at), "context": context, "feedback": feedback, "request": _format_time(request)}
        event: dict[str, Any] = {"user": user, "item": item}
        event |= {name: value for name, value in optional.items() if value is not None}
        event.update({"allow_unknown": True} if allow_unknown else {})
        # Told twice without a moment, an event would happen twice.
        answer = parse_response(self._request("/events", _encode_body(event), again=at is not None))
        unknown = answer["unknown"]
        instance, is_new = int(answer["instance"]), (unknown["user"], unknown["item"])
        return RecordedEvent(answer["at"], instance, answer["visible"], answer["replaced"], *is_new, answer["told"])

    def infer(self, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Run the program on its own named inputs (see ``metadata``): float32 probabilities ``[C]``.

        Raises:
            RequestError: tensors that are not those of the program.
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
        answer = parse_response(self._infer(_encode_body({"inputs": inputs})))
        return np.array(answer["outputs"][0]["data"], np.float32)

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Name, inputs and outputs of the model."""

    @abstractmethod
    def health(self) -> dict[str, Any]:
        """What is served, if it is."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what the client holds."""

    @abstractmethod
    def _request(self, path: str, body: bytes, again: bool = True) -> bytes: ...

    @abstractmethod
    def _infer(self, body: bytes) -> bytes: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_response(content: bytes) -> dict[str, Any]:
    """An answer of a server; JSON of ours always has the keys we look for.

    Raises:
        RequestError: something else answered.
    """
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise RequestError("server", "no answer of a LongRec server", "JSON", "look at the address", 502)
    return answer


def _encode_body(content: Mapping[str, Any]) -> bytes:
    """JSON of a request. What JSON cannot say is refused here, and not turned into null."""
    try:
        return orjson.dumps(_to_plain(content, ""))
    except TypeError as error:
        raise RequestError(
            "request", f"a value that JSON cannot hold ({error})", "numbers, text, lists", status=422
        ) from None


def _format_time(at: Any) -> Any:
    """A timestamp as JSON can tell it: dates and times as ISO 8601 text with their offset, numbers as they are."""
    if isinstance(at, datetime):
        return at.isoformat() if at.tzinfo is not None else f"{at.isoformat()}Z"
    if isinstance(at, date):
        return f"{at.isoformat()}T00:00:00Z"
    if isinstance(at, np.datetime64):
        unit = np.datetime_data(at.dtype)[0]
        return f"{np.datetime_as_string(at, unit='ns' if unit in ('ns', 'us', 'ms') else 's')}Z"
    return str(at) if isinstance(at, Decimal) else at


def _to_plain(value: Any, where: str) -> Any:
    """Values that JSON holds exactly."""
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
            return value  # the usual case: a list of keys
        return [_to_plain(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    return value.isoformat() if isinstance(value, (datetime, date)) else value
