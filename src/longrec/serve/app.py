"""HTTP application of a service: ranking, recommendations, events, the Open Inference Protocol, metrics, a console."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from longrec.errors import LongRecError, RequestError
from longrec.serve.access import Access
from longrec.serve.admission import OneByOne, Shed
from longrec.serve.binary_tensors import EXTENSION, LENGTH_HEADER
from longrec.serve.connections import CONNECTION, GuardedApplication, GuardedProtocol, take_count
from longrec.serve.content_encoding import compress
from longrec.serve.current_service import CurrentService
from longrec.serve.events import EventResponse
from longrec.serve.gate import Gate
from longrec.serve.history_request import HISTORY
from longrec.serve.http_responses import (
    build_error_response,
    build_failure_response,
    log_failure,
    make_json_response,
    make_response,
)
from longrec.serve.limits import Limits
from longrec.serve.open_api import build_document
from longrec.serve.pipelines import RANK, RECOMMEND
from longrec.serve.prometheus import ServerMetrics
from longrec.serve.request_body import read_body
from longrec.serve.responses import Answer
from longrec.serve.service import Service
from longrec.serve.stores import Reading, StoreReaders

DEADLINE_HEADER = "x-request-timeout-ms"
"""Header of a request with its own deadline in milliseconds."""
_BEGAN = "longrec.began"

_NO_TOKEN = re.compile(r"[^\w!#$%&'*+.^`|~-]", re.ASCII)
"""Letters that a name in a header cannot have."""
_log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
Handler = Callable[[Request], Awaitable[Response]]
Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


class _Answered(NamedTuple):
    """An answer, its JSON, and the seconds that it took without what ran in between."""

    answer: Answer
    content: bytes
    seconds: float


class App:
    """Routes of one service.

    The model runs inside the event loop, for one request at a time: one process uses one core. A second thread waits
    for the disk when events are written.

    Args:
        counts: folder of the counters of all workers. None for a server of one process.
        limits: what the server accepts at once, and how long it waits.
        access: who may send requests.
        supervisor: process that has every worker reload at a SIGHUP. None for a server of one process.
    """

    def __init__(
        self,
        service: Service,
        counts: Path | None = None,
        limits: Limits | None = None,
        access: Access | None = None,
        supervisor: int | None = None,
    ) -> None:
        self.current, self.metrics = CurrentService(service), ServerMetrics(counts, service.list_stages())
        self.limits = limits or Limits()
        self.gate = Gate(self.limits, self.metrics)
        self.access = access or Access()
        self.access.count = partial(self.metrics.count_request, "other", seconds=0.0)
        self._use_stores()
        self._supervisor = supervisor
        self._reloads = set[asyncio.Task[None] | None]()
        self._document: tuple[Service | None, bytes] = None, b""
        self._events = OneByOne(self.limits.queue, "events")
        self._changes = OneByOne(self.limits.queue, "changes")
        self._page = files("longrec.serve").joinpath("console", "index.html").read_bytes()

    @property
    def service(self) -> Service:
        """The service that answers new requests."""
        return self.current.service

    @property
    def version(self) -> str:
        """Version of LongRec that wrote the bundle."""
        return self.service.bundle.manifest.version

    def close(self) -> None:
        """Close the current service."""
        self.stores.close()
        self.current.close()

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
            self._build_route("/reload", self._handle_reload, "/reload", "POST"),
            self._build_route(HISTORY, self._handle_history, HISTORY, "POST"),
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
        return GuardedApplication(self.gate, self.access, routes=routes, exception_handlers=handlers, lifespan=lifespan)

    def _build_route(self, path: str, handler: Handler, name: str, method: str = "GET") -> Route:
        async def handle_and_count(request: Request) -> Response:
            began = request.scope[_BEGAN] = time.perf_counter()
            try:
                response = await handler(request)
            except Exception as error:  # noqa: BLE001  a client gets a message, not a traceback
                response = self._handle_error(name, path, error)
            if path == HISTORY:
                response.headers["cache-control"] = "no-store"
            self.metrics.count_request(name, response.status_code, time.perf_counter() - began)
            return response

        return Route(path, handle_and_count, methods=[method])

    def _handle_error(self, name: str, path: str, error: Exception) -> Response:
        if isinstance(error, Shed):
            self.metrics.count_shed(name, error.reason)
        elif not isinstance(error, RequestError | ClientDisconnect):
            log_failure(path, error, quotes=path != HISTORY)
        return build_failure_response(path, error)

    async def _handle_http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        self.metrics.count_request("other", error.status_code, 0.0)
        path, message = request.url.path, f"no such page ({error.detail})"
        expected = "/, /rank, /recommend, /events, /items, /history, /health, /metrics or /v2"
        if error.status_code == 405:
            message, expected = (
                f"{request.method} {path}",
                ", ".join((error.headers or {}).get("Allow", "").split(", ")),
            )
        return build_error_response(
            path, RequestError(path, message, expected, status=error.status_code), error.headers
        )

    async def _handle_rank(self, request: Request) -> Response:
        return await self._answer(RANK, request)

    async def _handle_recommend(self, request: Request) -> Response:
        return await self._answer(RECOMMEND, request)

    async def _answer(self, route: str, request: Request) -> Response:
        body, service = await self._read_body(request), self.current.acquire()
        try:
            steps = self._answer_in_steps(service, route, body)
            step = await self._read_and_compute(request, steps)
        finally:
            self.current.release(service)
        result = step.answer.pipeline_result
        self.metrics.count_ranking(len(result.candidates))
        self.metrics.count_stages(result.stage_seconds, result.fallbacks)
        seconds = {**result.stage_seconds, "service": step.seconds}
        timing = ", ".join(f"{_NO_TOKEN.sub('_', name)};dur={1e3 * own:.3f}" for name, own in seconds.items())
        return Response(step.content, media_type="application/json", headers={"server-timing": timing})

    async def _handle_history(self, request: Request) -> Response:
        body, service = await self._read_body(request), self.current.acquire()
        try:
            return make_response(await self._read_and_compute(request, service.read_history_in_steps(body)))
        finally:
            self.current.release(service)

    async def _read_and_compute(self, request: Request, steps: Iterator[ResultT | Reading | None]) -> ResultT:
        """Compute in the turn of a request, and wait for stores on servers in between."""
        step: ResultT | Reading = await self._compute(request, steps)
        while isinstance(step, Reading):
            await self.stores.run(step.read, self._read_deadline(request))
            step = await self._compute(request, steps, admitted=True)
        return step

    def _answer_in_steps(self, service: Service, route: str, body: bytes) -> Iterator[_Answered | Reading | None]:
        """Yield the steps of an answer, and the answer as JSON."""
        seconds, began = 0.0, time.perf_counter()
        for step in service.answer_in_steps(route, body):
            if step is None or isinstance(step, Reading):
                seconds += time.perf_counter() - began
                yield step
                began = time.perf_counter()
            else:
                content = step.json()
                yield _Answered(step, content, seconds + time.perf_counter() - began)

    async def _compute(self, request: Request, slices: Iterator[ResultT | None], admitted: bool = False) -> ResultT:
        """Compute in the turn of a request."""
        connection: GuardedProtocol | None = request.scope.get(CONNECTION)
        until = self._read_deadline(request)
        take_count(request.scope, self.gate)
        is_gone = _is_never_gone if connection is None else connection.is_gone
        return await self.gate.admission.compute(slices, is_gone, until, admitted)

    def _read_deadline(self, request: Request) -> float:
        """Return the time by which the computation of a request has to begin, by ``time.perf_counter``.

        Raises:
            RequestError: if the header is not a positive number.
        """
        seconds, text = self.limits.deadline, request.headers.get(DEADLINE_HEADER)
        if text is not None:
            milliseconds = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
            if not milliseconds:
                raise RequestError(DEADLINE_HEADER, repr(text[:100]), "milliseconds, a positive whole number")
            seconds = min(seconds, milliseconds / 1_000)
        return request.scope[_BEGAN] + seconds

    async def _handle_event(self, request: Request) -> Response:
        body = await self._read_body(request)
        record = asyncio.create_task(self._record(request, body))
        record.add_done_callback(_note_end)
        if self.stores.stores:  # after the deadline the recording continues, so that an event is whole
            response = await self.stores.wait(asyncio.shield(record), self._read_deadline(request))
        else:
            response = await record
        self.metrics.count_event(response.has_feedback, response.replaced)
        return make_response(response.json())

    async def _record(self, request: Request, body: bytes) -> EventResponse:
        """Record one event after the other. Rankings continue while this waits for a disk or a server."""
        async with self._events.turn():
            if self.stores.stores:
                work: Callable[[], EventResponse] = partial(self.service.record, body)
            else:
                work = (await self._compute(request, _once(lambda: self.service.prepare(body)), True)).commit
            return await self._events.run(work)

    async def _handle_items(self, request: Request) -> Response:
        """Change items, one request after the other. Rankings continue while this waits for a disk or a process."""
        body = await self._read_body(request)
        async with self._changes.turn():
            with contextlib.closing(self.service.change_items_in_steps(body)) as steps:
                step = await self._compute(request, steps)
                while callable(step):
                    await self._changes.run(step)
                    step = await self._compute(request, steps, admitted=True)
        return make_json_response(step)

    async def _handle_reload(self, request: Request) -> Response:
        await self._read_body(request)
        try:
            result = await self._reload()
        finally:  # all workers read the keys, even if the bundle cannot be replaced
            if self._supervisor is not None:  # which has every worker reload
                os.kill(self._supervisor, signal.SIGHUP)
        return make_json_response(result)

    async def _reload(self) -> dict[str, Any]:
        """Read the API keys again, and replace the service by one of the bundle that is there now."""
        self.access.read_again()
        result = await self.current.reload()
        if result["reloaded"]:
            self._use_stores()
        return result

    def reload_at_signal(self) -> None:
        """Reload at every SIGHUP, and log failures. Call it in the event loop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._reloads.add(loop.create_task(self._reload_and_log())))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # which a supervisor blocks while a worker starts

    async def _reload_and_log(self) -> None:
        try:
            result = await self._reload()
        except LongRecError as error:
            _log.error("the bundle is not replaced: %s", error)
        else:
            _log.warning("%s", "the bundle is replaced" if result["reloaded"] else "the bundle is the same")
        self._reloads.discard(asyncio.current_task())

    def _use_stores(self) -> None:
        """Read the stores on servers of the current service."""
        self.stores = StoreReaders(self.service.remote_stores, self.limits.queue)
        for store in self.stores.stores:
            store.limit_waiting(self.limits.store)

    async def _handle_infer(self, request: Request) -> Response:
        name, version = self._read_model_name(request)
        body, json_length = (
            await self._read_body(request),
            request.headers.get(LENGTH_HEADER),
        )
        work = partial(self.service.programs.infer, name, body, version, json_length)
        answer = await self._compute(request, _once(work))
        content, headers = compress(answer.content, request.headers.get("accept-encoding"))
        return Response(content, headers={**answer.headers, **headers})

    async def _read_body(self, request: Request) -> bytes:
        return await read_body(request, self.limits.body_bytes, self.gate)

    async def _handle_model(self, request: Request) -> Response:
        return make_json_response(self.service.programs.metadata(*self._read_model_name(request)))

    async def _handle_model_ready(self, request: Request) -> Response:
        return make_json_response({"name": self._read_model_name(request)[0], "ready": True})

    def _read_model_name(self, request: Request) -> tuple[str, str | None]:
        """Return the name of a program, and the version if the path has one."""
        name, version = request.path_params["name"], request.path_params.get("version")
        self.service.programs.check_name(name, version)
        return name, version

    async def _handle_server(self, request: Request) -> Response:
        return make_json_response({"name": "longrec", "version": self.version, "extensions": [EXTENSION]})

    async def _handle_live(self, request: Request) -> Response:
        return make_json_response({"live": True})

    async def _handle_ready(self, request: Request) -> Response:
        failure = await self.stores.check()
        if failure is None:
            return make_json_response({"ready": True})
        raise RequestError("store", failure, "a store that responds", "wait, or start it", 503)

    async def _handle_health(self, request: Request) -> Response:
        return make_json_response(self.service.health())

    async def _handle_metrics(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        content, media_type = self.metrics.render(self.service.model, self.version, accept)
        return Response(content, media_type=media_type)

    async def _handle_example(self, request: Request) -> Response:
        return make_json_response(self.service.example())

    async def _handle_document(self, request: Request) -> Response:
        service, document = self._document
        if service is not self.service:
            content = build_document(self.service, self.version, self.limits.body_bytes, self.access.has_keys)
            service, document = self._document = self.service, orjson.dumps(content)
        return make_response(document)

    async def _handle_console(self, request: Request) -> Response:
        inline = "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        policy = f"default-src 'none'; {inline}; connect-src 'self'; img-src data:"
        return Response(self._page, media_type="text/html", headers={"content-security-policy": policy})


def _once(work: Callable[[], ResultT]) -> Iterator[ResultT]:
    """Yield the result of a function, which is called in the turn of its request."""
    yield work()


def _note_end(record: asyncio.Future[Any]) -> None:
    if not record.cancelled():
        record.exception()  # it is raised by the request that waits, if one does


def _is_never_gone() -> bool:
    return False
