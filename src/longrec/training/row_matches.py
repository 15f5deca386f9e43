"""Rows of embedding tables of an earlier run, matched with those of a new log by the values that they stand for.

A value keeps its row, wherever its id is in the new vocabulary. Rows of values that only the new log has are not
matched, and those of values that it does not have are dropped. The reserved rows (missing, unseen, not yet available)
keep their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.errors import DataError
from longrec.features.feature_encoders import (
    FIRST,
    UNSEEN,
    BucketizedEncoder,
    CrossEncoder,
    Encoder,
    HashEncoder,
    IdEncoder,
    LogSquareEncoder,
    NumericEncoder,
    dump_encoder,
)


@dataclass(frozen=True)
class RowMatch:
    """Rows of one table.

    Attributes:
        source, target: row in the former and in the new table of each match, int64 ``[m]``.
        before, now: numbers of rows of the former and of the new table.
        by_interval: True if rows are those of numeric intervals, whose edges differ.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    before: int
    now: int
    by_interval: bool = False

    @property
    def new(self) -> int:
        """Number of rows that keep their initial values."""
        return self.now - len(np.unique(self.target))

    @property
    def dropped(self) -> int:
        """Number of former rows that no new row has."""
        return self.before - len(np.unique(self.source))

    @property
    def is_identity(self) -> bool:
        """True if every row stays where it is."""
        every = np.arange(self.before)
        return self.before == self.now and all(np.array_equal(rows, every) for rows in (self.source, self.target))

    def fill_unseen(self) -> RowMatch:
        """Return these matches, and the row of unseen values as the source of every new row."""
        new = np.setdiff1d(np.arange(self.now), self.target)
        source, target = np.concatenate([self.source, np.full(len(new), UNSEEN)]), np.concatenate([self.target, new])
        return RowMatch(source, target, self.before, self.now, self.by_interval)

    def copy(self, former: Tensor, initial: Tensor) -> Tensor:
        """Return a copy of ``initial`` with the matched rows of ``former``."""
        result = initial.detach().clone()
        rows = former.detach().index_select(0, torch.from_numpy(self.source).to(former.device))
        result.index_copy_(0, torch.from_numpy(self.target).to(result.device), rows.to(result))
        return result


@dataclass
class TableReport:
    """What a warm start carried of one table.

    Attributes:
        table: name of the parameter.
        matched, new, dropped: numbers of rows.
    """

    table: str
    matched: int
    new: int
    dropped: int


@dataclass
class CarryReport:
    """What a warm start carried.

    Attributes:
        run: folder of the run.
        tables: tables whose rows moved.
        unchanged: number of other tensors, all of which were copied.
        optimizer: True if the state of the optimizer was carried too.
        notes: one sentence per feature whose numbers have another meaning now.
    """

    run: str
    tables: list[TableReport] = field(default_factory=list)
    unchanged: int = 0
    optimizer: bool = True
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts for JSON."""
        return {**vars(self), "tables": [vars(table) for table in self.tables]}

    def describe(self) -> str:
        """Return a table as text, with the rows carried per table."""
        state = "with optimizer state" if self.optimizer else "with a new optimizer state"
        lines = [f"warm start from {self.run}: {self.unchanged:,} tensors as they were, {state}"]
        if self.tables:
            width = max(len("table"), *(len(table.table) for table in self.tables))
            lines.append(f"  {'table':<{width}}  rows matched         new     dropped")
            lines += [
                f"  {table.table:<{width}}  {table.matched:>12,}{table.new:>12,}{table.dropped:>12,}"
                for table in self.tables
            ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def find_encoding_fault(name: str, before: Encoder | None, now: Encoder | None) -> str:
    """Return why the values of a feature cannot be matched, or an empty string."""
    if before is None and now is None:
        return ""  # computed columns, tokens and knowledge
    if before is None or now is None or before.kind != now.kind:
        kinds = [getattr(encoder, "kind", "no encoder") for encoder in (before, now)]
        return f"feature {name!r} was encoded as {kinds[0]} and is {kinds[1]} here"
    if isinstance(before, IdEncoder) and isinstance(now, IdEncoder):
        return _find_key_fault(name, before, now)
    if isinstance(before, (HashEncoder, CrossEncoder)) and isinstance(now, (HashEncoder, CrossEncoder)):
        return _find_hash_fault(name, before, now)
    if isinstance(before, NumericEncoder) and isinstance(now, NumericEncoder):
        return "" if before.scale == now.scale else f"feature {name!r} had scale {before.scale} and has {now.scale}"
    if isinstance(before, (BucketizedEncoder, LogSquareEncoder)):
        return ""
    return "" if dump_encoder(before) == dump_encoder(now) else f"feature {name!r} has other settings"


def _find_key_fault(name: str, before: IdEncoder, now: IdEncoder) -> str:
    if not len(before.keys) or not len(now.keys):
        return ""
    try:
        common = (now.keys.index(before.keys.values, name) >= 0).any()
    except DataError as error:
        return f"feature {name!r}: the new log has another type of ids ({error.found}; expected {error.expected})"
    return "" if common else f"feature {name!r}: none of its {len(before.keys):,} values is in the new log"


def _find_hash_fault(name: str, before: HashEncoder | CrossEncoder, now: HashEncoder | CrossEncoder) -> str:
    if before.buckets != now.buckets:
        return f"feature {name!r} had hash: {before.buckets} and has {now.buckets}, whose buckets are others"
    one, other = (e.numeric if isinstance(e.numeric, tuple) else (e.numeric,) for e in (before, now))
    if len(one) != len(other) or any(a is not None and b is not None and a != b for a, b in zip(one, other)):
        return f"feature {name!r}: its columns have other types, which hash to other buckets"
    return ""


def describe_change(name: str, before: Encoder | None, now: Encoder | None) -> str:
    """Return a sentence if the numbers of a feature are scaled otherwise than before, else an empty string."""
    if isinstance(before, NumericEncoder) and isinstance(now, NumericEncoder) and before != now:
        return (
            f"feature {name}: its scale was fitted anew (shift {before.shift:g} to {now.shift:g}, spread "
            f"{before.spread:g} to {now.spread:g}); its weights were copied"
        )
    if isinstance(before, (BucketizedEncoder, LogSquareEncoder)) and before != now:
        return f"feature {name}: its buckets have other edges; each took the row of the former bucket at its middle"
    return ""


def match_rows(before: Encoder, now: Encoder, rows_before: int, rows_now: int) -> RowMatch | None:
    """Return the matches of a table, or None if all rows stay where they are.

    Args:
        before, now: encoders of the feature that owns the table, for which there is no encoding fault.
        rows_before, rows_now: heights of the tables: the rows of the encoder, and one more for feedback.
    """
    reserved = np.arange(FIRST)
    if isinstance(before, IdEncoder) and isinstance(now, IdEncoder):
        ids = now.keys.index(before.keys.values, "").astype(np.int64)
        kept = np.flatnonzero(ids >= 0)
        source, target = np.concatenate([reserved, kept + FIRST]), np.concatenate([reserved, ids[kept] + FIRST])
        by_interval = False
    elif isinstance(before, (BucketizedEncoder, LogSquareEncoder)):
        assert isinstance(now, (BucketizedEncoder, LogSquareEncoder))
        own = _match_buckets(before, now)
        source, target = np.concatenate([reserved, own]), np.arange(now.rows)
        by_interval = True
    else:
        return None
    if rows_before > before.rows and rows_now > now.rows:  # the last row of feedback: not yet available
        source, target = np.append(source, rows_before - 1), np.append(target, rows_now - 1)
    match = RowMatch(source.astype(np.int64), target.astype(np.int64), rows_before, rows_now, by_interval)
    return None if match.is_identity else match


def _match_buckets(
    before: BucketizedEncoder | LogSquareEncoder, now: BucketizedEncoder | LogSquareEncoder
) -> NDArray[np.int64]:
    """Return the id in the former encoder of the middle of each bucket of the new one."""
    if isinstance(before, LogSquareEncoder) and isinstance(now, LogSquareEncoder):
        return np.clip(np.arange(now.low, now.high + 1), before.low, before.high) - before.low + FIRST
    assert isinstance(before, BucketizedEncoder)
    assert isinstance(now, BucketizedEncoder)
    edges = np.asarray(now.edges)
    # A bucket without one end is represented by a value just inside it.
    middles = np.concatenate([np.nextafter(edges[:1], -np.inf), (edges[:-1] + edges[1:]) / 2, edges[-1:]])
    return np.searchsorted(np.asarray(before.edges), middles, side="right") + FIRST
