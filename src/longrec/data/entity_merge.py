"""Users or items of a prepared log, extended by those of new rows.

A key that the log does not have reads as unseen, as a server reads an unknown key. Its other features are those of the
new rows or of a table that came with them, and missing otherwise. A key of the log keeps its values, except those of a
table that came with the new rows: their values replace the former ones, and their versions are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.availability import expand_ranges
from longrec.features.entity_table import EntityTable
from longrec.features.entity_versions import Versions
from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import concat_lists, gather_lists
from longrec.features.vocabulary import Keys


@dataclass(frozen=True)
class NewEntities:
    """Users or items of new rows and of a table that came with them.

    Attributes:
        table: their keys in ascending order, with the features that the new input has.
        listed: mask of the rows of ``table``, row 0 included, that the table of the new input has.
        listed_features: features that are read from the table of the new input.
        key_features: features that read the key itself.
    """

    table: EntityTable
    listed: NDArray[np.bool_]
    listed_features: frozenset[str]
    key_features: frozenset[str]


def merge_all(old: EntityTable, new: NewEntities) -> EntityTable:
    """Return a table of all former entities, each in its former row, followed by those that only ``new`` has."""
    of_new = old.rows(new.table.keys.values, "key").astype(np.int64)
    added = np.flatnonzero(of_new == 0) + 1
    from_old = np.concatenate([np.arange(len(old)), np.zeros(len(added), np.int64)])
    from_new = np.zeros(len(from_old), np.int64)
    from_new[of_new] = np.arange(1, len(of_new) + 1)
    from_new[0] = 0
    from_new[len(old) :] = added
    values = new.table.keys.values.take(pa.array(added - 1))
    keys = old.keys if not len(added) else Keys(pa.concat_arrays([old.keys.values, values.cast(old.keys.values.type)]))
    return _merge(keys, old, new, from_old, from_new)


def merge_selected(old: EntityTable, new: NewEntities) -> tuple[EntityTable, NDArray[np.int64]]:
    """Return a table of the entities of ``new`` alone, and their rows in ``old``, 0 for those it does not have."""
    from_old = np.concatenate([[0], old.rows(new.table.keys.values, "key")]).astype(np.int64)
    return _merge(new.table.keys, old, new, from_old, np.arange(len(from_old))), from_old


def _merge(
    keys: Keys, old: EntityTable, new: NewEntities, from_old: NDArray[np.int64], from_new: NDArray[np.int64]
) -> EntityTable:
    """Return the table of given keys.

    Args:
        from_old, from_new: row of each entity in both tables, int64 ``[E]``, 0 if it is in none.
    """
    replaced = new.listed.take(from_new)
    columns: dict[str, NDArray[Any] | Lists] = {}
    for name, column in old.columns.items():
        index = from_old
        if name in new.table.columns and name not in new.key_features:
            chosen = (from_new > 0) & (replaced if name in new.listed_features else from_old == 0)
            index = np.where(chosen, len(column) + from_new, from_old)
            column = _concat(column, new.table.columns[name]) if chosen.any() else column
        columns[name] = _take(column, index)
    if old.versions is None:
        return EntityTable(keys, columns)
    versions, entries = _merge_versions(old.versions, new.table.versions, from_old, from_new)
    dated: dict[str, NDArray[Any] | Lists] = {}
    for name, column in old.dated.items():
        own, index = new.table.dated.get(name), entries
        if own is None:  # the new versions have no value
            index = np.where(entries <= len(old.versions.times), entries, 0)
        dated[name] = _take(column if own is None else _concat(column, own), index)
    return EntityTable(keys, columns, versions, dated)


def _merge_versions(
    old: Versions, new: Versions | None, from_old: NDArray[np.int64], from_new: NDArray[np.int64]
) -> tuple[Versions, NDArray[np.int64]]:
    """Return the versions of entities from both tables, and where each is in the columns of old and new together.

    A new version replaces a former one of the same timestamp.

    Returns:
        Versions, and int64 ``[1 + V]``: entry 0, then that of each version, in columns with the entries of ``old``
        (entry 0 included) followed by those of ``new``.
    """
    owners, times, entries = [], [], []
    tables = [(old, from_old, 1)] if new is None else [(old, from_old, 1), (new, from_new, len(old.times) + 2)]
    for table, rows, first_entry in tables:
        first = table.offsets.take(rows)
        at, offsets = expand_ranges(first, table.offsets.take(rows + 1) - first)
        owners.append(np.repeat(np.arange(len(rows)), np.diff(offsets)))
        times.append(table.times.take(at))
        entries.append(first_entry + at)
    owner, time, entry = np.concatenate(owners), np.concatenate(times), np.concatenate(entries)
    order = np.lexsort((entry, time, owner))
    owner, time, entry = owner[order], time[order], entry[order]
    newest = np.ones(len(owner), bool)
    newest[:-1] = (np.diff(owner) != 0) | (np.diff(time) != 0)
    owner, time, entry = owner[newest], time[newest], entry[newest]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(from_old)))]).astype(np.int64)
    return Versions(offsets, time), np.concatenate([[0], entry]).astype(np.int64)


def _concat(one: NDArray[Any] | Lists, other: NDArray[Any] | Lists) -> NDArray[Any] | Lists:
    if isinstance(one, Lists) and isinstance(other, Lists):
        return concat_lists([one, other])
    assert not isinstance(one, Lists)
    assert not isinstance(other, Lists)
    return np.concatenate([one, other])


def _take(column: NDArray[Any] | Lists, index: NDArray[np.int64]) -> NDArray[Any] | Lists:
    """Return the entries of a column, or the column itself if they are all of it in order."""
    if len(index) == len(column) and (index == np.arange(len(index))).all():
        return column
    return gather_lists(column, index) if isinstance(column, Lists) else column.take(index, axis=0)
