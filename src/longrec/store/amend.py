"""Events that are known already: found by their identity, and written again with what became known since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.backends import Backend
from longrec.store.tokens import TokenStore

_FEW = 64


def find(backend: Backend, key: int, time: int, identity: int) -> dict[str, NDArray[Any]] | None:
    """The columns ``[1]`` of an event, as the store keeps them; None where it is not there.

    Raises:
        StoreError: a store without identities.
    """
    if backend.identity is None:
        raise StoreError("store", "no identity", "a store that tells its events apart")
    count = _FEW
    while True:
        events = backend.last(key, time + 1, count)
        at = np.flatnonzero((events.times == time) & (events.columns[backend.identity] == identity))
        if len(at):
            return {name: column[at[-1:]] for name, column in events.columns.items()}
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
        sides, known: its side ids, and when they became known.
    """

    def __init__(self, store: TokenStore, columns: dict[str, NDArray[Any]], user: int, time: int) -> None:
        self._store, self._columns, self._user, self._time = store, columns, user, time
        self.visible = int(columns["visible"][0]) + time  # stored as a distance; Python's integers do not wrap
        self.version = int(columns["version"][0])
        self.sides = {name: int(columns[f"side.{name}"][0]) for name in store.info.sides}
        self.known = {name: int(columns[f"known.{name}"][0] + np.int64(time)) for name in store.info.sides}

    def amend(self, sides: Mapping[str, int], known: Mapping[str, int]) -> None:
        """Write it again with side ids that became known since; vector, version and visibility stay as they are.

        Raises:
            StoreError: a side column the store has not, or an id beyond it.
        """
        info, columns = self._store.info, dict(self._columns)
        for name, code in sides.items():
            if not 0 <= code <= info.sides.get(name, -1):
                raise StoreError("token to amend", f"id {code} of side column {name!r}", f"ids of {info.sides}")
            columns[f"side.{name}"] = np.array([code], np.int64)
            columns[f"known.{name}"] = np.array([known[name]], np.int64) - np.int64(self._time)
        self._store.backend.append(np.array([self._user], np.int64), np.array([self._time], np.int64), columns)
