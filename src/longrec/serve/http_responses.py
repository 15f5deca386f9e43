"""HTTP responses with JSON: results, and errors with their four fields."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from longrec.errors import RequestError


def build_error_response(path: str, error: RequestError, headers: Any = None) -> Response:
    """Return an error as JSON. Under ``/v2`` the message is text, as the protocol requires."""
    fields = {"where": error.where, "found": error.found, "expected": error.expected, "do": error.do}
    content = {"error": str(error), "parts": fields} if path.startswith("/v2") else {"error": fields}
    return make_response(orjson.dumps(content), error.status, headers)


def make_json_response(content: Any) -> Response:
    """Return a result as JSON."""
    return make_response(orjson.dumps(content))


def make_response(body: bytes, status: int = 200, headers: Any = None) -> Response:
    """Return encoded JSON."""
    return Response(body, status, headers, "application/json")
