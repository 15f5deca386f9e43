"""HTTP connections that cannot hold a server: limits of their number, of their heads, and of their patience.

``GuardedProtocol`` is uvicorn's protocol with these limits. A request beyond the queue is refused here, before the
application sees it, which costs a fraction of a response of the application.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, cast

import orjson
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from longrec.errors import RequestError
from longrec.serve.access import Access
from longrec.serve.admission import CONNECTIONS, QUEUE, RETRY_SECONDS, Shed
from longrec.serve.gate import Gate

IDLE, HEAD, BODY, BUSY = range(4)
_COUNTED = "longrec.counted"
"""Key of the scope of a request that ``Admission.pending`` counts."""
CONNECTION = "longrec.connection"
"""Key of the connection in the scope of a request."""


def build_refusal(error: RequestError, closes: bool, retry: bool) -> bytes:
    """Return a whole response as bytes."""
    fields = {"where": error.where, "found": error.found, "expected": error.expected, "do": error.do}
    body = orjson.dumps({"error": fields})
    lines = [
        STATUS_LINE[error.status].strip(),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *([b"retry-after: %d" % RETRY_SECONDS] if retry else []),
        *([b"connection: close"] if closes else []),
        b"",
        body,
    ]
    return b"\r\n".join(lines)


_FULL = Shed(QUEUE, "too many requests wait already", "fewer at once")
_REFUSALS = {closes: build_refusal(_FULL, closes, True) for closes in (False, True)}
_NO_CONNECTION = build_refusal(
    Shed(CONNECTIONS, "too many connections are open", "fewer at once"), closes=True, retry=True
)


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        phase: IDLE between two requests, HEAD and BODY while these arrive, BUSY until the response has been sent.
        since: time at which the phase began, by the clock of the loop.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or refuse a connection beyond the limit."""
        super().connection_made(transport)
        self.gate: Gate = cast(GuardedApplication, self.app).gate
        self.phase, self.since = HEAD, self.loop.time()
        self.blocked_since: float | None = None
        self._head_bytes, self._refuses = 0, False
        self.gate.admission.arrivals += 1
        if not self.gate.open(self):
            transport.write(_NO_CONNECTION)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End. A request that waits is not computed."""
        for cycle, _ in self.pipeline:  # their tasks will not begin
            take_count(cast(MutableMapping[str, Any], cycle.scope), self.gate)
        super().connection_lost(exc)
        self.gate.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Read some bytes of a request."""
        if self.transport.is_closing():
            return
        if self.phase == IDLE:
            self.phase, self.since = HEAD, self.loop.time()
        super().data_received(data)
        if self.phase == HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self.gate.limits.head_bytes:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Add bytes to the address."""
        self._size += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self._size += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the task of a request, or refuse it."""
        self._head_bytes = 0
        if self.phase == HEAD:
            self.phase, self.since = BODY, self.loop.time()
        if self._size > self.gate.limits.head_bytes:
            self._refuse_head()
            return
        waits = self.cycle is not None and not self.cycle.response_complete
        if not waits and self.parser.get_method() == b"POST" and self.gate.refuses(self.url):
            self._refuses = True
            return
        self._scope[CONNECTION] = self
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Add bytes to the body."""
        if not (self._refuses or self.transport.is_closing()):
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self.gate.admission.arrivals += 1
        if not self._refuses and self.cycle is not None and self.cycle.response_complete:
            self.phase, self.since = IDLE, self.loop.time()  # a response that did not wait for the body
            return
        self.phase = BUSY
        if self._refuses:
            self._refuses = False
            self.gate.count_refusal(self.url)
            keeps = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
            self.transport.write(_REFUSALS[not keeps])
            if not keeps:
                self.transport.close()
            self.on_response_complete()
            return
        if self.transport.is_closing():
            return
        super().on_message_complete()
        if self.scope["method"] == "POST" and self.gate.is_queued(self.url):
            self.gate.admission.pending += 1
            self._scope[_COUNTED] = True

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        if self.phase == BUSY and not self.pipeline:
            self.phase, self.since = IDLE, self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Note that the client does not take its response."""
        self.blocked_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it does."""
        self.blocked_since = None
        super().resume_writing()

    @property
    def _scope(self) -> MutableMapping[str, Any]:
        """The scope of the request, with keys of this module."""
        return cast(MutableMapping[str, Any], self.scope)

    def is_gone(self) -> bool:
        """True if the client has left."""
        return self.transport.is_closing()

    def close_if_overdue(self, now: float) -> bool:
        """Close the connection if its client takes too long, and return whether it did."""
        limits = self.gate.limits
        if self.blocked_since is not None and now - self.blocked_since > limits.answer:
            self.transport.abort()
            return True
        seconds = {IDLE: limits.idle, HEAD: limits.head, BODY: limits.body}.get(self.phase)
        if seconds is None or now - self.since <= seconds:
            return False
        if self.phase == IDLE:
            self.transport.close()
            return True
        error = RequestError("request", f"not complete after {seconds:g} s", "all of its bytes", status=408)
        self._refuse(error)
        return True

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(RequestError("request", "not HTTP", "HTTP/1.1"))

    def _refuse_head(self) -> None:
        message, expected = "a head that is too large", f"at most {self.gate.limits.head_bytes:,} bytes"
        self._refuse(RequestError("request", message, expected, status=431))

    def _refuse(self, error: RequestError) -> None:
        """Answer with an error, if no response has begun, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(build_refusal(error, closes=True, retry=False))
        self.transport.close()


class GuardedApplication(Starlette):
    """Application whose connections are guarded by a gate, and whose requests by the checks of ``access.py``."""

    def __init__(self, gate: Gate, access: Access, **options: Any) -> None:
        super().__init__(**options)
        self.gate, self._access = gate, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            refusal = self._access.refuse(scope) if scope["type"] == "http" else None
            await (super().__call__ if refusal is None else refusal)(scope, receive, send)
        finally:
            take_count(scope, self.gate)


def take_count(scope: MutableMapping[str, Any], gate: Gate) -> None:
    """End the counting of a request as one whose task has not begun."""
    if scope.pop(_COUNTED, False):
        gate.admission.pending -= 1
