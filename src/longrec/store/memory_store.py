"""A history store in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longrec.store.column_types import validate_types, widen_types
from longrec.store.lsm import LsmTree
from longrec.store.segment import build_empty_segment


class MemoryStore(LsmTree):
    """Events that are lost when the process ends.

    Args:
        columns: type of each column.
        rows: number of key rows, row 0 included. None: any 64-bit integer is a key.
        identity: int64 column that identifies an event of a key and timestamp.
    """

    def __init__(self, columns: Mapping[str, Any], rows: int | None, identity: str | None = None) -> None:
        types = widen_types(validate_types(columns, identity, "store in memory"))
        super().__init__(build_empty_segment(types, rows), types, rows, identity)

    def __contains__(self, key: int) -> bool:
        """Return True if a key has events."""
        return self._memtable.get(key) is not None
