"""Items that existed at a request, for the stages of a pipeline, as ``training/full_ranking.py`` ranks them.

With ``evaluate.catalog: existing`` a candidate source retrieves only items with an event strictly before the request,
so that later items take no place in its list. As in a full ranking, a relevant item always exists. Items that the log
does not have, such as those added to a bundle after its export, never exist. With ``all`` nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.catalog import compute_first_timestamps
from longrec.data.log import Log
from longrec.features.history_columns import NEVER

Eligible = Callable[[NDArray[Any]], NDArray[np.bool_]]


class ItemRows:
    """Rows of the item table of a log by the keys of the catalogs of bundles, which are looked up once per catalog."""

    def __init__(self, log: Log) -> None:
        keys = log.items.keys.values.to_numpy(zero_copy_only=False)
        self._rows: dict[int, tuple[NDArray[Any], NDArray[np.int64]]] = {}
        # An array of integers is searched, and one of text is looked up.
        self._order = np.argsort(keys, kind="stable") if log.items.keys.numeric else None
        self._sorted = keys if self._order is None else keys[self._order]
        self._named = {} if log.items.keys.numeric else {key: row for row, key in enumerate(keys.tolist(), 1)}

    def of_catalog(self, keys: NDArray[Any]) -> NDArray[np.int64]:
        """Return the rows of the keys of a catalog, int64 ``[I]``, 0 for an item that the log does not have."""
        stored = self._rows.get(id(keys))
        if stored is None or stored[0] is not keys:
            stored = self._rows[id(keys)] = (keys, self.find(keys))
        return stored[1]

    def find(self, keys: NDArray[Any]) -> NDArray[np.int64]:
        """Return the rows of some keys, int64 ``[C]``, 0 for an item that the log does not have."""
        if not len(keys) or not len(self._sorted):
            return np.zeros(len(keys), np.int64)
        if self._order is None:
            return np.array([self._named.get(key, 0) for key in keys.tolist()], np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at] + 1, 0)


class ExistingItems:
    """Which items existed at a timestamp.

    Args:
        log: the log.
        rows: rows of its item table by the keys of catalogs.
        catalog: ``existing``, or ``all``.
    """

    def __init__(self, log: Log, rows: ItemRows, catalog: str) -> None:
        self.rows = rows
        self.first = compute_first_timestamps(log) if catalog == "existing" else None
        if self.first is not None:
            self.first[0] = NEVER

    def at(self, timestamp: int, relevant: NDArray[np.int64]) -> Eligible | None:
        """Return the function of a request, or None if all items are eligible.

        Args:
            relevant: rows of the relevant items, which always exist.
        """
        if self.first is None:
            return None
        existing_I = self.first < timestamp
        existing_I[relevant] = True
        existing_I[0] = False
        return lambda keys: existing_I[self.rows.of_catalog(keys)]

    def mask(self, timestamp: int, relevant: NDArray[np.int64], items: int) -> NDArray[np.bool_]:
        """Return which rows of the item table a floor may list, bool ``[I]``."""
        existing_I = np.ones(items, bool) if self.first is None else self.first < timestamp
        existing_I[relevant] = True
        existing_I[0] = False
        return existing_I
