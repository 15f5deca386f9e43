"""HTTP requests to an application in this process, without a socket."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from longrec.serve.app import App


class Response(NamedTuple):
    """One response."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        """Return the content of a response as JSON."""
        return orjson.loads(self.content)


def read_error(response: Response) -> dict[str, str]:
    """Return the four fields of an error."""
    content = response.json()
    fields: dict[str, str] = content.get("parts") or content["error"]
    assert set(fields) == {"where", "found", "expected", "do"}
    return fields


class InProcess:
    """Client of an application on an event loop of its own. Closing it does not close the application."""

    def __init__(self, app: App) -> None:
        self.app, self._asgi, self._runner = app, app.starlette(), asyncio.Runner()

    def get(self, path: str, **headers: str) -> Response:
        """Send a GET request."""
        return self._runner.run(self.call("GET", path, b"", headers))

    def post(self, path: str, content: Any = None, **headers: str) -> Response:
        """Send a POST request with bytes, or with a value as JSON."""
        body = content if isinstance(content, bytes) else b"" if content is None else orjson.dumps(content)
        return self._runner.run(self.call("POST", path, body, headers))

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the loop of the application."""
        return self._runner.run(coroutine)

    async def call(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Response:
        """Send a request, in the loop."""
        messages = list[Any]()
        bodies = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            return next(bodies, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            messages.append(message)

        fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": fields,
        }
        await self._asgi(scope, receive, send)
        start, *rest = messages
        names = {name.decode(): value.decode() for name, value in start["headers"]}
        return Response(start["status"], names, b"".join(one["body"] for one in rest))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()
