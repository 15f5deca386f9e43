"""Who may send requests to a server: API keys, names of the server in ``Host``, and requests of other pages.

An admin key is needed to change something for all clients, and to read the events of a user: these are personal, so
they are read by ``POST /history``, never by GET, and their response is neither cached nor logged.

A browser sends requests for any page that it shows. A page elsewhere must neither read from a server on the same
machine under a name of its own (DNS rebinding), nor post to it. Posts that a browser sends without a preflight are
refused by their ``Content-Type``, and posts of other pages by their ``Origin``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from longrec.errors import ConfigError, LongRecError, RequestError
from longrec.serve.api_keys import ADMIN, ApiKeys, read_keys
from longrec.serve.http_responses import build_error_response

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Paths for probes, which are answered without a key and under every name."""
_ORDINARY_POSTS = re.compile(r"/(?:rank|recommend|events|v2/models/.*)", re.DOTALL)
"""Paths to which an ordinary key may post. All others need an admin key, so that none is open by mistake."""
_READS = frozenset({"GET", "HEAD"})
_JSON, _BYTES = b"application/json", b"application/octet-stream"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_NAME = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_log = logging.getLogger(__name__)
ANY = "*"
"""Allowed host that stands for all, which also ends the check of origins."""


class AccessOptions(msgspec.Struct, frozen=True):
    """Settings of the access to a server, without the keys themselves.

    Attributes:
        api_keys: file of API keys. None: those of the environment variable ``LONGREC_API_KEYS``, if it is set.
        allowed_hosts: names that the header ``Host`` may have, beside those of the machine itself, or ``*`` for all.
            Empty: on a loopback address none, on others all.
    """

    api_keys: str | None = None
    allowed_hosts: tuple[str, ...] = ()

    def check(self) -> None:
        """Check the names.

        Raises:
            ConfigError: if one is not the name of a host.
        """
        faults = [
            f"--allowed-hosts: {name!r} is not a host name without scheme and port"
            for name in self.allowed_hosts
            if name != ANY and not _NAME.fullmatch(_normalize(name))
        ]
        if faults:
            raise ConfigError("longrec serve", faults)

    def resolve(self, host: str, is_loopback: bool) -> AccessOptions:
        """Return options with all names that are allowed on an address, for ``Access``."""
        if ANY in self.allowed_hosts or not (self.allowed_hosts or is_loopback):
            return msgspec.structs.replace(self, allowed_hosts=(ANY,))
        names = dict.fromkeys(_normalize(name) for name in (*_LOOPBACK_NAMES, host, *self.allowed_hosts))
        return msgspec.structs.replace(self, allowed_hosts=tuple(names))


def _normalize(name: str) -> str:
    """Return the name of a host in lower case, an IPv6 address in brackets."""
    name = name.lower()
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


class Access:
    """Checks of a request before it is handled, from its head alone.

    Args:
        options: resolved options. Empty names: no check of hosts and origins.

    Attributes:
        count: function that is called with the status of each refusal.

    Raises:
        ConfigError: if the keys cannot be read.
    """

    def __init__(self, options: AccessOptions | None = None) -> None:
        self._options = options = options or AccessOptions()
        self.count: Callable[[int], None] | None = None
        self._keys = read_keys(options.api_keys)
        names = frozenset(name.encode() for name in options.allowed_hosts)
        self._names = None if not names or ANY.encode() in names else names

    @property
    def has_keys(self) -> bool:
        """True if requests need a key."""
        return self._keys is not None

    def read_again(self) -> None:
        """Read the keys again.

        Raises:
            RequestError: 422 if they cannot be read. Then the former ones continue.
        """
        try:
            self._keys = read_keys(self._options.api_keys)
        except LongRecError as error:
            do = "the former keys and the former bundle are still served"
            raise RequestError(error.where, error.found, error.expected, do, 422) from None
        if self._options.api_keys is not None and self._keys is not None:
            _log.warning("the API keys are read again: %s", self._keys)

    def refuse(self, scope: Mapping[str, Any]) -> Response | None:
        """Return the response to a request that is refused, None for others. Its body is not read."""
        try:
            self.check(scope)
        except RequestError as error:
            if self.count is not None:
                self.count(error.status)
            headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
            return build_error_response(scope["path"], error, headers)
        return None

    def check(self, scope: Mapping[str, Any]) -> None:
        """Check the head of a request.

        Raises:
            RequestError: 404 for a path that ends with a line break, 421 for a host with another name, 401 without a
                valid key, 403 without an admin key where one is needed or from a page of another origin, 415 for a
                content type that cannot be read.
        """
        path, reads = scope["path"], scope["method"] in _READS
        if path in OPEN_PATHS:
            return
        if path.endswith("\n"):  # Starlette would ignore it, but the rules of a proxy would not
            raise RequestError(repr(path), "no such page", "a path without line breaks", status=404)
        headers = dict[bytes, bytes](scope["headers"])  # one walk over them, whatever is looked up
        if self._names is not None:
            self._check_host(headers, reads)
        if self._keys is not None:
            _check_key(self._keys, headers, path, reads)
        if not reads and headers.get(b"content-type") != _JSON:
            _check_content_type(headers, path)

    def _check_host(self, headers: Mapping[bytes, bytes], reads: bool) -> None:
        assert self._names is not None
        host = headers.get(b"host")  # HTTP/1.0 has none, and every browser sends one
        if host is not None and _remove_port(host).lower() not in self._names:
            do = "use the server's address, or start the server with --allowed-hosts NAME"
            raise RequestError("host", _show(host), "a name of this server", do, 421)
        origin = None if reads else headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2].lower() != (host or b"").lower():
            do = "post from a page of this server, or not from a browser"
            raise RequestError("origin", _show(origin), "the host of the request", do, 403)


def _remove_port(host: bytes) -> bytes:
    name, colon, port = host.rpartition(b":")
    return name if colon and port.isdigit() else host


def _check_key(keys: ApiKeys, headers: Mapping[bytes, bytes], path: str, reads: bool) -> None:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    key = key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    kind = keys.find_kind(key)
    if kind is None:
        message = "not one of the keys of this server" if key else "no API key"
        raise RequestError("authorization", message, "an API key", "send the header: Authorization: Bearer KEY", 401)
    if kind != ADMIN and not reads and not _ORDINARY_POSTS.fullmatch(path):
        do = "send a key that the server's list of keys marks with: admin"
        raise RequestError("authorization", "an ordinary key", "an admin key", do, 403)


def _check_content_type(headers: Mapping[bytes, bytes], path: str) -> None:
    """Check the type of a body. A client that is no browser may leave it out."""
    value = headers.get(b"content-type")
    if value is None:
        if b"origin" not in headers:
            return
        value = b""
    kind, infers = value.partition(b";")[0].strip().lower(), path.startswith("/v2/models/")
    if kind == _JSON or (kind == _BYTES and infers):
        return
    expected = "application/json, or application/octet-stream with binary tensors" if infers else "application/json"
    do = "send the header: Content-Type: application/json (curl: -H 'content-type: application/json')"
    raise RequestError("content-type", _show(value) if value else "none", expected, do, 415)


def _show(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
