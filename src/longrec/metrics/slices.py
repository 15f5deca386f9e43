"""Slices of users by activity and of items by popularity, so that metrics can be read for each.

Shapes: N values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import Ints, as_numbers

HEAD_MID_TAIL = ("head", "mid", "tail")
CUTS = (0.5, 0.8)
"""Shares of all events at which head and mid end."""


@dataclass(frozen=True)
class Slices:
    """A division of N users or items.

    Attributes:
        names: name of each slice.
        number: int64 ``[N]``, slice of each.
    """

    names: tuple[str, ...]
    number: Ints


def slice_by_share(count: ArrayLike, cuts: Sequence[float] = CUTS, names: Sequence[str] = HEAD_MID_TAIL) -> Slices:
    """Return slices of items by their share of all events. The head are the most popular items, with half of them.

    Items are in descending order of their counts. An item is in the head if those before it have less than the first
    cut of all events, and so on. Items of equal count may be in two slices, in the order of the items. Items without
    an event are in the last slice.

    Args:
        count: ``[I]`` number of events of each item, not negative.
        cuts: ascending shares, each above 0 and below 1.
        names: one more name than cuts.

    Raises:
        DataError: if a count is negative, or all are 0.
        ConfigError: if cuts and names do not fit.

    >>> slices = slice_by_share([1, 50, 0, 30, 19])
    >>> [slices.names[number] for number in slices.number]
    ['tail', 'head', 'tail', 'mid', 'tail']
    """
    count_I = as_numbers(count, "count")
    if count_I.min() < 0 or not count_I.any():
        raise DataError("column 'count'", f"{count_I.min():g} to {count_I.max():g}", "none negative, one positive")
    ascending = all(low < high for low, high in zip([0.0, *cuts], [*cuts, 1.0]))
    if not ascending or len(names) != len(cuts) + 1:
        raise ConfigError("slices", [f"cuts {list(cuts)} and names {list(names)} do not fit: ascending, one name more"])
    order = np.argsort(-count_I, kind="stable")
    before = np.cumsum(count_I[order]) - count_I[order]
    number = np.empty(len(order), np.int64)
    number[order] = np.searchsorted(np.asarray(cuts), before / count_I.sum(), "right")
    number[count_I == 0] = len(cuts)
    return Slices(tuple(names), number)


def slice_by_quantile(values: ArrayLike, bins: int = 4, unit: str = "events") -> Slices:
    """Return slices of about equal size by a value, such as the events of each user. Equal values stay together.

    Args:
        values: ``[N]`` finite numbers.
        bins: number of slices. Fewer where many values are equal.
        unit: what the values count, for the names.

    Raises:
        DataError: if the column cannot be used.
        ConfigError: if there are fewer than two bins.

    >>> slice_by_quantile([1, 1, 2, 3, 8, 9], bins=2)
    Slices(names=('1 to 2 events', '3 to 9 events'), number=array([0, 0, 0, 1, 1, 1]))
    """
    if bins < 2:
        raise ConfigError("bins", [f"must be at least 2, got {bins}"])
    value_N = as_numbers(values, "values")
    edges = np.unique(np.quantile(value_N, np.arange(1, bins) / bins))
    _, number = np.unique(np.searchsorted(edges, value_N, "left"), return_inverse=True)
    ends = [(value_N[number == one].min(), value_N[number == one].max()) for one in range(int(number.max()) + 1)]
    names = [f"{low:,g} {unit}" if low == high else f"{low:,g} to {high:,g} {unit}" for low, high in ends]
    return Slices(tuple(names), number.astype(np.int64))
