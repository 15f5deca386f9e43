"""OpenAPI document of a server, made from the types of its requests and responses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from longrec.exporting.inputs import Input, make_random_tensors
from longrec.serve import response_schemas as responses
from longrec.serve.access import OPEN_PATHS
from longrec.serve.binary_tensors import LENGTH_HEADER
from longrec.serve.history_request import HISTORY, HistoryRequest
from longrec.serve.infer_messages import InferRequest
from longrec.serve.pipelines import RANK, RECOMMEND
from longrec.serve.request_json import EventRequest, ItemsRequest, RankRequest, RecommendRequest
from longrec.serve.service import Service

_JSON, _BYTES = "application/json", "application/octet-stream"
_REF = "#/components/schemas/{name}"
_ERRORS = {
    400: "The body is not JSON, or is damaged.",
    401: "The request has no valid API key.",
    403: "The API key is not an admin key, or the request is one of a page elsewhere.",
    409: "Several reloads wait already, or the server records events of its bundle.",
    404: "An unknown user, item, model or version, or a route that this server does not have.",
    413: "The body, or the number of candidates, is too large.",
    415: "The Content-Type or the Content-Encoding is not supported.",
    421: "The header Host has another name than this server.",
    422: "A field or a value is invalid.",
    500: "The server failed.",
    503: "The server is busy, or a store does not respond.",
}
_COMPRESSED = "It may be compressed, with `Content-Encoding: gzip` or `deflate`."
_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
_PROTOCOL = "Open Inference Protocol"


@dataclass(frozen=True)
class _Operation:
    """One method of one path.

    Attributes:
        content: type of the response, or its media types without a schema.
        statuses: statuses of errors beside 500, 503, and those of the access.
        method: method of an operation without a type of request.
    """

    path: str
    name: str
    summary: str
    content: type[msgspec.Struct] | tuple[str, ...]
    tag: str = "Server"
    request: type[msgspec.Struct] | None = None
    statuses: tuple[int, ...] = ()
    method: str = "get"


_BODY = (400, 404, 413, 415, 422)
_PAGE = ("text/plain", "application/openmetrics-text")


def _list_operations() -> Iterable[_Operation]:
    ranking, protocol = "Recommendation", _PROTOCOL
    yield _Operation(RANK, "rank", "Rank candidates", responses.RankResponse, ranking, RankRequest, _BODY)
    yield _Operation(
        RECOMMEND, "recommend", "Recommend items", responses.RecommendResponse, ranking, RecommendRequest, _BODY
    )
    yield _Operation("/events", "event", "Record an event", responses.EventResponse, ranking, EventRequest, _BODY)
    yield _Operation("/items", "items", "Change items", responses.ItemsResponse, ranking, ItemsRequest, _BODY)
    reads = "Show the events that a score of a user reads"
    yield _Operation(HISTORY, "history", reads, responses.HistoryResponse, ranking, HistoryRequest, _BODY)
    about, failures = "Open the bundle again, and serve it if it has changed", (409, 413, 415, 422)
    yield _Operation("/reload", "reload", about, responses.ReloadResponse, statuses=failures, method="post")
    for path, suffix in ((_MODEL, ""), (_VERSION, "Version")):
        name = f"infer{suffix}"
        yield _Operation(f"{path}/infer", name, "Run a program", responses.InferResponse, protocol, InferRequest, _BODY)
        metadata, ready = f"metadata{suffix}", f"ready{suffix}"
        yield _Operation(path, metadata, "Describe a program", responses.ModelMetadata, protocol, None, (404,))
        yield _Operation(f"{path}/ready", ready, "Is it ready?", responses.ModelReady, protocol, None, (404,))
    yield _Operation("/v2", "server", "Describe the server", responses.ServerMetadata, protocol)
    yield _Operation("/v2/health/live", "serverLive", "Does it run?", responses.ServerLive, protocol)
    yield _Operation("/v2/health/ready", "serverReady", "Is it ready?", responses.ServerReady, protocol)
    yield _Operation("/health", "health", "Describe the served bundle", responses.HealthResponse)
    yield _Operation("/metrics", "metrics", "Metrics for Prometheus", _PAGE)
    yield _Operation("/example", "example", "A valid request to the main route", (_JSON,))
    yield _Operation("/openapi.json", "document", "This document", (_JSON,))
    yield _Operation("/", "console", "A page to try requests", ("text/html",))


def build_document(service: Service, version: str, max_body_bytes: int, has_keys: bool = False) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a server.

    Args:
        version: version of the server.
        max_body_bytes: largest size of a request body.
        has_keys: True if requests need an API key.
    """
    operations = list(_list_operations())
    types = {type_ for one in operations for type_ in (one.request, one.content) if isinstance(type_, type)}
    types |= {responses.ErrorResponse, responses.InferErrorResponse}
    ordered = sorted(types, key=lambda type_: type_.__name__)
    schemas = msgspec.json.schema_components(ordered, ref_template=_REF)[1]
    _describe(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        method = one.method if one.request is None else "post"
        operation = _build_operation(one, service)
        _add_access(operation, one.path, method, has_keys)
        paths[one.path] = {"parameters": _build_parameters(one.path, service), method: operation}
        if not paths[one.path]["parameters"]:
            del paths[one.path]["parameters"]
    text = f"Bodies of requests are JSON of at most {max_body_bytes:,} bytes. {_COMPRESSED} JSON has no NaN: send null."
    components: dict[str, Any] = {"schemas": schemas, "responses": dict(_list_error_responses())}
    if has_keys:
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer", "description": _KEY_TEXT}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"LongRec: {service.model}", "version": version, "description": text},
        "paths": paths,
        "components": components,
    }


_KEY = "apiKey"
_KEY_TEXT = "An API key of the server. `/items`, `/reload` and `/history` need an admin key."


def _add_access(operation: dict[str, Any], path: str, method: str, has_keys: bool) -> None:
    """Add the errors of ``access.py`` to an operation, and the key that it needs."""
    if path in OPEN_PATHS:
        return
    kind = _get_kind(path)
    statuses = (*((401,) if has_keys else ()), *((403, 415) if method == "post" else ()), 421)
    operation["responses"] |= {str(status): _refer_error(kind, status) for status in statuses}
    if has_keys:
        operation["security"] = [{_KEY: []}]


def _build_operation(one: _Operation, service: Service) -> dict[str, Any]:
    content = (_JSON,) if isinstance(one.content, type) else one.content
    schema = _refer(one.content) if isinstance(one.content, type) else {}
    answer: dict[str, Any] = {"description": "Success.", "content": {name: {"schema": schema} for name in content}}
    operation: dict[str, Any] = {"operationId": one.name, "summary": one.summary, "tags": [one.tag]}
    if one.request is not None:
        media: dict[str, Any] = {"schema": _refer(one.request)}
        body = {"required": True, "description": _COMPRESSED, "content": {_JSON: media}}
        operation["requestBody"] = body
        if one.request is InferRequest:
            binary = {"schema": {"type": "string", "format": "binary", "description": "JSON, then binary data."}}
            body["content"] = {_JSON: media, _BYTES: binary}
            answer["content"][_BYTES] = binary
            answer["headers"] = {_LENGTH["name"]: {key: _LENGTH[key] for key in ("description", "schema")}}
            media["examples"] = {
                name: {"value": build_infer_example(service.programs.inputs(name))} for name in service.programs.names
            }
        elif one.path in service.pipelines:
            media["example"] = service.example(one.path)
    kind = _get_kind(one.path)
    errors = {str(status): _refer_error(kind, status) for status in (*one.statuses, 500, 503)}
    return {**operation, "responses": {"200": answer, **errors}}


def _get_kind(path: str) -> str:
    """Return the first letters of the names of errors of a path."""
    return "Infer" if path.startswith("/v2") else ""


def _refer_error(kind: str, status: int) -> dict[str, str]:
    return {"$ref": f"#/components/responses/{kind}{status}"}


_LENGTH: dict[str, Any] = {
    "name": "-".join(word.capitalize() for word in LENGTH_HEADER.split("-")),
    "in": "header",
    "required": False,
    "description": "Length of the JSON in bytes, if binary data follows it.",
    "schema": {"type": "integer", "minimum": 1},
}


def _build_parameters(path: str, service: Service) -> list[dict[str, Any]]:
    values = {"name": service.programs.names, "version": service.programs.versions}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": values[name]}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    return [*parameters, _LENGTH] if path.endswith("/infer") else parameters


def _list_error_responses() -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield the responses of all errors by name: ``404``, and ``Infer404`` of the Open Inference Protocol."""
    for kind, type_ in (("", responses.ErrorResponse), ("Infer", responses.InferErrorResponse)):
        for status, text in _ERRORS.items():
            answer: dict[str, Any] = {"description": text, "content": {_JSON: {"schema": _refer(type_)}}}
            if status == 503:
                seconds = {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}}
                answer["headers"] = {"Retry-After": seconds}
            if status == 401:
                answer["headers"] = {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}}
            yield f"{kind}{status}", answer


def build_infer_example(inputs: Sequence[Input]) -> dict[str, Any]:
    """Return a valid request to a program: two candidates, and histories of two events."""
    tensors = make_random_tensors(inputs, 2, 2, 0)
    return {
        "inputs": [
            {
                "name": entry.name,
                "shape": list(tensors[entry.name].shape),
                "datatype": entry.datatype,
                "data": tensors[entry.name].ravel().tolist(),
            }
            for entry in inputs
        ]
    }


def _refer(type_: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=type_.__name__)}


def _describe(schemas: dict[str, dict[str, Any]]) -> None:
    """Move descriptions of attributes from the docstrings of types to their properties."""
    for schema in schemas.values():
        text, _, attributes = inspect.cleandoc(schema.pop("description", "")).partition("\n\nAttributes:\n")
        if text:
            schema["description"] = _to_markdown(text)
        for names, described in re.findall(r"^    ([\w, ]+): ((?:.|\n {8,})+)", attributes, re.MULTILINE):
            for name in names.split(", "):
                schema["properties"][name]["description"] = _to_markdown(described)


def _to_markdown(text: str) -> str:
    """Return text of a docstring as Markdown, with the names of JSON."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("``", "`")
