"""Fast lookup of the few keys of a request in an entity table, without building columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import RequestError, quote
from longrec.features.entity_table import EntityTable
from longrec.serve.request_json import Key

_REMEMBERED = 1 << 16
"""Number of integer keys whose rows are remembered."""


class Lookup:
    """Lookup of keys in one entity table. Row 0 is returned for unknown keys."""

    def __init__(self, table: EntityTable) -> None:
        values = table.keys.values
        self.numeric = table.keys.numeric
        self._rows: dict[Key, int] = {}
        if not self.numeric:
            self._rows = {key: row for row, key in enumerate(values.to_pylist(), 1)}
            return
        numbers = values.to_numpy(zero_copy_only=False)
        order = np.argsort(numbers, kind="stable")
        # One additional key, so that a search never ends past the last one.
        self._sorted_keys = np.append(numbers[order], np.iinfo(np.int64).max)
        self._sorted_rows = np.append(order + 1, 0)
        self._total = len(numbers)

    def find_rows(self, keys: NDArray[Any], where: str) -> NDArray[np.int64]:
        """Return the row of each key.

        Args:
            keys: int64, or text as objects, see ``to_key_array``.

        Raises:
            RequestError: 422 if keys are text and the log has integers, or the reverse.
        """
        if not len(keys):  # of no keys an array has no type
            return np.zeros(0, np.int64)
        if not self.numeric:
            texts = keys.tolist()
            if not all(type(key) is str for key in texts):
                raise self._build_type_error(next(key for key in texts if type(key) is not str), where)
            return np.array([self._rows.get(key, 0) for key in texts], np.int64)
        if keys.dtype != np.int64:
            raise self._build_type_error(next(key for key in keys.tolist() if type(key) is not int), where)
        at = self._sorted_keys.searchsorted(keys)
        return np.where(self._sorted_keys.take(at) == keys, self._sorted_rows.take(at), 0)

    def find_row(self, key: Key, where: str) -> int:
        """Return the row of one key, as ``find_rows``, without arrays.

        Raises:
            RequestError: as ``find_rows``.
        """
        if type(key) is not (int if self.numeric else str):
            raise self._build_type_error(key, where)
        row = self._rows.get(key)
        if row is not None or not self.numeric:
            return row or 0
        at = int(self._sorted_keys.searchsorted(key))
        row = int(self._sorted_rows[at]) if self._sorted_keys[at] == key else 0
        if len(self._rows) >= _REMEMBERED:
            self._rows.clear()
        self._rows[key] = row
        return row

    def _build_type_error(self, key: Key, where: str) -> RequestError:
        actual, expected = ("text", "integers") if self.numeric else ("integers", "text")
        do = "write the ids as in the log"
        return RequestError(where, f"{actual}, for example {quote(key)}", f"{expected}, as in the log", do, 422)
