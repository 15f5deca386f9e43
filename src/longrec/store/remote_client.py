"""Client of a Redis or Valkey server: addresses of stores, time limits, and errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from longrec.errors import ServerError, StoreError

if TYPE_CHECKING:
    from redis import Redis

SCHEMES = ("redis", "rediss")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_CONNECT_TIMEOUT, _RESPONSE_TIMEOUT = 5, 60
"""Seconds to wait for a connection, and for a response."""

ResultT = TypeVar("ResultT")


def limit_waiting(client: Redis, seconds: float) -> None:
    """Wait for connections and responses no longer than this, and repeat no call that took too long."""
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as Lost
    from redis.retry import Retry

    pool = client.connection_pool
    pool.connection_kwargs.update(socket_timeout=seconds, socket_connect_timeout=seconds)
    client.set_retry(Retry(NoBackoff(), 1, supported_errors=(Lost,)))
    pool.disconnect()
    pool.reset()  # an opened connection would keep its own times


def connect(location: str) -> tuple[Redis, str, int]:
    """Return a client, the name of the store and its cap, from an address."""
    address = urlsplit(location)
    shape = "redis://host:port/db/name"
    path = address.path.strip("/").split("/")
    if address.scheme not in SCHEMES or len(path) != 2 or not path[0].isdigit() or not _NAME.fullmatch(path[1]):
        raise StoreError(mask_password(location), "not the address of a store", shape)
    options = dict(parse_qsl(address.query, keep_blank_values=True))
    cap = options.pop("cap", "0")
    if options or not cap.isdigit():
        raise StoreError(mask_password(location), f"the options {address.query!r}", "cap=N, an integer from 0")
    try:
        import redis
    except ImportError:
        raise StoreError(
            mask_password(location), "the package redis is not installed", "", "pip install longrec[remote]"
        ) from None
    url = urlunsplit((address.scheme, address.netloc, path[0], "", ""))
    client = redis.Redis.from_url(url, socket_connect_timeout=_CONNECT_TIMEOUT, socket_timeout=_RESPONSE_TIMEOUT)
    return client, path[1], int(cap)


def call_server(location: str, request: Callable[[], ResultT]) -> ResultT:
    """Return the response of the server.

    Raises:
        ServerError: if the server does not respond, or returns an error.
    """
    import redis

    try:
        return request()
    except (redis.ConnectionError, redis.TimeoutError) as error:
        do = "start redis-server or valkey-server there, or give another address"
        raise ServerError(mask_password(location), f"no response ({error})", "a Redis or Valkey server", do) from None
    except redis.RedisError as error:
        raise ServerError(mask_password(location), f"the server refuses ({error})", "", "check the server") from None


def mask_password(location: str | Path) -> str:
    """Return a location without its password.

    >>> mask_password("redis://ann:secret@host/0/shop")
    'redis://host/0/shop'
    """
    return re.sub(r"//[^/@]*@", "//", str(location))
