"""A history store in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longrec.store.column_types import validate_types, widen_types
from longrec.store.lsm import LsmTree
from longrec.store.segment import build_empty_segment


class MemoryStore(LsmTree):
    """Events that are gone with the process.

    Args:
        columns: type of each column.
        rows: how many key rows there are, row 0 included; None: any 64-bit integer is a key.
        identity: the int64 column that names an event of a key and moment.
    """

    def __init__(self, columns: Mapping[str, Any], rows: int | None, identity: str | None = None) -> None:
        types = widen_types(validate_types(columns, identity, "store in memory"))
        super().__init__(build_empty_segment(types, rows), types, rows, identity)

    def __contains__(self, key: int) -> bool:
        """Whether a key owns events."""
        return self._memtable.get(key) is not None
