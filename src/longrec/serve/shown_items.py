"""Items that users were shown, in memory: what frequency caps count.

A process counts what it has shown itself, and what the log of the pipeline held when it started. What other processes
show meanwhile is counted after the next start.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


class ShownItems:
    """Shown items by user and time.

    Args:
        span: largest time before a request that a cap looks at. Older items are forgotten.
    """

    def __init__(self, span: int) -> None:
        self.span = span
        self._times: dict[Any, list[int]] = defaultdict(list)
        self._items: dict[Any, list[Any]] = defaultdict(list)

    def take_over(self, former: ShownItems) -> None:
        """Share the items of another object, which may still record some."""
        self._times, self._items = former._times, former._items

    def record(self, user: Any, timestamp: int, items: Sequence[Any]) -> None:
        """Record the items of one answer."""
        times, own = self._times[user], self._items[user]
        at = bisect_left(times, timestamp + 1)  # requests may come with timestamps that do not increase
        times[at:at] = [timestamp] * len(items)
        own[at:at] = items
        old = bisect_left(times, times[-1] - self.span)
        del times[:old], own[:old]

    def count(self, user: Any, start: int, stop: int) -> Mapping[Any, int]:
        """Return how often each item was shown to a user from a start until strictly before a stop."""
        times = self._times.get(user)
        if times is None:
            return {}
        return Counter(self._items[user][bisect_left(times, start) : bisect_left(times, stop)])

    def load(self, folder: Path) -> None:
        """Record the last items of a log of impressions."""
        columns = ["user", "timestamp", "item"]
        tables = [pq.read_table(path, columns=columns) for path in sorted(folder.glob("impressions-*.parquet"))]
        if not any(table.num_rows for table in tables):
            return
        table = pa.concat_tables(tables)
        times = table["timestamp"].cast(pa.int64())
        last = pc.max(times).as_py()
        recent = table.set_column(1, "timestamp", times).filter(pc.greater_equal(times, last - self.span))
        for user, timestamp, item in zip(*(recent[name].to_pylist() for name in columns)):
            self.record(user, timestamp, [item])
