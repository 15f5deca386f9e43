"""Events of an audited log: one array per role, sorted by user and, within a user, in the published order.

Shapes: N events, U users, I items, L elements of list columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.features.feature_encoders import Lists


@dataclass(frozen=True)
class Values:
    """A column: numbers, or codes of texts in the order of the texts. A missing value is NaN, or -1."""

    array: NDArray[Any]
    is_text: bool = False

    @property
    def present(self) -> NDArray[np.bool_]:
        """True where there is a value, bool ``[N]``."""
        return self.array >= 0 if self.is_text else ~np.isnan(self.array)

    def take(self, at: NDArray[np.int64]) -> Values:
        """Return the values at some positions."""
        return Values(self.array[at], self.is_text)


@dataclass(frozen=True)
class Events:
    """Events sorted by user, and by the published order of the user's events.

    Attributes:
        user: int64 ``[N]`` number of the user, ascending.
        item: int64 ``[N]`` number of the item, -1 for none. Numbers follow the order of the keys.
        row: int64 ``[N]`` row in the input, from 0.
        time: int64 ``[N]``, ascending with time, or None for a log without times.
        filled: bool ``[N]``, True for events whose time is that of another event, because they have none; or None.
        label: float64 ``[N]``, 0 or 1 or NaN, or None for a log without labels.
        split: int8 ``[N]`` 0 train, 1 valid, 2 test, -1 none; or None.
        features: other columns, by name.
        lists: list columns of pre-joined histories: item numbers, -1 for items that no row has.
        list_times: list columns with the times of the events of a history, by name.
        item_features: columns of the table of items, ``[I]``.
        user_keys: keys of the users, in the order of their numbers.
        item_keys: ``[I]`` keys of the items, in ascending order.
        item_texts: ``[I]`` rank of each key as text, if keys are numbers; rank as number, if they are texts of digits.
        ordered: True if a column gives the published order. Otherwise it is time, then row.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    row: NDArray[np.int64]
    time: NDArray[np.int64] | None = None
    filled: NDArray[np.bool_] | None = None
    label: NDArray[np.float64] | None = None
    split: NDArray[np.int8] | None = None
    features: dict[str, Values] = field(default_factory=dict)
    lists: dict[str, Lists] = field(default_factory=dict)
    list_times: dict[str, Lists] = field(default_factory=dict)
    item_features: dict[str, Values] = field(default_factory=dict)
    user_keys: NDArray[Any] = field(default_factory=lambda: np.zeros(0))
    item_keys: NDArray[Any] = field(default_factory=lambda: np.zeros(0))
    item_texts: NDArray[np.int64] | None = None
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def follows(self) -> NDArray[np.bool_]:
        """True for events that follow another one of their user, bool ``[N]``."""
        follows = np.zeros(len(self), bool)
        follows[1:] = self.user[1:] == self.user[:-1]
        return follows

    @cached_property
    def tied(self) -> NDArray[np.bool_]:
        """True for events with the time of the user's event before, bool ``[N]``. None in a log without times."""
        tied = np.zeros(len(self), bool)
        if self.time is not None:
            tied[1:] = self.time[1:] == self.time[:-1]
        return tied & self.follows

    @cached_property
    def recorded_ties(self) -> NDArray[np.bool_]:
        """``tied``, without events that have no time of their own or follow such an event, bool ``[N]``."""
        if self.filled is None:
            return self.tied
        return self.tied & ~self.filled & ~np.append(False, self.filled[:-1])

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """First event of each user that has one, and the number of events, int64 ``[U + 1]``."""
        return np.append(np.flatnonzero(~self.follows), len(self)).astype(np.int64)

    @property
    def last(self) -> NDArray[np.int64]:
        """Last event of each user, int64 ``[U]``."""
        return self.offsets[1:] - 1

    @cached_property
    def rank_in_user(self) -> NDArray[np.int64]:
        """Number of events of the user before each event, int64 ``[N]``."""
        lengths = np.diff(self.offsets)
        return np.arange(len(self)) - np.repeat(self.offsets[:-1], lengths)

    @cached_property
    def pair(self) -> NDArray[np.int64]:
        """Number of the pair of user and item, int64 ``[N]``."""
        return self.user * (int(self.item.max(initial=0)) + 2) + self.item

    def select(self, mask: NDArray[np.bool_]) -> Events:
        """Return the events where a mask is True, without list columns."""
        return self._take(np.flatnonzero(mask))

    def reorder(self, order: NDArray[np.int64]) -> Events:
        """Return the events in another order of the events of each user, without list columns."""
        return self._take(order)

    def _take(self, at: NDArray[np.int64]) -> Events:
        def own(array: Any) -> Any:
            return None if array is None else array[at]

        return replace(
            self,
            **{name: own(getattr(self, name)) for name in ("user", "item", "row", "time", "filled", "label", "split")},
            features={name: values.take(at) for name, values in self.features.items()},
            lists={},
            list_times={},
        )


def encode_keys(column: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the number of each key, -1 for null, and the distinct keys in ascending order."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if is_text(array.type):
        encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        keys = encoded.dictionary.to_numpy(zero_copy_only=False).astype(str)
        order = np.argsort(keys, kind="stable")
        rank = np.empty(len(keys), np.int64)
        rank[order] = np.arange(len(keys))
        index = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        codes = np.where(index >= 0, rank[index], -1) if len(keys) else np.full(len(array), -1)
        return codes.astype(np.int64), keys[order]
    nulls = np.asarray(array.is_null())
    values = pc.fill_null(array, 0).to_numpy(zero_copy_only=False) if nulls.any() else array.to_numpy()
    keys, codes = np.unique(values[~nulls], return_inverse=True)
    every = np.full(len(array), -1, np.int64)
    every[~nulls] = codes
    return every, keys


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type are texts."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_dictionary(kind)
    )


def read_values(column: pa.ChunkedArray) -> Values:
    """Return a column of numbers, times or texts as values."""
    if is_text(column.type):
        return Values(encode_keys(column)[0], is_text=True)
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    return Values(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64))
