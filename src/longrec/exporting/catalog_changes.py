"""Changes of the catalog of a bundle since its export: items that were added, withdrawn, or have other raw columns.

They are one file in a folder beside the bundle, by default ``BUNDLE.catalog``::

    catalog.json    digest of the bundle, number of the revision, and each changed item once, in the order of their
                    first change: {"item": key, "columns": {raw column: value}, "withdrawn": false}

A change names an item and the raw columns to replace. An item that the bundle lacks is added: it needs every column
that features of items read, null for a missing value. ``withdrawn: true`` hides an item until a later change shows it
again. The file is replaced in one step, and the same changes leave it as it is.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, TypeGuard

import pyarrow.parquet as pq

from longrec.errors import BundleError, DataError, StoreError, describe_unknown_names, quote
from longrec.exporting.bundle import Bundle
from longrec.features.manifest import read_manifest
from longrec.store.compaction import sync_path

try:
    import fcntl
except ImportError:  # no locks of files on this system: only one process may write there
    fcntl = None  # type: ignore[assignment]

FORMAT, NAME = "longrec-catalog-1", "catalog.json"
WITHDRAWN = "withdrawn"
"""Key of a change that hides an item. No raw column may have this name."""
LOCK_SECONDS = 5.0
"""Longest wait for another process that changes items."""
_DEEPEST = 16
"""Largest number of lists inside each other in a raw value."""

Key = int | str


@dataclass(frozen=True)
class ChangedItem:
    """All changes of one item together.

    Attributes:
        columns: raw values that replace those of the bundle.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    withdrawn: bool = False


@dataclass(frozen=True)
class CatalogChanges:
    """All changes since the bundle, by item, in the order of the first change of each item."""

    revision: int = 0
    items: Mapping[Key, ChangedItem] = field(default_factory=dict)

    def merge(self, changes: Iterable[tuple[Key, ChangedItem, bool]]) -> CatalogChanges:
        """Return these changes and later ones. The revision is the same if nothing changes.

        Args:
            changes: item, its columns, and whether the change says if it is withdrawn.
        """
        items = dict(self.items)
        for key, change, says in changes:
            before = items.get(key, ChangedItem())
            withdrawn = change.withdrawn if says else before.withdrawn
            items[key] = ChangedItem({**before.columns, **change.columns}, withdrawn)
        return self if items == self.items else CatalogChanges(self.revision + 1, items)

    def save(self, folder: Path, bundle: Bundle) -> None:
        """Replace the file of a folder, durably and in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "bundle": bundle.digest,
            "revision": self.revision,
            "items": [
                {"item": key, "columns": one.columns, WITHDRAWN: one.withdrawn} for key, one in self.items.items()
            ],
        }
        half = folder / f".{NAME}"
        half.write_text(json.dumps(content), encoding="utf-8")
        sync_path(half)
        os.replace(half, folder / NAME)
        sync_path(folder)

    @classmethod
    def load(cls, folder: Path, bundle: Bundle) -> CatalogChanges:
        """Read the changes in a folder, none if it has no file.

        Raises:
            BundleError: if the file cannot be read, or belongs to another bundle.
        """
        path = folder / NAME
        if not path.exists():
            return cls()
        do = "apply the changes again: longrec catalog"
        content = read_manifest(path, FORMAT, "the changes of a catalog", do, BundleError)
        if content.get("bundle") != bundle.digest:
            do = "remove the folder, and apply the changes that the new bundle lacks"
            raise BundleError(str(folder), "the changes of another bundle", f"those of {bundle.path}", do)
        items = {one["item"]: ChangedItem(one["columns"], one[WITHDRAWN]) for one in content["items"]}
        return cls(content["revision"], items)


class ChangesLock:
    """Lock of a folder of changes against other writers, while they are read and replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Wait for the lock.

        Raises:
            StoreError: if another process does not release it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = file = (self._folder / ".lock").open("w")
        end = time.monotonic() + LOCK_SECONDS
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    problem = f"another process has changed items for {LOCK_SECONDS:g} s"
                    raise StoreError(str(self._folder), problem, "one process at a time", "try again") from None
            time.sleep(0.01)

    def close(self) -> None:
        """Release the lock, if it was acquired."""
        if self._file is not None:
            self._file.close()


def locate_changes(bundle: Path) -> Path:
    """Return the folder with the changes of a bundle."""
    return bundle.with_name(f"{bundle.name}.catalog")


def read_changes(path: str | Path) -> list[Mapping[str, Any]]:
    """Read changes from a file of JSON lines or of Parquet.

    In Parquet every row has every column, so that a null is a missing value and not an unchanged one.

    Raises:
        DataError: if the file is neither, or a line is no JSON object.
    """
    file, where = Path(path), str(path)
    expected = "JSON lines (.jsonl) or Parquet (.parquet)"
    if not file.is_file():
        raise DataError(where, "no such file", expected)
    if file.suffix == ".parquet":
        return [*pq.ParquetFile(file).read(use_threads=False).to_pylist()]
    if file.suffix not in (".jsonl", ".json", ".ndjson"):
        raise DataError(where, f"a file of type {file.suffix or 'none'}", expected)
    changes: list[Mapping[str, Any]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            change = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: line {number}", f"no JSON ({error})", "one object per line") from None
        if not isinstance(change, dict):
            raise DataError(f"{where}: line {number}", f"a {type(change).__name__}", "one object per line")
        changes.append(change)
    return changes


@dataclass(frozen=True)
class ChangeReader:
    """Checks of changes against a bundle.

    Attributes:
        key: raw column of the item.
        numeric: True if keys are integers.
        columns: all raw columns that a change may replace.
        read: those that features of items read. A new item needs them.
    """

    key: str
    numeric: bool
    columns: Sequence[str]
    read: Sequence[str]

    @cached_property
    def _column_set(self) -> frozenset[str]:
        return frozenset(self.columns)

    def read_change(
        self, change: Mapping[str, Any], contains: Callable[[Key], bool], where: str
    ) -> tuple[Key, ChangedItem, bool]:
        """Return the item of a change, its columns, and whether it says if the item is withdrawn.

        Args:
            contains: whether the catalog has an item.

        Raises:
            DataError: if the change names no item, or columns that do not exist, or lacks columns of a new item.
        """
        key = change.get(self.key)
        if not self._is_key(key):
            expected = "an integer of 64 bits" if self.numeric else "text"
            what = f"no {self.key!r}" if key is None else f"{self.key} as {type(key).__name__}, {quote(key)}"
            raise DataError(where, what, f"the key of an item, {expected}, as in the log")
        where = f"{where}, item {quote(key)}"
        says, withdrawn = WITHDRAWN in change, change.get(WITHDRAWN, False)
        if not isinstance(withdrawn, bool):
            raise DataError(where, f"{WITHDRAWN}: {quote(withdrawn)}", "true or false")
        unknown = [name for name in change if name not in self._column_set and name not in (self.key, WITHDRAWN)]
        if unknown:
            faults = describe_unknown_names(unknown, self.columns, "the unknown column")
            expected = f"columns of the item table: {', '.join(self.columns) or 'none'}"
            raise DataError(where, "; ".join(faults), expected, "leave them out, or export a bundle that has them")
        columns = {name: _plain(value) for name, value in change.items() if name in self._column_set}
        missing = [name for name in self.read if name not in columns]
        if not contains(key) and withdrawn:
            raise DataError(where, "an unknown item that is withdrawn", "an item of the catalog", "correct its key")
        if not contains(key) and missing:
            raise DataError(
                where,
                f"a new item without {', '.join(missing)}",
                f"every column that features read: {', '.join(self.read)}",
                "add them, null for a missing value, or correct the key of the item",
            )
        return key, ChangedItem(columns, withdrawn), says

    def _is_key(self, key: Any) -> TypeGuard[Key]:
        if self.numeric:
            return type(key) is int and -(2**63) <= key < 2**63
        return type(key) is str

    def list_keys(self, changes: Iterable[Mapping[str, Any]]) -> list[Key]:
        """Return the keys of changes that are of the type of the log."""
        return [key for change in changes if self._is_key(key := change.get(self.key))]

    def read_all(
        self, changes: Iterable[Mapping[str, Any]], contains: Callable[[Key], bool], where: str
    ) -> list[tuple[Key, ChangedItem, bool]]:
        """Return all changes, checked one after the other, as ``read_change`` does."""
        added, several = set[Key](), []
        for number, change in enumerate(changes, 1):
            one = self.read_change(change, lambda key: key in added or contains(key), f"{where}: change {number}")
            added.add(one[0])
            several.append(one)
        return several


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a raw value as JSON has it, so that it equals itself after the file was read again. NaN is null.

    Raises:
        DataError: if JSON lacks its type, or lists are nested deeper than any column.
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, (list, tuple)):
        if depth == _DEEPEST:
            raise DataError("a change", f"more than {_DEEPEST} lists inside each other", "numbers, text, lists or null")
        return [_plain(one, depth + 1) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise DataError("a change", f"a value of type {type(value).__name__}", "numbers, text, lists, dates or null")
