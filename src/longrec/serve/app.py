"""HTTP application of a service: ranking, recommendations, events, the Open Inference Protocol, metrics, a console."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from longrec.errors import LongRecError, RequestError, StoreError
from longrec.serve.binary_tensors import EXTENSION, LENGTH_HEADER
from longrec.serve.content_encoding import compress, decompress
from longrec.serve.open_api import build_document
from longrec.serve.pipelines import RANK, RECOMMEND
from longrec.serve.prometheus import ServerMetrics
from longrec.serve.service import Service
from longrec.serve.settings import Settings

MAX_BODY_BYTES = 16 * 2**20
"""Largest request body, in bytes."""
BUNDLE, SETTINGS, COUNTS = "LONGREC_BUNDLE", "LONGREC_SETTINGS", "LONGREC_COUNTS"
"""Environment variables of a worker process: the bundle, its settings as JSON, and the folder of counters."""

_NO_TOKEN = re.compile(r"[^\w!#$%&'*+.^`|~-]", re.ASCII)
"""Letters that a name in a header cannot have."""
_log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]
Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


class App:
    """Routes of one service.

    The model runs inside the event loop: one process uses one core. A second thread waits for the disk when events are
    written.

    Args:
        counts: folder of the counters of all workers. None for a server of one process.
    """

    def __init__(self, service: Service, counts: Path | None = None) -> None:
        self.service, self.metrics = service, ServerMetrics(counts, service.list_stages())
        self.version = service.bundle.manifest.version
        self._event_lock, self._event_executor = asyncio.Lock(), ThreadPoolExecutor(1, thread_name_prefix="events")
        self._page = files("longrec.serve").joinpath("console", "index.html").read_bytes()

    def starlette(self, lifespan: Lifespan | None = None) -> Starlette:
        """Return the ASGI application.

        Args:
            lifespan: context from the start of the server to its end.
        """
        model = "/v2/models/{name}"
        version = f"{model}/versions/{{version}}"
        routes = [
            self._build_route("/rank", self._handle_rank, "/rank", "POST"),
            self._build_route("/recommend", self._handle_recommend, "/recommend", "POST"),
            self._build_route("/events", self._handle_event, "/events", "POST"),
            self._build_route("/items", self._handle_items, "/items", "POST"),
            self._build_route("/v2", self._handle_server, "/v2"),
            self._build_route("/v2/health/live", self._handle_live, "/health"),
            self._build_route("/v2/health/ready", self._handle_ready, "/health"),
            self._build_route(model, self._handle_model, "/v2/models"),
            self._build_route(f"{model}/ready", self._handle_model_ready, "/health"),
            self._build_route(f"{model}/infer", self._handle_infer, "/v2/models/infer", "POST"),
            self._build_route(version, self._handle_model, "/v2/models"),
            self._build_route(f"{version}/ready", self._handle_model_ready, "/health"),
            self._build_route(f"{version}/infer", self._handle_infer, "/v2/models/infer", "POST"),
            self._build_route("/health", self._handle_health, "/health"),
            self._build_route("/metrics", self._handle_metrics, "/metrics"),
            self._build_route("/example", self._handle_example, "other"),
            self._build_route("/openapi.json", self._handle_document, "other"),
            self._build_route("/", self._handle_console, "/"),
        ]
        handlers = {HTTPException: self._handle_http_error}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)

    def _build_route(self, path: str, handler: Handler, name: str, method: str = "GET") -> Route:
        async def handle_and_count(request: Request) -> Response:
            began = time.perf_counter()
            try:
                response = await handler(request)
            except Exception as error:  # noqa: BLE001  a client gets a message, not a traceback
                response = self._handle_error(path, error)
            self.metrics.count_request(name, response.status_code, time.perf_counter() - began)
            return response

        return Route(path, handle_and_count, methods=[method])

    def _handle_error(self, path: str, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return build_error_response(path, error)
        if isinstance(error, ClientDisconnect):
            return Response(status_code=400)
        _log.error("%s failed", path, exc_info=error)
        if isinstance(error, StoreError):
            return build_error_response(
                path, RequestError("store", error.found, "a store that responds", "try again", 503)
            )
        message = error.found if isinstance(error, LongRecError) else "the server failed"
        return build_error_response(path, RequestError("server", message, "a response", "check the server's log", 500))

    async def _handle_http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        self.metrics.count_request("other", error.status_code, 0.0)
        path, message = request.url.path, f"no such page ({error.detail})"
        expected = "/, /rank, /recommend, /events, /items, /health, /metrics or /v2"
        if error.status_code == 405:
            message, expected = (
                f"{request.method} {path}",
                ", ".join((error.headers or {}).get("Allow", "").split(", ")),
            )
        return build_error_response(
            path, RequestError(path, message, expected, status=error.status_code), error.headers
        )

    async def _handle_rank(self, request: Request) -> Response:
        return self._answer(RANK, await _read_body(request))

    async def _handle_recommend(self, request: Request) -> Response:
        return self._answer(RECOMMEND, await _read_body(request))

    def _answer(self, route: str, body: bytes) -> Response:
        began = time.perf_counter()
        answer = self.service.decode_and_answer(route, body)
        content = answer.json()
        whole = time.perf_counter() - began
        result = answer.pipeline_result
        self.metrics.count_ranking(len(result.candidates))
        self.metrics.count_stages(result.stage_seconds, result.fallbacks)
        steps = {**result.stage_seconds, "service": whole}
        timing = ", ".join(f"{_NO_TOKEN.sub('_', name)};dur={1e3 * seconds:.3f}" for name, seconds in steps.items())
        return Response(content, media_type="application/json", headers={"server-timing": timing})

    async def _handle_event(self, request: Request) -> Response:
        body = await _read_body(request)
        async with self._event_lock:  # rankings continue while this waits for the disk, the next event does not
            pending = self.service.prepare(body)
            response = await asyncio.get_running_loop().run_in_executor(self._event_executor, pending.commit)
        self.metrics.count_event(response.has_feedback, response.replaced)
        return _make_response(response.json())

    async def _handle_items(self, request: Request) -> Response:
        return _make_json_response(self.service.change_items(await _read_body(request)))

    async def _handle_infer(self, request: Request) -> Response:
        name, version = self._read_model_name(request)
        body, json_length = await _read_body(request), request.headers.get(LENGTH_HEADER)
        answer = self.service.programs.infer(name, body, version, json_length)
        content, headers = compress(answer.content, request.headers.get("accept-encoding"))
        return Response(content, headers={**answer.headers, **headers})

    async def _handle_model(self, request: Request) -> Response:
        return _make_json_response(self.service.programs.metadata(*self._read_model_name(request)))

    async def _handle_model_ready(self, request: Request) -> Response:
        return _make_json_response({"name": self._read_model_name(request)[0], "ready": True})

    def _read_model_name(self, request: Request) -> tuple[str, str | None]:
        """Return the name of a program, and the version if the path has one."""
        name, version = request.path_params["name"], request.path_params.get("version")
        self.service.programs.check_name(name, version)
        return name, version

    async def _handle_server(self, request: Request) -> Response:
        return _make_json_response({"name": "longrec", "version": self.version, "extensions": [EXTENSION]})

    async def _handle_live(self, request: Request) -> Response:
        return _make_json_response({"live": True})

    async def _handle_ready(self, request: Request) -> Response:
        return _make_json_response({"ready": True})

    async def _handle_health(self, request: Request) -> Response:
        return _make_json_response(self.service.health())

    async def _handle_metrics(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        content, media_type = self.metrics.render(self.service.model, self.version, accept)
        return Response(content, media_type=media_type)

    async def _handle_example(self, request: Request) -> Response:
        return _make_json_response(self.service.example())

    @functools.cached_property
    def _document(self) -> bytes:
        return orjson.dumps(build_document(self.service, self.version, MAX_BODY_BYTES))

    async def _handle_document(self, request: Request) -> Response:
        return _make_response(self._document)

    async def _handle_console(self, request: Request) -> Response:
        inline = "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        policy = f"default-src 'none'; {inline}; connect-src 'self'; img-src data:"
        return Response(self._page, media_type="text/html", headers={"content-security-policy": policy})


async def _read_body(request: Request) -> bytes:
    """Read the body, up to the allowed size, and decompress it."""
    too_large = RequestError(
        "body",
        f"more than {MAX_BODY_BYTES:,} bytes",
        f"at most {MAX_BODY_BYTES:,}",
        "split it into several requests",
        413,
    )
    headers = dict[bytes, bytes](request.scope["headers"])  # one walk over them, whatever is looked up
    if (length := headers.get(b"content-length", b"")).isdigit() and int(length) > MAX_BODY_BYTES:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large
        chunks.append(chunk)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else decompress(body, encoding.decode("latin-1"), MAX_BODY_BYTES)


def build_error_response(path: str, error: RequestError, headers: Any = None) -> Response:
    """Return an error as JSON. Under ``/v2`` the message is text, as the protocol requires."""
    fields = {"where": error.where, "found": error.found, "expected": error.expected, "do": error.do}
    content = {"error": str(error), "parts": fields} if path.startswith("/v2") else {"error": fields}
    return _make_response(orjson.dumps(content), error.status, headers)


def _make_json_response(content: Any) -> Response:
    return _make_response(orjson.dumps(content))


def _make_response(body: bytes, status: int = 200, headers: Any = None) -> Response:
    return Response(body, status, headers, "application/json")


def create_worker_app() -> Starlette:
    """Create the application of a worker process from its environment."""
    try:
        settings = msgspec.json.decode(os.environ.get(SETTINGS, "{}"), type=Settings)
        service = Service(os.environ[BUNDLE], settings)
        service.check()
    except LongRecError as error:
        print(f"longrec: {error}", file=sys.stderr)
        sys.exit(3)  # with this status uvicorn does not start the worker again

    @contextlib.asynccontextmanager
    async def close_at_end(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()  # writes the last rows of its log; the signal that ends a worker runs no other handler

    return App(service, Path(os.environ[COUNTS])).starlette(close_at_end)
