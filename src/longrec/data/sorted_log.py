"""Sorted log: a folder with the events of a log by user and time, its users, its items, and facts about them.

    events/part-0.parquet    _user _item _time (_moment, _available, _order, _row), and the raw columns as c.NAME
    users.parquet            key, in ascending order, and each raw column of the user features as c.NAME
    users.dated.parquet      key_row, since, and c.NAME: the rows of a table with as_of, by key and time
    items.parquet            like users.parquet, and items.dated.parquet
    facts.json               names for messages, the number of rows, the detected time unit, the types of raw columns

Preparation after the sort reads this folder and nothing else, so a sorted log can have several writers. The writer has
checked the raw columns: keys and times are not null, and numbers are no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.errors import DataError
from longrec.features.entity_versions import Versions
from longrec.features.manifest import read_manifest
from longrec.features.schema import Schema
from longrec.features.vocabulary import Keys
from longrec.progress import Progress

FORMAT = "longrec-sorted-1"
USER, ITEM, TIME, REQUEST_TIME, AVAILABLE_AT, ORDER = "_user", "_item", "_time", "_moment", "_available", "_order"
ROW = "_row"
SHARD = "events/part-0.parquet"
"""The only file of events. More of them would each have the users of one hash value."""
KEY, KEY_ROW, SINCE = "key", "key_row", "since"
_FACTS = "facts.json"
_COMMON = 50


def chunk_rows(schema: Schema) -> int:
    """Return the number of rows per chunk. It is smaller for prejoined logs, whose rows are about ten times as wide."""
    return 50_000 if schema.prejoined else 500_000


@dataclass(frozen=True)
class TableFacts:
    """Facts about the users or the items.

    Attributes:
        sources: name for messages of the input that has each column, by column.
        own: columns of the entity table. The others are those of the log.
        table: name of the entity table in warnings. None without one.
        as_of: column with the timestamp of each row of the entity table, if its rows are versions.
    """

    sources: Mapping[str, str]
    own: tuple[str, ...] = ()
    table: str | None = None
    as_of: str | None = None


@dataclass(frozen=True)
class Facts:
    """Facts about a sorted log.

    Attributes:
        source: name of the log in messages.
        rows: number of events.
        unit: detected unit of the time column, if the schema leaves it open and values are near 1970.
        split_column: raw column with the split of each row.
        list_types: Arrow type of the values of a feature in lists and separated text, for pre-joined histories.
        has_integers: whether the column of a feature with a configured vocabulary has integers. None if unknown.
        users, items: facts about the entities.
    """

    source: str
    rows: int
    unit: str | None
    split_column: str | None
    list_types: Mapping[str, str]
    has_integers: Mapping[str, bool | None]
    users: TableFacts
    items: TableFacts

    def save(self, folder: Path) -> None:
        """Write the facts into the folder of a sorted log, which is complete with this file."""
        (folder / _FACTS).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Facts:
        """Read the facts of a sorted log.

        Raises:
            DataError: no sorted log in the folder, or one of another format.
        """
        do = "write the sorted log anew"
        content = read_manifest(folder / _FACTS, FORMAT, "a sorted log", do, DataError)
        content.pop("format")
        for role in ("users", "items"):
            content[role] = TableFacts(**{**content[role], "own": tuple(content[role]["own"])})
        return cls(**content)


class SortedLog:
    """A sorted log, opened for reading.

    Attributes:
        facts: facts about the log.
        users, items: its entities.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.facts = folder, Facts.load(folder)
        self.users = SortedTable(folder / "users", self.facts.users)
        self.items = SortedTable(folder / "items", self.facts.items)

    @property
    def source(self) -> str:
        """Name of the log in messages."""
        return self.facts.source

    def __len__(self) -> int:
        return self.facts.rows

    def describe(self, column: str) -> str:
        """Return the name of a raw column in messages."""
        return f"{self.source}: column {column!r}"

    def set_unit(self, schema: Schema) -> Schema:
        """Return the schema with the time unit that the writer detected."""
        if schema.time is None or self.facts.unit is None:
            return schema
        return schema.model_copy(update={"time": schema.time.model_copy(update={"unit": self.facts.unit})})

    def read(self, columns: list[str], rows: int, what: str) -> Iterator[tuple[slice, pa.RecordBatch]]:
        """Yield the events in chunks, each with its range of rows.

        Args:
            columns: names in the file, such as ``_user`` and ``c.price``.
            rows: number of rows per chunk.
            what: name of the pass for the progress line.
        """
        at = 0
        with Progress(len(self), f"prepare: {what}", "rows") as progress:
            for chunk in pq.ParquetFile(self.folder / SHARD).iter_batches(rows, columns=columns):
                yield slice(at, at + len(chunk)), chunk
                at += len(chunk)
                progress.advance(len(chunk))

    def count_values(self, column: str) -> list[tuple[Any, int]]:
        """Return the most frequent values of a raw column, each with its count."""
        counted = pc.value_counts(self._column(column).drop_null())
        pairs = [(one["values"], one["counts"]) for one in counted.to_pylist()]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:_COMMON]

    def find_range(self, column: str) -> tuple[Any, Any]:
        """Return the smallest and the largest value of a raw column, or nulls if it has only nulls."""
        ends = pc.min_max(self._column(column)).as_py()
        return ends["min"], ends["max"]

    def _column(self, column: str) -> pa.ChunkedArray:
        return pq.read_table(self.folder / SHARD, columns=[f"c.{column}"])[f"c.{column}"]


class SortedTable:
    """The users or the items of a sorted log: keys, versions and raw columns.

    Args:
        path: path of the files without their suffix.
    """

    def __init__(self, path: Path, facts: TableFacts) -> None:
        self.facts = facts
        self._plain, self._dated = path.with_suffix(".parquet"), path.with_suffix(".dated.parquet")

    @cached_property
    def keys(self) -> Keys:
        """Keys in ascending order."""
        return Keys(self._read(self._plain, KEY))

    @cached_property
    def versions(self) -> Versions | None:
        """Versions of the rows of an entity table with ``as_of``, else None."""
        if self.facts.as_of is None:
            return None
        rows = self._read(self._dated, KEY_ROW).to_numpy()
        counts = np.bincount(rows + 1, minlength=len(self.keys) + 1)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Versions(offsets, self._read(self._dated, SINCE).to_numpy())

    def is_dated(self, column: str) -> bool:
        """Return whether a raw column has one value per version, and not one per key."""
        return self.facts.as_of is not None and column in self.facts.own

    def values(self, column: str) -> pa.Array:
        """Return the values of a raw column, in the order of the keys or of the versions."""
        return self._read(self._dated if self.is_dated(column) else self._plain, f"c.{column}")

    def describe(self, column: str) -> str:
        """Return the name of a raw column in messages."""
        return f"{self.facts.sources[column]}: column {column!r}"

    @staticmethod
    def _read(path: Path, column: str) -> pa.Array:
        values = pq.ParquetFile(path).read(columns=[column], use_threads=False)[column]
        return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
