"""Users whose states are to be folded: those with many new events, once these are final."""

from __future__ import annotations

import heapq
import time

from longrec.serve.histories import EventHistories
from longrec.serve.user_states import UserHistory

_TOGETHER = 256
"""Number of users whose events are folded at once."""
_SECONDS = 5.0
"""Time after which fewer users are folded."""
_MOST = 1_000_000
"""Number of users whose events are counted. The states of others are folded by their requests."""


class FoldQueue:
    """Users of one bundle whose states are to be folded.

    Args:
        histories: reader of its histories, with states.

    Attributes:
        folded: number of states that were folded.
    """

    def __init__(self, histories: EventHistories) -> None:
        assert histories.states is not None
        self._histories, self._states = histories, histories.states
        self._counts: dict[int, int] = {}
        self._latest: dict[int, int] = {}
        self._due: list[tuple[int, int, int]] = []
        self._ready: list[UserHistory] = []
        self._folded_at = time.monotonic()
        self.folded = 0

    def add(self, user: int, row: int, at: int) -> None:
        """Count an event of a user.

        Args:
            user: key number.
            row: row of the user in the bundle, 0 for a new user.
            at: timestamp of the event.
        """
        count = self._counts.get(user, 0) + 1
        latest = max(at, self._latest.get(user, at))
        if count >= self._states.fold_at:
            heapq.heappush(self._due, (latest, user, row))
            del self._counts[user], self._latest[user]
            return
        if len(self._counts) >= _MOST:
            self._counts.clear()
            self._latest.clear()
        self._counts[user], self._latest[user] = count, latest

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
            some = list(dict.fromkeys(self._ready[:_TOGETHER]))
            # From the next millisecond on, so that what was recorded in this one is in it.
            self.folded += len(self._states.fold(self._histories, some, now + 1, until=until))
            del self._ready[:_TOGETHER]
            self._folded_at = time.monotonic()
