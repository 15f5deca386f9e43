"""What every history store promises: events by key and time, and nothing at or after the asked moment.

Keys are rows of an entity table (row 0 is nobody and owns no event) or, in a store with an open key space, any
64-bit integers: a user's own number, or a hash of its text. A key that was never written owns no events.

Events of one key that share a moment are all kept, in the order in which they came. A store may name an
``identity``: a whole-number column that tells events of one key and moment apart. An event written again, with the
same key, time and identity, replaces the first writing (so an append can be retried, and what became known later can
be added), and events of one moment are ordered by their identity: no retry changes an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Events:
    """Events of several keys, end to end, oldest first within a key.

    Attributes:
        offsets: int64 ``[keys + 1]``; key k owns ``offsets[k]:offsets[k + 1]``, which may be empty.
        times: int64 ``[n]``.
        columns: arrays by name, ``[n]``, or ``[n, W]`` where the column holds a vector an event.
    """

    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.times)


class HistoryStore(Protocol):
    """Past events by (key, time).

    Attributes:
        types: the type in which every column is read; ``np.dtype((np.float16, (32,)))`` is a vector of 32 an event.
        rows: how many key rows there are, row 0 included; None: any 64-bit integer is a key.
        identity: the column that names an event of a key and moment; None: every event is kept.
    """

    types: Mapping[str, np.dtype[Any]]
    rows: int | None
    identity: str | None

    def __len__(self) -> int:
        """How many events the store holds."""
        ...

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events; all of them, or none when something is wrong with one.

        Args:
            keys: whole numbers ``[n]``: rows from 1, or any where the key space is open.
            times: int64 ``[n]``, in any order.
            values: arrays ``[n]`` or ``[n, W]``, one for every column of the store.

        Raises:
            StoreError: a column too many or too few, other shapes, a key that is no row, a value that does not fit.
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
        """The last ``n`` events of each key strictly before a moment.

        Args:
            keys: one key, or ``[k]`` of them.
            before: one moment for all, or ``[k]``.
            n: at most so many events a key, counted after the filter.
            where: a column; only events whose value in it is not 0 count.
            columns: the columns to read; default all.

        Raises:
            StoreError: a key that is no row of a store whose keys are rows, or a column the store has not.
        """
        ...

    def scan(self) -> Iterator[tuple[int, Events]]:
        """Every key that owns events, in rising order, with all its events."""
        ...
