"""Users whose states are to be folded: those with many new events, once these are final."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence

import numpy as np

from longrec.serve.histories import EventHistories
from longrec.serve.user_states import LATER, UserHistory

_TOGETHER = 256
"""Number of users whose events are folded at once."""
_SECONDS = 5.0
"""Time after which fewer users are folded."""
_MOST = 1_000_000
"""Number of users whose events are counted in memory. Those of others are counted in the store again."""


class FoldQueue:
    """Users of one bundle whose states are to be folded.

    Args:
        histories: reader of its histories, with states and live events.

    Attributes:
        folded: number of states that were folded.
    """

    def __init__(self, histories: EventHistories) -> None:
        assert histories.states is not None
        assert histories.live is not None
        self._histories, self._states, self._live = histories, histories.states, histories.live
        self._counts: dict[int, int] = {}
        self._queued: set[int] = set()
        self._due: list[tuple[int, int, int]] = []
        self._ready: list[UserHistory] = []
        self._folded_at = time.monotonic()
        self.folded = 0

    def add(self, events: Sequence[tuple[int, int, int]]) -> None:
        """Count new events, which are stored.

        Args:
            events: key number of the user, row of the user in the bundle (0 for a new user), and timestamp.
        """
        rows = {user: row for user, row, _ in events if user not in self._queued}
        latest: dict[int, int] = {}
        for user, _, at in events:
            latest[user] = max(at, latest.get(user, at))
            if user in self._counts:
                self._counts[user] += 1
        new = [user for user in rows if user not in self._counts]
        if len(self._counts) + len(new) > _MOST:
            self._counts.clear()
        self._counts |= zip(new, self._count_stored(new))
        for user, row in rows.items():
            if self._counts.get(user, 0) >= self._states.fold_at:
                heapq.heappush(self._due, (latest[user], user, row))
                self._queued.add(user)
                del self._counts[user]

    def _count_stored(self, users: Sequence[int]) -> Iterable[int]:
        """Yield for each user the number of stored events that are not in the state, at most as many as are folded."""
        if not users:
            return
        stored = self._live.backend.last(np.array(users, np.int64), LATER, self._states.fold_at, columns=[])
        bounds = stored.offsets.tolist()
        for user, start, stop in zip(users, bounds, bounds[1:]):
            state = self._states.store.get(user)
            yield stop - start if state is None else int((stored.times[start:stop] >= state.until).sum())

    def fold(self, before: int, now: int, *, at_once: bool = False) -> None:
        """Fold the states of users whose events are all final.

        Args:
            before: timestamp that further events are expected to have, at the earliest, if they are not late.
            now: the present time. Both are milliseconds UTC.
            at_once: do not wait for more users.
        """
        until = min(before, now) - self._states.delay
        while self._due and self._due[0][0] < until:
            _, user, row = heapq.heappop(self._due)
            self._ready.append(UserHistory(user, row))
        waited = time.monotonic() - self._folded_at > _SECONDS
        while len(self._ready) >= _TOGETHER or (self._ready and (at_once or waited)):
            some = self._ready[:_TOGETHER]
            # From the next millisecond on, so that what was recorded in this one is in it.
            self.folded += len(self._states.fold(self._histories, some, now + 1, until=until))
            del self._ready[:_TOGETHER]
            self._queued -= {one.user for one in some}
            self._folded_at = time.monotonic()
