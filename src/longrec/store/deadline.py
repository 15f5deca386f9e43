"""Knowledge within a time limit: the path of a request never waits for it beyond its deadline.

Late knowledge reads as missing, which models learn to do without (``models/keep_plug.py``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from longrec.store.knowledge import KnowledgeStore


@dataclass(frozen=True)
class Found:
    """What was known of the users and items of a request, all of one version.

    Attributes:
        users, items: float32 ``[n, 1 + W]``: 1 and the vector, or zeros.
        version: the number; -1 where none was there, or not in time.
        late: whether it did not come in time.
    """

    users: NDArray[np.float32]
    items: NDArray[np.float32]
    version: int
    late: bool = False


class TimelyKnowledge:
    """Look-ups in a thread of their own, each with a deadline.

    Args:
        seconds: from the question to the deadline.
        waiting: questions that may wait for the thread; further ones are late at once, so that a slow disk does not
            build up a queue that nobody waits for any more.

    Attributes:
        asked, missed: questions so far, and how many of them found nothing in time.
    """

    def __init__(self, store: KnowledgeStore, seconds: float, waiting: int = 8) -> None:
        self.store, self.seconds = store, seconds
        self.asked, self.missed = 0, 0
        self._room = threading.Semaphore(1 + waiting)
        self._count = threading.Lock()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="knowledge")

    def ask(self, moment: int, users: NDArray[np.int64], items: NDArray[np.int64]) -> Callable[[], Found]:
        """Begin a look-up (before retrieval, say); what comes back waits for it, until the deadline at most.

        Args:
            moment: of the request.
            users, items: int64 key numbers.

        Raises:
            StoreError: from what comes back, where the store could not be read.
        """
        until = time.monotonic() + self.seconds
        nothing = Found(self._none("user", len(users)), self._none("item", len(items)), -1, late=True)
        with self._count:
            self.asked += 1
        if not self._room.acquire(blocking=False):
            return lambda: self._late(nothing)
        future = self._threads.submit(self._look_up, moment, users, items)
        future.add_done_callback(lambda _: self._room.release())
        return lambda: self._wait(future, until, nothing)

    def look_up(self, moment: int, users: NDArray[np.int64], items: NDArray[np.int64]) -> Found:
        """``ask`` and wait."""
        return self.ask(moment, users, items)()

    def close(self) -> None:
        """End the thread; questions that wait are dropped. The store stays open."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> TimelyKnowledge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look_up(self, moment: int, users: NDArray[np.int64], items: NDArray[np.int64]) -> Found:
        version = self.store.version_at(np.array([moment], np.int64))
        found = [self.store.look_up("user", users, version), self.store.look_up("item", items, version)]
        return Found(found[0], found[1], int(version[0]))

    def _wait(self, future: Future[Found], until: float, nothing: Found) -> Found:
        try:
            return future.result(max(until - time.monotonic(), 0.0))
        except Late:
            future.cancel()
            return self._late(nothing)

    def _late(self, nothing: Found) -> Found:
        with self._count:
            self.missed += 1
        return nothing

    def _none(self, side: str, n: int) -> NDArray[np.float32]:
        return np.zeros((n, 1 + self.store.info.widths[side]), np.float32)
