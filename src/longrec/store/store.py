"""What every history store promises: events by key and time, and nothing at or after the asked moment.

A key is a row of an entity table (row 0 is nobody and owns no event). Events of one key that share a moment are
all kept, in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError


@dataclass(frozen=True)
class Events:
    """Events of several keys, end to end, oldest first within a key.

    Attributes:
        offsets: int64 ``[keys + 1]``; key k owns ``offsets[k]:offsets[k + 1]``, which may be empty.
        times: int64 ``[n]``.
        columns: arrays ``[n]`` by name.
    """

    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.times)


class HistoryStore(Protocol):
    """Past events by (key row, time).

    Attributes:
        types: the type in which every column is read.
        rows: how many key rows there are, row 0 included.
    """

    types: Mapping[str, np.dtype[Any]]
    rows: int

    def __len__(self) -> int:
        """How many events the store holds."""
        ...

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events; all of them, or none when something is wrong with one.

        Args:
            keys: whole numbers ``[n]``, rows from 1.
            times: int64 ``[n]``, in any order.
            values: arrays ``[n]``, one for every column of the store.

        Raises:
            StoreError: a column too many or too few, other lengths, a key that is no row, a value that does not fit.
        """
        ...

    def last(
        self, keys: int | NDArray[Any], before: int | NDArray[np.int64], n: int, where: str | None = None
    ) -> Events:
        """The last ``n`` events of each key strictly before a moment.

        Args:
            keys: one key row, or ``[k]`` of them.
            before: one moment for all, or ``[k]``.
            n: at most so many events a key, counted after the filter.
            where: a column; only events whose value in it is not 0 count.
        """
        ...

    def scan(self) -> Iterator[tuple[int, Events]]:
        """Every key that owns events, in the order of the rows, with all its events."""
        ...


def reading_types(columns: Mapping[str, np.dtype[Any]]) -> dict[str, np.dtype[Any]]:
    """The types in which stored columns are read: whole numbers wider than they lie, so that appended values fit."""
    widths = {name: np.dtype(np.int64 if dtype.itemsize > 2 else np.int32) for name, dtype in columns.items()}
    return {name: widths[name] if dtype.kind in "iub" else dtype for name, dtype in columns.items()}


def checked(
    types: Mapping[str, np.dtype[Any]],
    rows: int,
    keys: NDArray[Any],
    times: NDArray[Any],
    values: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
    """Events to append, in the types of the store.

    Raises:
        StoreError: as ``HistoryStore.append`` says.
    """
    where, write = "events to append", "give every event a key, a time and all the columns"
    keys, times = np.atleast_1d(np.asarray(keys)), np.atleast_1d(np.asarray(times))
    if set(values) != set(types):
        raise StoreError(where, f"the columns {', '.join(sorted(values)) or 'none'}", ", ".join(sorted(types)), write)
    arrays = {name: np.atleast_1d(np.asarray(values[name])) for name in types}
    lengths = {"keys": len(keys), "times": len(times), **{name: len(array) for name, array in arrays.items()}}
    if len(set(lengths.values())) > 1:
        raise StoreError(where, ", ".join(f"{n} {name}" for name, n in lengths.items()), "one length", write)
    if not len(keys):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), {n: a.astype(types[n]) for n, a in arrays.items()}
    if keys.dtype.kind not in "iu" or times.dtype.kind not in "iu":
        raise StoreError(where, f"keys of type {keys.dtype} and times of type {times.dtype}", "whole numbers")
    wrong = (keys < 1) | (keys >= rows)
    if wrong.any():
        raise StoreError(where, f"the key row {keys[wrong][0]}", f"rows from 1 to {rows - 1}", "add the key first")
    cast = {name: _cast(array, types[name], f"{where}: column {name!r}") for name, array in arrays.items()}
    return keys.astype(np.int64), times.astype(np.int64), cast


def _cast(array: NDArray[Any], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Values in another type; only the digits of a double may be lost."""
    if array.dtype.kind in "iubf":
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(dtype)
        if dtype.kind == "f" and np.array_equal(np.isfinite(cast), np.isfinite(array)):
            return cast
        if dtype.kind != "f" and np.array_equal(cast, array):
            return cast
    raise StoreError(where, f"values of type {array.dtype}", f"what fits {dtype}", "encode them as the log was")
