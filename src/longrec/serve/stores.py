"""Stores on servers that a service reads: reading off the event loop, and what happens when one hangs.

Stores in folders are read where they are needed, which takes microseconds. A store on a server may not respond. Its
reads run in threads, each request waits no longer than its deadline, and after a failure requests are refused at once
until a read succeeds, which is tried again every second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from longrec.errors import StoreError
from longrec.serve.admission import DEADLINE, QUEUE, STORE, Shed
from longrec.store.remote_store import RemoteStore

THREADS = 8
"""Number of reads that wait for servers at once."""
TRIAL_SECONDS = 1.0
"""Time between two reads of a store that does not respond."""
PING_SECONDS = 1.0
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Reading:
    """Step of an answer that waits for a server. ``read`` may run in another thread."""

    read: Callable[[], None]


def finish(steps: Iterator[ResultT | Reading | None]) -> ResultT:
    """Return the result of an answer whose steps all run in this thread."""
    for step in steps:
        if isinstance(step, Reading):
            step.read()
        elif step is not None:
            return step
    raise AssertionError("steps without a result")


class StoreReaders:
    """Threads that read the stores on servers of one service.

    Args:
        stores: the stores.
        limit: largest number of reads that wait.

    Attributes:
        failure: why the last read failed. None if it did not.
    """

    def __init__(self, stores: Iterable[RemoteStore], limit: int) -> None:
        self.stores, self._limit, self._waiting = list(stores), limit, 0
        self.failure: str | None = None
        self._tried_at = 0.0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="stores")

    async def run(self, read: Callable[[], ResultT], until: float) -> ResultT:
        """Run a function that waits for a store, in a thread.

        Args:
            until: deadline, by ``time.perf_counter``.

        Raises:
            Shed: if too many reads wait, the deadline passes, or a store did not respond within the last second.
            StoreError: if a store does not respond now.
        """
        now = time.perf_counter()
        if self.failure is not None:
            if now - self._tried_at < TRIAL_SECONDS:
                raise Shed(STORE, self.failure, "a store that responds")
            self._tried_at = now
        if self._waiting >= self._limit + THREADS:
            raise Shed(QUEUE, f"{self._waiting} requests wait for a store already", f"at most {self._limit}")

        def read_and_note() -> ResultT:  # also after the request has given up
            try:
                result = read()
            except StoreError as error:
                self._note(error.found)
                raise
            self.failure = None
            return result

        self._waiting += 1
        try:
            return await self.wait(asyncio.get_running_loop().run_in_executor(self._threads, read_and_note), until)
        finally:
            self._waiting -= 1

    async def wait(self, task: asyncio.Future[ResultT], until: float) -> ResultT:
        """Wait for a function that waits for a store.

        A deadline that passes says nothing about the store: a request may set a short one.

        Raises:
            Shed, StoreError: as ``run``.
        """
        try:
            return await asyncio.wait_for(task, max(0.0, until - time.perf_counter()))
        except TimeoutError:
            raise Shed(DEADLINE, "the deadline passed while a store did not respond", "a response in time") from None

    def _note(self, failure: str) -> None:
        self.failure, self._tried_at = failure, time.perf_counter()

    async def check(self) -> str | None:
        """Return why a store does not respond now. None if all do."""
        if not self.stores:
            return None

        def ping() -> None:
            for store in self.stores:
                store.ping()

        self._tried_at = float("-inf")
        try:
            await self.run(ping, time.perf_counter() + PING_SECONDS)
        except (Shed, StoreError) as error:
            return error.found
        return None

    def close(self) -> None:
        """Wait for no read that has not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)
