"""A history store on disk: one immutable, memory-mapped segment, and the events appended since, in memory.

What was appended is not durable: it is gone with the process. ``durable.LsmStore`` keeps it.
"""

from __future__ import annotations

from pathlib import Path

from longrec.store.column_types import get_array_type, widen_types
from longrec.store.lsm import LsmTree
from longrec.store.segment import Segment


class DiskStore(LsmTree):
    """A segment and a delta, read as one: merged by time, the segment's events first where times are equal."""

    def __init__(self, segment: Segment) -> None:
        types = widen_types({name: get_array_type(column) for name, column in segment.columns.items()})
        super().__init__(segment, types, segment.rows if segment.keys is None else None, None)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> DiskStore:
        """Map a segment.

        Raises:
            StoreError: missing, damaged, or of another version.
        """
        return cls(Segment.open(folder, verify=verify))
