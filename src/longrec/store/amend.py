"""Events that are known already: found by their identity, and written again with what became known since.

What was left out is added in place, and is known from when it was told. What changes is written as the next version
(``store/visibility.py``), so that no earlier moment reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.backends import Backend
from longrec.store.token_store import TokenStore

_FEW = 64
_NEAR = 1e-2
"""Numbers of a token have deviation 1; the same event encoded again is nearer by far, but for 8 bits."""


def find(backend: Backend, key: int, time: int, identity: int) -> dict[str, NDArray[Any]] | None:
    """The columns ``[1]`` of the newest version of an event, as the store keeps them; None where it is not there.

    Raises:
        StoreError: a store without identities.
    """
    if backend.identity is None:
        raise StoreError("store", "no identity", "a store that tells its events apart")
    count = _FEW
    while True:
        events = backend.last(key, time + 1, count)
        ids = events.columns[backend.identity]
        at = np.flatnonzero((events.times == time) & (ids == identity))
        if len(at):
            position = int(at[-1])
            while (
                position + 1 < len(events)
                and events.times[position + 1] == time
                and ids[position + 1] == ids[position] + 1
            ):
                position += 1
            return {name: column[position : position + 1] for name, column in events.columns.items()}
        if len(events) < count or events.times[0] < time:
            return None
        count *= 8


def find_token(store: TokenStore, user: int, time: int, instance: int) -> Token | None:
    """What is known of a token besides its vector; None where it is not there."""
    columns = find(store.backend, user, time, instance)
    return None if columns is None else Token(store, columns, user, time)


class Token:
    """One stored token.

    Attributes:
        visible: from when on it could be read.
        version: which version of the source wrote it.
        instance: its own name: that of the event, or one after it for every change.
        sides, known: its side ids, and when they became known.
    """

    def __init__(self, store: TokenStore, columns: dict[str, NDArray[Any]], user: int, time: int) -> None:
        self._store, self._columns, self._user, self._time = store, columns, user, time
        self.visible = int(columns["visible"][0]) + time  # stored as a distance; Python's integers do not wrap
        self.version = int(columns["version"][0])
        self.instance = int(columns["instance"][0])
        self.sides = {name: int(columns[f"side.{name}"][0]) for name in store.info.sides}
        self.available_at = {name: int(columns[f"known.{name}"][0] + np.int64(time)) for name in store.info.sides}

    def amend(self, sides: Mapping[str, int], available_at: Mapping[str, int], since: int | None = None) -> None:
        """Write it again with side ids that became known since; vector and version stay as they are.

        Args:
            since: write a version of its own, which can be read from then on; None writes in place.

        Raises:
            StoreError: a side column the store has not, or an id beyond it.
        """
        info, columns = self._store.info, dict(self._columns)
        for name, code in sides.items():
            if not 0 <= code <= info.sides.get(name, -1):
                raise StoreError("token to amend", f"id {code} of side column {name!r}", f"ids of {info.sides}")
            columns[f"side.{name}"] = np.array([code], np.int64)
            columns[f"known.{name}"] = np.array([available_at[name]], np.int64) - np.int64(self._time)
        if since is not None:
            columns["instance"] = np.array([self.instance + 1], np.int64)
            columns["visible"] = np.array([since - self._time], np.int64)
        self._store.backend.append(np.array([self._user], np.int64), np.array([self._time], np.int64), columns)

    def holds(self, vectors: NDArray[Any]) -> bool:
        """Whether it stands for the same vector ``[1, W]`` (or codes), as exactly as its codec keeps one."""
        if self._store.info.codec == "codes":
            return np.array_equal(self._columns["codes"], vectors)
        kept = self._store.decode_vectors(self._columns)
        return bool(np.abs(kept - vectors).max() <= _NEAR + np.abs(kept).max() / 127)
