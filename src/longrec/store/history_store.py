"""Contract of every history store: events by key and time, read strictly before a timestamp.

Keys are rows of an entity table (row 0 is a placeholder without events). In a store with an open key space, any 64-bit
integer is a key: a user's own number, or a hash of its text. A key that was never written has no events.

Events of one key with equal timestamps are all kept, in the order of their arrival. A store may name an ``identity``:
an int64 column that distinguishes events of one key and timestamp. An event that is written again, with the same key,
time and identity, replaces the first one. So an append can be retried, and values that become available later can be
added. Events of one timestamp are ordered by their identity, so that a retry changes no result of a read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Events:
    """Events of several keys, concatenated, oldest first within a key.

    Attributes:
        offsets: int64 ``[keys + 1]``. The events of key k are ``offsets[k]:offsets[k + 1]``, which may be empty.
        times: int64 ``[n]``.
        columns: arrays by name, ``[n]``, or ``[n, W]`` where the column holds one vector per event.
    """

    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.times)


class HistoryStore(Protocol):
    """Events by (key, time).

    Attributes:
        types: type in which each column is read. ``np.dtype((np.float16, (32,)))`` is one vector of 32 per event.
        rows: number of key rows, row 0 included. None: any 64-bit integer is a key.
        identity: column that identifies an event of a key and timestamp. None: every event is kept.
    """

    types: Mapping[str, np.dtype[Any]]
    rows: int | None
    identity: str | None

    def __len__(self) -> int:
        """Return the number of events in the store."""
        ...

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add all events, or none if one of them is invalid.

        Args:
            keys: integers ``[n]``: rows from 1, or any integers if the key space is open.
            times: int64 ``[n]``, in any order.
            values: arrays ``[n]`` or ``[n, W]``, one per column of the store.

        Raises:
            StoreError: if a column is missing, unexpected or of a wrong shape, a key is not a row, or a value does not
                fit its type.
        """
        ...

    def last(
        self,
        keys: int | NDArray[Any],
        before: int | NDArray[np.int64],
        n: int,
        where: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Events:
        """Return the last ``n`` events of each key strictly before a timestamp.

        Args:
            keys: one key, or ``[k]`` of them.
            before: one timestamp for all keys, or ``[k]``.
            n: maximum number of events per key, counted after the filter.
            where: column of a filter. Only events with a nonzero value in it are returned.
            columns: columns to read. Default all.

        Raises:
            StoreError: if a key is not a row (in a store whose keys are rows), or a column is unknown.
        """
        ...

    def scan(self) -> Iterator[tuple[int, Events]]:
        """Yield every key that has events, in ascending order, with all its events."""
        ...
