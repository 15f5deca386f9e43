"""The HTTP face of a service: ranking, events, the Open Inference Protocol, health, metrics and a console page."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
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
from longrec.serve.metrics import Metrics
from longrec.serve.request import decode
from longrec.serve.service import Service
from longrec.serve.settings import Settings

BODY = 16 * 2**20
"""Largest request body in bytes."""
BUNDLE, SETTINGS, COUNTS = "LONGREC_BUNDLE", "LONGREC_SETTINGS", "LONGREC_COUNTS"
"""Environment of a worker process: the bundle to serve, its settings as JSON, and where the workers keep their counts.
"""

_log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]


class App:
    """The routes over one service. The model runs inside the event loop: one process is one core; a thread beside it
    waits for the disk when events are kept.
    """

    def __init__(self, service: Service, metrics: Metrics | None = None) -> None:
        self.service, self.metrics = service, metrics or Metrics()
        self.version = service.bundle.manifest.version
        self._one, self._keeper = asyncio.Lock(), ThreadPoolExecutor(1, thread_name_prefix="events")
        self._page = files("longrec.serve").joinpath("console", "index.html").read_bytes()

    def starlette(self) -> Starlette:
        """The ASGI application."""
        model = "/v2/models/{name}"
        routes = [
            self._route("/rank", self._rank, "/rank", "POST"),
            self._route("/events", self._event, "/events", "POST"),
            self._route("/v2", self._server, "/v2"),
            self._route("/v2/health/live", self._live, "/health"),
            self._route("/v2/health/ready", self._ready, "/health"),
            self._route(model, self._model, "/v2/models"),
            self._route(f"{model}/ready", self._model_ready, "/health"),
            self._route(f"{model}/infer", self._infer, "/v2/models/infer", "POST"),
            self._route("/health", self._health, "/health"),
            self._route("/metrics", self._metrics, "/metrics"),
            self._route("/example", self._example, "other"),
            self._route("/", self._console, "/"),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: self._no_route})

    def _route(self, path: str, handler: Handler, name: str, method: str = "GET") -> Route:
        async def counted(request: Request) -> Response:
            began = time.perf_counter()
            try:
                response = await handler(request)
            except Exception as error:  # noqa: BLE001  a client gets a message, never a traceback
                response = self._fault(path, error)
            self.metrics.seen(name, response.status_code, time.perf_counter() - began)
            return response

        return Route(path, counted, methods=[method])

    def _fault(self, path: str, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return fault(path, error)
        if isinstance(error, ClientDisconnect):
            return Response(status_code=400)
        _log.error("%s failed", path, exc_info=error)
        if isinstance(error, StoreError):
            return fault(path, RequestError("store", error.found, "a store that answers", "try again", 503))
        found = error.found if isinstance(error, LongRecError) else "the server failed"
        return fault(path, RequestError("server", found, "an answer", "look into the server's log", 500))

    async def _no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        self.metrics.seen("other", error.status_code, 0.0)
        path, found = request.url.path, f"no such page ({error.detail})"
        expected = "/, /rank, /events, /health, /metrics or /v2"
        if error.status_code == 405:
            found, expected = f"{request.method} {path}", ", ".join((error.headers or {}).get("Allow", "").split(", "))
        return fault(path, RequestError(path, found, expected, status=error.status_code), error.headers)

    async def _rank(self, request: Request) -> Response:
        body = await _body(request)
        began = time.perf_counter()
        answer = self.service.rank(decode(body))
        content = answer.json()
        whole = time.perf_counter() - began
        self.metrics.ranked(len(answer.outcome.candidates))
        steps = {**answer.outcome.seconds, "service": whole}
        timing = ", ".join(f"{name};dur={1e3 * seconds:.3f}" for name, seconds in steps.items())
        return Response(content, media_type="application/json", headers={"server-timing": timing})

    async def _event(self, request: Request) -> Response:
        body = await _body(request)
        async with self._one:  # rankings go on while the disk is waited for; the next event does not
            pending = self.service.prepare(body)
            recorded = await asyncio.get_running_loop().run_in_executor(self._keeper, pending.keep)
        self.metrics.recorded(recorded.known, recorded.replaced)
        return _raw(recorded.json())

    async def _infer(self, request: Request) -> Response:
        self._known(request)
        return _raw(self.service.infer(await _body(request)))

    async def _model(self, request: Request) -> Response:
        self._known(request)
        return _json(self.service.metadata())

    async def _model_ready(self, request: Request) -> Response:
        self._known(request)
        return _json({"name": self.service.model, "ready": True})

    def _known(self, request: Request) -> None:
        name = request.path_params["name"]
        if name != self.service.model:
            raise RequestError("model", f"the unknown model {name!r}", self.service.model, status=404)

    async def _server(self, request: Request) -> Response:
        return _json({"name": "longrec", "version": self.version, "extensions": []})

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        return _json({"ready": True})

    async def _health(self, request: Request) -> Response:
        return _json(self.service.health())

    async def _metrics(self, request: Request) -> Response:
        text = self.metrics.text(self.service.model, self.version)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _example(self, request: Request) -> Response:
        return _json(self.service.example())

    async def _console(self, request: Request) -> Response:
        inline = "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        policy = f"default-src 'none'; {inline}; connect-src 'self'; img-src data:"
        return Response(self._page, media_type="text/html", headers={"content-security-policy": policy})


async def _body(request: Request) -> bytes:
    """The body, never more of it than is allowed."""
    too_large = RequestError("body", f"more than {BODY:,} bytes", f"at most {BODY:,}", "ask in several requests", 413)
    if (told := request.headers.get("content-length", "")).isdecimal() and int(told) > BODY:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > BODY:
            raise too_large
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fault(path: str, error: RequestError, headers: Any = None) -> Response:
    """An error as JSON; under ``/v2`` the message stands as text, as the protocol wants it."""
    parts = {"where": error.where, "found": error.found, "expected": error.expected, "do": error.do}
    content = {"error": str(error), "parts": parts} if path.startswith("/v2") else {"error": parts}
    return _raw(orjson.dumps(content), error.status, headers)


def _json(content: Any) -> Response:
    return _raw(orjson.dumps(content))


def _raw(body: bytes, status: int = 200, headers: Any = None) -> Response:
    return Response(body, status, headers, "application/json")


def worker() -> Starlette:
    """The application of a worker process, from its environment."""
    try:
        settings = msgspec.json.decode(os.environ.get(SETTINGS, "{}"), type=Settings)
        service = Service(os.environ[BUNDLE], settings)
        service.check()
    except LongRecError as error:
        print(f"longrec: {error}", file=sys.stderr)
        sys.exit(3)  # the status by which uvicorn knows that starting again is of no use
    return App(service, Metrics(Path(os.environ[COUNTS]))).starlette()
