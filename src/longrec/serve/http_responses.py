"""HTTP responses with JSON: results, and errors with their four fields."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from longrec.errors import LongRecError, RequestError, ResourceError, StoreError
from longrec.resources import resource_error
from longrec.serve.admission import RETRY_SECONDS, Shed

_log = logging.getLogger(__name__)


def build_error_response(path: str, error: RequestError, headers: Any = None) -> Response:
    """Return an error as JSON. Under ``/v2`` the message is text, as the protocol requires."""
    fields = {"where": error.where, "found": error.found, "expected": error.expected, "do": error.do}
    content = {"error": str(error), "parts": fields} if path.startswith("/v2") else {"error": fields}
    return make_response(orjson.dumps(content), error.status, headers)


def build_failure_response(path: str, error: Exception) -> Response:
    """Return what a client gets for a request that raised an error: a message, never a traceback."""
    retry = {"retry-after": str(RETRY_SECONDS)}
    if isinstance(error, RequestError):
        return build_error_response(path, error, retry if isinstance(error, Shed) else None)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)
    if isinstance(error, OSError):
        error = resource_error(error) or error
    if isinstance(error, StoreError):
        failure = RequestError("store", error.found, "a store that responds", "try again", 503)
        return build_error_response(path, failure, retry)
    if isinstance(error, ResourceError):
        failure = RequestError("server", error.found, error.expected, "try again after this is mended", 503)
        return build_error_response(path, failure, retry)
    message = error.found if isinstance(error, LongRecError) else "the server failed"
    return build_error_response(path, RequestError("server", message, "a response", "check the server's log", 500))


def log_failure(path: str, error: Exception, quotes: bool = True) -> None:
    """Log an error of the server with its traceback.

    Args:
        quotes: with its message. False: with its type alone, because the message may quote personal data.
    """
    if quotes:
        _log.error("%s failed", path, exc_info=error)
    else:
        lines = "".join(traceback.format_tb(error.__traceback__))
        _log.error("%s failed: %s\n%s", path, type(error).__name__, lines)


def make_json_response(content: Any) -> Response:
    """Return a result as JSON."""
    return make_response(orjson.dumps(content))


def make_response(body: bytes, status: int = 200, headers: Any = None) -> Response:
    """Return encoded JSON."""
    return Response(body, status, headers, "application/json")
