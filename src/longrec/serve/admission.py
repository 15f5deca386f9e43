"""Admission of requests: a bounded queue before the model, which computes for one request at a time.

The event loop reads its sockets between two computations, so that a request beyond the limit is refused within about
one computation, and not after all that wait. A request that is too late, or whose client has left, is not computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from longrec.errors import RequestError

QUEUE, DEADLINE, GONE, CONNECTIONS, BODIES, STORE = "queue", "deadline", "gone", "connections", "bodies", "store"
RETRY_SECONDS = 1
"""Value of ``Retry-After``, in which a server with the default queue has worked off what waits."""
SLICE_SECONDS = 0.005
"""Time after which a long computation lets others through."""
MAX_READINGS = 32
"""Largest number of times that sockets are read between two computations."""
ResultT = TypeVar("ResultT")


class Meter(Protocol):
    """Counters of admission, see ``prometheus.py``."""

    def count_wait(self, seconds: float) -> None:
        """Count the time that a request has waited."""
        ...

    def set_queue(self, length: int) -> None:
        """Note how many requests wait."""
        ...


class Shed(RequestError):
    """A request that is refused because of load. ``reason`` is one of the constants of this module."""

    def __init__(self, reason: str, message: str, expected: str) -> None:
        self.reason = reason
        super().__init__("server", message, expected, f"try again after {RETRY_SECONDS} s", 503)


class Admission:
    """Queue of the requests that need the model. One at a time has the turn.

    Args:
        limit: largest number of requests that wait.
        meter: counters of its length and of the waiting times.

    Attributes:
        pending: complete requests whose tasks have not begun. The protocol adds them.
        arrivals: number of connections and complete requests since the start. The protocol counts them.
    """

    def __init__(self, limit: int, meter: Meter) -> None:
        self.limit, self.pending, self.arrivals = limit, 0, 0
        self._meter, self._busy, self._seen, self._readings = meter, False, 0, 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """True if a request that arrives now is refused."""
        return len(self._queue) + self.pending >= self.limit

    async def compute(
        self, slices: Iterator[ResultT | None], is_gone: Callable[[], bool], until: float, admitted: bool = False
    ) -> ResultT:
        """Compute the last value of an iterator in the turn of a request.

        Other requests have a turn after every ``SLICE_SECONDS``. A request that has begun is finished, unless its
        client leaves.

        Args:
            slices: iterator that yields None between two slices of the work, and in the end its result.
            is_gone: function that returns True if the client has left.
            until: deadline of the start, by ``time.perf_counter``.
            admitted: do not refuse the request if too many wait.

        Raises:
            Shed: if too many wait, the deadline passes before the turn, or the client leaves.
        """
        if self._busy:
            if not admitted and len(self._queue) >= self.limit:
                raise Shed(QUEUE, f"{len(self._queue)} requests wait already", f"at most {self.limit}")
            await self._wait()
        if time.perf_counter() > until:
            self._pass_on()
            raise Shed(DEADLINE, "the deadline passed while the request waited", "a start in time")
        while (result := self._run_slices(slices, is_gone)) is None:
            await self._wait()
        return result

    def _run_slices(self, slices: Iterator[ResultT | None], is_gone: Callable[[], bool]) -> ResultT | None:
        """Compute for ``SLICE_SECONDS`` or to the end, and pass on the turn."""
        self._busy = True
        end = time.perf_counter() + SLICE_SECONDS
        try:
            if is_gone():
                raise Shed(GONE, "the client has left", "a client that waits for its response")
            for result in slices:
                if result is not None or time.perf_counter() > end:
                    return result
            raise AssertionError("slices without a result")
        finally:
            self._pass_on()

    async def _wait(self) -> None:
        began, turn = time.perf_counter(), asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._meter.set_queue(len(self._queue))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it had the turn already
            raise
        self._meter.count_wait(time.perf_counter() - began)

    def _pass_on(self) -> None:
        """Hand the turn to the next request, or release it, after the event loop has read its sockets."""
        self._busy, self._readings = True, 0
        asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        """Let the event loop read until nothing new arrives, since it accepts one connection at a time."""
        if self.arrivals != self._seen and self._readings < MAX_READINGS:
            self._seen, self._readings = self.arrivals, self._readings + 1
            asyncio.get_running_loop().call_soon(self._read_on)
            return
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                self._meter.set_queue(len(self._queue))
                turn.set_result(None)
                return
        self._busy = False


class OneByOne:
    """Work that is done one piece after the other, and has no turn of the model while it waits for a disk.

    Args:
        limit: largest number of pieces that wait.
        what: what they are, for the error.
    """

    def __init__(self, limit: int, what: str) -> None:
        self._limit, self._what, self._waiting = limit, what, 0
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=what)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn of one piece.

        Raises:
            Shed: if too many wait.
        """
        if self._waiting >= self._limit:
            raise Shed(QUEUE, f"{self._waiting} {self._what} wait already", f"at most {self._limit}")
        self._waiting += 1
        try:
            async with self._lock:
                yield
        finally:
            self._waiting -= 1

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Run a function that waits in the thread of this work."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
