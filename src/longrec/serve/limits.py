"""Limits of a server: how much it accepts at once, and how long it waits for its clients."""

from __future__ import annotations

import resource

import msgspec

from longrec.errors import ConfigError

_RESERVED_FILES = 128
"""Open files that a server needs besides its connections: bundles, stores, logs."""


class Limits(msgspec.Struct, frozen=True):
    """Limits of one server process. Times are in seconds.

    Attributes:
        queue: requests that may wait for the model. Further ones are answered with status 503.
        deadline: time from the arrival of a request to the start of its computation, after which it is answered with
            503. A request may lower it with the header ``x-request-timeout-ms``.
        connections: open connections. Further ones are answered with 503 and closed.
        store: time for a response of a store on a server.
        head: time for the head of a request, and of a new connection until its first byte.
        body: time for the body of a request.
        answer: time in which a client has to take a response.
        idle: time for which a connection is held open between two requests.
        head_bytes: largest head of a request, in bytes.
        body_bytes: largest body of a request, in bytes.
        open_bytes: bytes of all bodies that are being received at once.
    """

    queue: int = 16
    deadline: float = 10.0
    connections: int = 2_048
    store: float = 2.0
    head: float = 10.0
    body: float = 30.0
    answer: float = 30.0
    idle: float = 75.0
    head_bytes: int = 32 * 2**10
    body_bytes: int = 16 * 2**20
    open_bytes: int = 256 * 2**20

    def check(self) -> None:
        """Check all values.

        Raises:
            ConfigError: if a limit is not positive.
        """
        faults = [
            f"--{name}: {value!r} is not positive"
            for name, value in msgspec.structs.asdict(self).items()
            if not value > 0
        ]
        if faults:
            raise ConfigError("longrec serve", faults)


def fit_to_open_files(limits: Limits) -> Limits:
    """Return limits whose connections this process can open, after it has raised its own limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + _RESERVED_FILES
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        soft = ceiling
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    return msgspec.structs.replace(limits, connections=max(1, soft - min(_RESERVED_FILES, soft // 2)))
