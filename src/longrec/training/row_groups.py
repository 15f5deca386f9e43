"""Groups of predicted rows: new and known users and items, their activity in train, and the length of the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.row_counts import RowCounts
from longrec.data.splits import SPLITS

_EDGES = (1, 10, 100, 1_000, 10_000)


@dataclass(frozen=True)
class RowGroups:
    """One division of rows.

    Attributes:
        title: what the rows are divided by.
        names: name of each group.
        codes: group of each row, int64 ``[N]``, an index into ``names``.
    """

    title: str
    names: tuple[str, ...]
    codes: NDArray[np.int64]


def group_rows(log: Log, rows: NDArray[np.int64]) -> list[RowGroups]:
    """Return the divisions of rows that have two groups or more with rows."""
    train = RowCounts.of(log, log.splits, (SPLITS["train"],))
    user, item = train.users.take(log.user(rows)), train.items.take(log.events.columns["item"].take(rows))
    groups = [
        RowGroups("User", ("new: no event in train", "known"), (user > 0).astype(np.int64)),
        RowGroups("Item", ("new: no event in train", "known"), (item > 0).astype(np.int64)),
        _divide("Events of the user in train", user, _EDGES),
        _divide("Events of the item in train", item, _EDGES),
    ]
    for name, history in log.schema.histories.items():
        if history.source is None:
            edges = [edge for edge in _EDGES if edge < history.max_length]
            lengths = log.compute_history_lengths(name, rows)
            groups.append(_divide(f"Length of history {name}", lengths, edges, history.max_length))
    return [one for one in groups if len(np.unique(one.codes)) > 1]


def _divide(title: str, counts: NDArray[np.int64], edges: Sequence[int], maximum: int | None = None) -> RowGroups:
    """Divide rows by a count: 0, 1 to 9, 10 to 99, and so on, and the maximum on its own."""
    starts = [0, *edges, *([] if maximum is None else [maximum])]
    stops = [start - 1 for start in starts[1:]]
    names = [f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in zip(starts, stops)]
    names.append(f"{starts[-1]:,} or more" if maximum is None else f"{maximum:,} (maximum)")
    return RowGroups(title, tuple(names), np.searchsorted(starts, counts, side="right") - 1)
