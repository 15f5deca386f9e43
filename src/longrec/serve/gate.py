"""Gate of a server: its limits, its open connections, and the queue of its requests."""

from __future__ import annotations

import asyncio
from typing import Protocol

from longrec.resources import return_memory
from longrec.serve.admission import BODIES, CONNECTIONS, QUEUE, Admission, Meter, Shed
from longrec.serve.limits import Limits

SWEEP_SECONDS = 1.0
"""Time between two searches for connections whose clients take too long."""
_MANY_BYTES = 16 * 2**20
_QUEUED = {b"/rank": "/rank", b"/recommend": "/recommend"}
_INFER = "/v2/models/infer"


class GateMeter(Meter, Protocol):
    """Counters of a gate, see ``prometheus.py``."""

    def count_shed(self, route: str, reason: str) -> None:
        """Count a request that is refused because of load."""
        ...


class Connection(Protocol):
    """An open connection, see ``connections.py``."""

    def close_if_overdue(self, now: float) -> bool:
        """Close it if its client takes too long."""
        ...


class Gate:
    """Limits of one process, and what counts against them.

    Attributes:
        admission: queue of the requests that need the model.
        connections: open connections.
        open_bytes: bytes of the bodies that are being received.
    """

    def __init__(self, limits: Limits, meter: GateMeter) -> None:
        self.limits, self.meter = limits, meter
        self.admission = Admission(limits.queue, meter)
        self.connections: set[Connection] = set()
        self.open_bytes = self._most_bytes = 0
        self._sweeps = False

    def open(self, connection: Connection) -> bool:
        """Count a new connection, and return False if there are too many."""
        if len(self.connections) >= self.limits.connections:
            self.meter.count_shed("other", CONNECTIONS)
            return False
        self.connections.add(connection)
        if not self._sweeps:
            self._sweeps = True
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return True

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [*self.connections]:
            connection.close_if_overdue(now)
        self._return_memory()
        self._sweeps = bool(self.connections) or self._most_bytes >= _MANY_BYTES
        if self._sweeps:
            loop.call_later(SWEEP_SECONDS, self._sweep)

    def is_queued(self, url: bytes) -> bool:
        """Return True for the address of a request that needs the model."""
        return url in _QUEUED or (url.startswith(b"/v2/models/") and url.endswith(b"/infer"))

    def refuses(self, url: bytes) -> bool:
        """Return True if a request to an address is refused now, because too many wait."""
        return self.admission.is_full and self.is_queued(url)

    def count_refusal(self, url: bytes) -> None:
        """Count a request that was refused because too many wait."""
        self.meter.count_shed(_QUEUED.get(url, _INFER), QUEUE)

    def _return_memory(self) -> None:
        """Return the memory of many bodies to the system."""
        if self._most_bytes >= _MANY_BYTES and not self.open_bytes:
            self._most_bytes = 0
            return_memory()

    def add_body(self, size: int) -> None:
        """Count bytes of a body that is being received.

        Raises:
            Shed: if all bodies together are too large.
        """
        self.open_bytes += size
        self._most_bytes = max(self._most_bytes, self.open_bytes)
        if self.open_bytes > self.limits.open_bytes:
            raise Shed(BODIES, "too many bytes of requests are being received", f"{self.limits.open_bytes:,} at once")

    def remove_body(self, size: int) -> None:
        """Count these bytes no more."""
        self.open_bytes -= size
