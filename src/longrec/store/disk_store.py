"""A history store on disk: one immutable, memory-mapped segment, and the events appended since, in memory.

Appended events are lost when the process ends. ``lsm_store.LsmStore`` keeps them.
"""

from __future__ import annotations

from pathlib import Path

from longrec.store.column_types import get_array_type, widen_types
from longrec.store.lsm import LsmTree
from longrec.store.segment import Segment


class DiskStore(LsmTree):
    """A segment and a memtable, merged by time. The segment's events come first where times are equal."""

    def __init__(self, segment: Segment) -> None:
        types = widen_types({name: get_array_type(column) for name, column in segment.columns.items()})
        super().__init__(segment, types, segment.rows if segment.keys is None else None, None)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> DiskStore:
        """Open a store by mapping its segment.

        Raises:
            StoreError: if the segment is missing, damaged, or has another format version.
        """
        return cls(Segment.open(folder, verify=verify))
