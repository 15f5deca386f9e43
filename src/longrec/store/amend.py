"""Amendments: stored events, looked up by identity and written again with values that became available since.

A value that was missing is added in place and is available from the time of the amendment. A change is written as the
next revision (``store/visibility.py``), which no read as of an earlier timestamp returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.backends import Backend
from longrec.store.history_store import HistoryStore
from longrec.store.token_store import TokenStore

_FEW = 64
_NEAR = 1e-2
"""Numbers of a token have deviation 1. The same event encoded again differs by much less, except with codec int8."""


def find(backend: Backend, key: int, time: int, identity: int) -> dict[str, NDArray[Any]] | None:
    """Return the stored columns ``[1]`` of the newest revision of an event, or None if there is none.

    Raises:
        StoreError: if the store has no identity column.
    """
    if backend.identity is None:
        raise StoreError("store", "no identity", "a store with an identity column")
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


def find_many(
    backend: Backend, keys: NDArray[np.int64], times: NDArray[np.int64], identities: NDArray[np.int64]
) -> list[dict[str, NDArray[Any]] | None]:
    """Return the stored columns of N events, as ``find`` for each. Those after all of their key cost one read."""
    reached = mask_reached(backend, keys, times)
    rows = zip(reached.tolist(), keys.tolist(), times.tolist(), identities.tolist())
    return [find(backend, key, time, identity) if one else None for one, key, time, identity in rows]


def mask_reached(backend: HistoryStore, keys: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the mask ``[N]`` of the timestamps that a stored event of their key has, or one shortly after.

    It may be True for others, but is False only where no event of the key has the timestamp.
    """
    if not len(keys):
        return np.zeros(0, bool)
    owners, owner = np.unique(keys, return_inverse=True)
    latest = np.full(len(owners), np.iinfo(np.int64).min)
    np.maximum.at(latest, owner, times)
    newest = backend.last(owners, latest + 1, 1, columns=[])
    stored = np.full(len(owners), np.iinfo(np.int64).min)
    stored[np.diff(newest.offsets) > 0] = newest.times
    return stored[owner] >= times


def find_token(store: TokenStore, user: int, time: int, instance: int) -> Token | None:
    """Return a stored token, or None if there is none."""
    columns = find(store.backend, user, time, instance)
    return None if columns is None else Token(store, columns, user, time)


class Token:
    """One stored token.

    Attributes:
        visible: timestamp from which it can be read.
        version: source version that wrote it.
        instance: its id: that of the event, plus one per change.
        sides, available_at: its side ids, and the timestamps from which they are available.
    """

    def __init__(self, store: TokenStore, columns: dict[str, NDArray[Any]], user: int, time: int) -> None:
        self._store, self._columns, self._user, self._time = store, columns, user, time
        self.visible = int(columns["visible"][0]) + time  # stored as a difference; Python integers do not wrap
        self.version = int(columns["version"][0])
        self.instance = int(columns["instance"][0])
        self.sides = {name: int(columns[f"side.{name}"][0]) for name in store.info.sides}
        self.available_at = {name: int(columns[f"known.{name}"][0] + np.int64(time)) for name in store.info.sides}

    def amend(self, sides: Mapping[str, int], available_at: Mapping[str, int], since: int | None = None) -> None:
        """Write the token again with ids of side columns that became available since. Its vector stays the same.

        Args:
            since: write a new revision that can be read from this timestamp. None: write in place.

        Raises:
            StoreError: if a side column is unknown, or an id is beyond its range.
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
        """Return True if the token encodes the same vector ``[1, W]`` (or codes), within the error of its codec."""
        if self._store.info.codec == "codes":
            return np.array_equal(self._columns["codes"], vectors)
        kept = self._store.decode_vectors(self._columns)
        return bool(np.abs(kept - vectors).max() <= _NEAR + np.abs(kept).max() / 127)
