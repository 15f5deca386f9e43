"""Bodies of responses as types, for the OpenAPI document. Services write them as plain JSON."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from longrec.serve.request_json import Key

Time = str | int | None


class Exact(msgspec.Struct, forbid_unknown_fields=True):
    """JSON object without further keys."""


class ErrorFields(Exact):
    """What is wrong with a request.

    Attributes:
        where: the key of the request, or the resource.
        found: the value there.
        expected: the expected value.
        do: how to fix it. Empty if that is obvious.
    """

    where: str
    actual: str = msgspec.field(name="found")
    expected: str
    do: str


class ErrorResponse(Exact):
    """Error of all routes outside of the Open Inference Protocol."""

    error: ErrorFields


class InferErrorResponse(Exact):
    """Error of the Open Inference Protocol.

    Attributes:
        error: the message as text, as the protocol requires.
        parts: the same in its four fields.
    """

    error: str
    fields: ErrorFields = msgspec.field(name="parts")


class RankedItem(Exact):
    """Ranked candidate.

    Attributes:
        id: key of the item.
        score: probability of the label. None for an item without a score.
        via: source of the candidate, several joined with ``+``.
    """

    id: Key
    score: float | None
    via: str


class UnknownKeys(Exact):
    """Keys that the log does not contain.

    Attributes:
        user: true if the user is unknown.
        candidates: unknown items.
    """

    user: bool
    candidates: list[Key]


class RankResponse(Exact):
    """Candidates, best first.

    Attributes:
        model: name of the model or of the pipeline.
        at: timestamp of the ranking.
    """

    model: str
    user: Key | None
    at: Time
    items: list[RankedItem]
    unknown: UnknownKeys


class RecommendedItem(RankedItem):
    """Recommended item.

    Attributes:
        id: key of the item.
        score: probability, or the score of a retriever. None for an item without a score.
        via: source of the candidate, several joined with ``+``.
        scores: scores by stage.
    """

    scores: dict[str, float]


class UnknownUser(Exact):
    """Whether the log contains the user.

    Attributes:
        user: true if the user is unknown.
    """

    user: bool


class ExploreResponse(Exact):
    """What exploration did to a page.

    Attributes:
        bucket: bucket of the user, whose pages in ``control`` never explore.
        seed: seed of the draws, which a request may repeat. None if nothing was drawn.
        item: key of the explored item. None if the page did not explore.
    """

    bucket: Literal["control", "explore"]
    seed: int | None
    item: Key | None


class RecommendResponse(Exact):
    """Items, best first.

    Attributes:
        model: name of the model or of the pipeline.
        request: identity of the request, the same in the log of shown items.
        at: timestamp of the request.
        fallbacks: stages that were left out because they were late.
        explore: what exploration did, of a pipeline that explores.
    """

    model: str
    request: str
    user: Key
    at: Time
    items: list[RecommendedItem]
    unknown: UnknownUser
    fallbacks: list[str]
    explore: ExploreResponse | msgspec.UnsetType = msgspec.UNSET


class UnknownEventKeys(Exact):
    """Keys of an event that the log of the ranker does not contain.

    Attributes:
        user: true if the user is unknown.
        item: true if the item is unknown.
    """

    user: bool
    item: bool


class EventResponse(Exact):
    """Recorded event.

    Attributes:
        at: timestamp of the event. Later feedback of the event is sent with the same value.
        instance: name of its token, a number as text.
        visible: time from which rankings read the last revision.
        recorded_at: time of the call.
        replaced: true if the event was recorded before.
        ignored: columns of the context that are not used, because no history and no source model reads them.
    """

    user: Key
    item: Key
    at: Time
    instance: str
    visible: Time
    recorded_at: Time
    replaced: bool
    unknown: UnknownEventKeys
    ignored: list[str]


class HistoryEvent(Exact):
    """Event of a user.

    Attributes:
        at: timestamp of the event.
        item: key of the item. None for an item that the bundle does not contain, and for an event of tokens.
        title: title of the item in the item table, None without one.
        values: columns that the model reads, as of the timestamp of the request: values of the log, null for a missing
            one, ranges of numbers as text, or a text in parentheses, such as ``(unseen)``.
    """

    at: Time
    item: Key | None
    title: str | None
    values: dict[str, Any]


class UserHistory(Exact):
    """History of a user.

    Attributes:
        model: model that reads it.
        name: its name in the schema.
        events: number of events that the model reads.
        folded: number of them that are in the state of the user. None for a model without states.
        newest: the last of them, newest first.
    """

    model: str
    name: str
    events: int
    folded: int | None
    newest: list[HistoryEvent]


class HistoryResponse(Exact):
    """Events that a score of a user reads.

    Attributes:
        at: timestamp of the score.
        histories: histories of all models that are served.
    """

    user: Key
    at: Time
    unknown: UnknownUser
    histories: list[UserHistory]


class ReloadResponse(Exact):
    """Result of a reload.

    Attributes:
        reloaded: true if the bundle has changed and is served now.
        before: digests of the served bundles before.
        now: digests of the served bundles now.
    """

    reloaded: bool
    before: list[str]
    now: list[str]


class ItemsResponse(Exact):
    """Applied changes.

    Attributes:
        changes: number of changes.
        items: number of items now.
        withdrawn: number of withdrawn items now.
    """

    changes: int
    items: int
    withdrawn: int


class HealthResponse(msgspec.Struct):
    """Facts about the served bundle, with its numbers of users, items, events, features and histories."""

    status: str
    model: str
    version: str
    created: str


class InferResponse(Exact):
    """Outputs of a program.

    Attributes:
        outputs: outputs in the requested order.
        id: identity of the request, if it had one.
    """

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | msgspec.UnsetType = msgspec.UNSET


class OutputTensor(Exact):
    """Output tensor.

    Attributes:
        data: the numbers row by row. Left out for binary data.
        parameters: ``binary_data_size``, the size of binary data in bytes.
    """

    name: str
    datatype: str
    shape: list[int]
    data: list[float | None] | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class TensorFacts(Exact):
    """Name, datatype and shape of a tensor.

    Attributes:
        shape: lengths of the dimensions, -1 for one that differs between requests.
    """

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Exact):
    """Inputs and outputs of a program."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]


class ModelReady(Exact):
    """Readiness of a program."""

    name: str
    ready: bool


class ServerMetadata(Exact):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(Exact):
    """True if the server runs."""

    live: bool


class ServerReady(Exact):
    """True if the server accepts requests."""

    ready: bool
