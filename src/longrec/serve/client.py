"""Client of a bundle, in process or over HTTP, with the same calls, responses and errors."""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from longrec.errors import RequestError
from longrec.serve.api_keys import LONGEST, SHORTEST, is_key
from longrec.serve.history_request import HISTORY
from longrec.serve.interface import Client, RankedItem, Ranking, RecordedEvent, parse_response
from longrec.serve.service import Service
from longrec.serve.settings import Settings, build_settings
from longrec.serve.user_history import HistoryEvent, UserHistory

__all__ = [
    "Client",
    "HistoryEvent",
    "HttpClient",
    "LocalClient",
    "RankedItem",
    "Ranking",
    "RecordedEvent",
    "UserHistory",
    "client",
]

API_KEY = "LONGREC_API_KEY"
"""Environment variable with the API key of a client."""


class LocalClient(Client):
    """Client that runs the service in this process."""

    def __init__(self, bundle: str | Path, settings: Settings | None = None) -> None:
        self._service = Service(bundle, settings)

    def metadata(self, program: str | None = None) -> dict[str, Any]:
        """Return name, inputs and outputs of a program."""
        return self._service.programs.metadata(_join_name(self._service.model, program))

    def health(self) -> dict[str, Any]:
        """Return facts about the served bundle."""
        return self._service.health()

    def close(self) -> None:
        """Close the stores."""
        self._service.close()

    def _request(self, path: str, body: bytes, again: bool = True) -> bytes:
        if path == "/events":
            return self._service.record(body).json()
        return self._service.read_history(body) if path == HISTORY else self._service.answer(body, path)

    def _infer(self, body: bytes, program: str | None = None) -> bytes:
        return self._service.programs.infer(_join_name(self._service.model, program), body).content


class HttpClient(Client):
    """Client of a server over one persistent connection.

    Args:
        timeout: seconds to wait for a response.
        api_key: key that every request sends. None: that of the environment variable ``LONGREC_API_KEY``, if it is set.
    """

    def __init__(self, url: str, timeout: float = 30.0, api_key: str | None = None) -> None:
        address = urlsplit(url)
        try:
            port = address.port
        except ValueError:
            port = -1
        if address.scheme not in ("http", "https") or not address.hostname or port == -1:
            raise RequestError("url", repr(url), "http://host:port")
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._url, self._base = url, address.path.rstrip("/")
        self._connection = kind(address.hostname, port, timeout=timeout)
        self._model: str | None = None
        self._headers = _build_headers(api_key or os.environ.get(API_KEY))

    def metadata(self, program: str | None = None) -> dict[str, Any]:
        """Return name, inputs and outputs of a program."""
        return parse_response(self._call("GET", f"/v2/models/{self._get_model_name(program)}"))

    def health(self) -> dict[str, Any]:
        """Return facts about the served bundle, if the server runs."""
        return parse_response(self._call("GET", "/health"))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _get_model_name(self, program: str | None) -> str:
        if self._model is None:
            self._model = str(self.health()["model"])
        return quote(_join_name(self._model, program), safe="")

    def _request(self, path: str, body: bytes, again: bool = True) -> bytes:
        return self._call("POST", path, body, again)

    def _infer(self, body: bytes, program: str | None = None) -> bytes:
        return self._call("POST", f"/v2/models/{self._get_model_name(program)}/infer", body)

    def _call(self, method: str, path: str, body: bytes | None = None, again: bool = True) -> bytes:
        fresh = self._connection.sock is None
        try:
            return self._send_once(method, path, body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            # A server may close an idle connection. Calls that only read, or that name their event, are safe to repeat.
            if fresh or not again:
                raise self._build_unreachable_error(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._build_unreachable_error(error) from None
        try:
            return self._send_once(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            raise self._build_unreachable_error(error) from None

    def _send_once(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = self._headers if body is None else {"content-type": "application/json", **self._headers}
        try:
            self._connection.request(method, self._base + path, body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        if response.status != 200:
            raise _parse_error(response.status, content, self._url)
        return content

    def _build_unreachable_error(self, error: Exception) -> RequestError:
        reason = str(error) or type(error).__name__
        return RequestError(self._url, f"no response ({reason})", "a server", "start one: longrec serve BUNDLE", 503)


def client(
    target: str | Path,
    *,
    tokens: Mapping[str, str | Path] | None = None,
    events: str | Path | bool | None = None,
    state: str | Path | None = None,
    recall: str | Path | None = None,
    api_key: str | None = None,
) -> Client:
    """Return a client of a bundle's folder, of a pipeline, or of the server at an ``http://`` address.

    Args:
        target: folder of a bundle, YAML file of a pipeline, or address of a server.
        tokens: live stores by token history, used instead of the copies in the bundle. For a folder only.
        events: record events: true, or the bundle of the source model that encodes them as tokens. For a folder only.
        state: folder or address where events are stored, by default beside the bundle. For a folder only.
        recall: bundle of a retriever, whose items the ranker ranks in ``recommend``. For a folder only.
        api_key: key for a server that needs one. Default: that of the environment variable ``LONGREC_API_KEY``.

    Raises:
        BundleError: if a bundle cannot be opened.
        StoreError: if a store cannot be opened.
        RequestError: if the address or the key is invalid, settings are passed with the address of a server, which has
            its own, or a key with a folder.
    """
    settings = build_settings(tokens, events, state, recall)
    if isinstance(target, str) and target.startswith(("http://", "https://")):
        if settings != Settings():
            raise RequestError(
                "client", "tokens, events, state or recall of a server", "an address alone", "pass them to the server"
            )
        return HttpClient(target, api_key=api_key)
    if api_key is not None:
        raise RequestError("client", "api_key of a bundle", "the address of a server", "leave it out")
    return LocalClient(target, settings)


def _join_name(model: str, program: str | None) -> str:
    return model if program is None else f"{model}.{program}"


def _build_headers(key: str | None) -> dict[str, str]:
    """Return the headers with a key. The message about another text does not have it."""
    if not key:
        return {}
    if not is_key(key):
        expected = f"{SHORTEST} to {LONGEST} letters, digits and -._~+/="
        raise RequestError("api_key", "a text that cannot be a key", expected, f"check api_key and {API_KEY}")
    return {"authorization": f"Bearer {key}"}


def _parse_error(status: int, content: bytes, url: str) -> RequestError:
    wanted = f"pass it: longrec.client(url, api_key=...), or set {API_KEY}" if status == 401 else ""
    try:
        answer = orjson.loads(content)
        fields = answer.get("parts") or answer["error"]
        return RequestError(fields["where"], fields["found"], fields["expected"], wanted or fields["do"], status)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return RequestError(url, f"status {status} without a LongRec message", "a LongRec server", wanted, status)
