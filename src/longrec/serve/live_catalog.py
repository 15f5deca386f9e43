"""The items of an opened bundle with all changes since its export: keys, features, vectors, and who may be retrieved.

Every process reads the file of changes when it opens the bundle, and again when another process has replaced it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import BundleError, ConfigError, DataError
from longrec.exporting.bundle import DIGEST, INDEX, Bundle
from longrec.exporting.catalog import build_catalog_tensors
from longrec.exporting.catalog_changes import NAME, CatalogChanges, ChangesLock, Key, locate_changes
from longrec.exporting.catalog_table import (
    CatalogTable,
    build_catalog_table,
    build_change_reader,
    find_changed_rows,
    read_keys,
)
from longrec.exporting.inputs import ITEMS_PROGRAM
from longrec.exporting.item_columns import read_item_columns
from longrec.exporting.item_index import compute_vectors, open_index
from longrec.exporting.item_paths import build_item_trie, update_item_trie
from longrec.exporting.runtime import Program
from longrec.exporting.tuned_lists import tune_lists
from longrec.features.entity_table import EntityTable
from longrec.features.vocabulary import build_array
from longrec.serve.item_conditions import ItemConditions

if TYPE_CHECKING:
    from longrec.generation.trie import Trie
    from longrec.index.build import IndexFacts
    from longrec.index.item_index import ItemIndex

Listener = Callable[[EntityTable], None]
ChangeSteps = Generator[Callable[[], None] | dict[str, int]]


class LiveCatalog:
    """Items of one bundle as they are now, for use by one thread.

    Args:
        bundle: the opened bundle.
        programs: its programs by name.
        listener: called with the table of items after every change.
        pristine: the items of the bundle as exported, searched exactly, for the replay of golden requests.

    Attributes:
        folder: folder of the changes.
        changes: all changes since the bundle.
        table: the items with all changes. Its raw columns are read if there are changes.
        index: index of their vectors. None for a bundle without vectors.
        index_facts: its description. That of inverted lists is measured again after many changes.
        trie: paths of the items that have codes, numbered from 0. None for a bundle of another kind than a generator.
    """

    def __init__(
        self, bundle: Bundle, programs: Mapping[str, Program], listener: Listener, pristine: bool = False
    ) -> None:
        self.bundle, self.folder = bundle, locate_changes(bundle.path)
        self._programs, self._listener, self._pristine = programs, listener, pristine
        self._signature: tuple[int, ...] | None = None
        self.changes = CatalogChanges()
        self.table = CatalogTable(bundle.items, None, None, np.zeros(0, np.int64))
        self.index: ItemIndex | None = None
        self.index_facts: IndexFacts | None = None
        self.trie: Trie | None = None
        self._reset()
        self._is_opened = False
        self.refresh()
        self._is_opened = True

    def _reset(self) -> None:
        """Go back to the items of the bundle."""
        if INDEX in self.bundle.manifest.files:
            self.index = open_index(self.bundle, exact=self._pristine)
            self.index_facts = self.bundle.manifest.index
        if (generator := self.bundle.manifest.generator) is not None:
            self.trie = build_item_trie(generator, self.bundle.items)
        self._use(self.changes, self.table)

    def _use(self, changes: CatalogChanges, table: CatalogTable) -> None:
        self.changes, self.table = changes, table
        self._keys: NDArray[Any] | None = None
        self._conditions: ItemConditions | None = None
        self._numbers: dict[str, NDArray[np.float64]] = {}
        self._tensors: dict[str, NDArray[Any]] | None = None

    def __len__(self) -> int:
        return len(self.table.items) - 1

    @cached_property
    def _columns(self) -> pa.Table | None:
        """Raw columns of the bundle. Most rankers never need them."""
        return read_item_columns(self.bundle.files)

    @property
    def keys(self) -> NDArray[Any]:
        """``[I]`` keys of the items."""
        if self._keys is None:
            self._keys = read_keys(self.table.items)
        return self._keys

    @property
    def is_as_exported(self) -> bool:
        """True without changes since the export, and with exact search."""
        return not self.changes.items and (self.index is None or self.index.is_exact)

    @property
    def withdrawn(self) -> NDArray[np.bool_] | None:
        """Mask of the withdrawn items, bool ``[I]``. None if there are none."""
        return self.table.withdrawn

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """The item inputs of the program of a retriever without vectors."""
        if self._tensors is None:
            self._tensors = build_catalog_tensors(self.bundle.fitted, self.table.items)
        return self._tensors

    def list_columns(self) -> list[str]:
        """Return the names of the raw columns of the items, without the key. None are listed if there are none."""
        columns = self.table.columns if self.changes.items else self._columns
        return [] if columns is None else columns.column_names[1:]

    def read_columns(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Return the raw values of an item in those of some columns that the items have.

        Args:
            row: its row, from 1.
        """
        columns = self.table.columns if self.changes.items else self._columns
        own = self.list_columns()
        return {} if columns is None else {name: columns[name][row - 1].as_py() for name in names if name in own}

    def read_numbers(self, column: str) -> NDArray[np.float64]:
        """Return a raw column of numbers of all items, float64 ``[I]``, 0 for null. It must not be changed."""
        if column not in self._numbers:
            columns = self.table.columns if self.changes.items else self._columns
            assert columns is not None
            numbers = columns[column].combine_chunks().cast(pa.float64()).fill_null(0.0)
            self._numbers[column] = np.asarray(numbers.to_numpy(zero_copy_only=False))
        return self._numbers[column]

    def match(self, condition: str, where: str = "where") -> NDArray[np.bool_]:
        """Return the mask of the items that meet a condition on raw columns, bool ``[I]``. It must not be changed.

        Raises:
            ConfigError: if it is no condition on columns of the items, or the bundle has no raw columns.
        """
        if self._conditions is None:
            columns = self.table.columns if self.changes.items else self._columns
            if columns is None:
                fault = f"{condition!r} reads raw columns of items, and {self.bundle.path} has none"
                raise ConfigError(where, [f"{fault}; export it from a log with an item table (data.items)"])
            self._conditions = ItemConditions(columns)
        return self._conditions.match(condition, where)

    def refresh(self) -> bool:
        """Read the changes again if their file was replaced, and return whether it was."""
        signature = None if self._pristine else _read_signature(self.folder / NAME)
        if signature == self._signature:
            return False
        if not (self._is_opened and self._is_replaced()):  # then they are changes of the other bundle
            self._apply(CatalogChanges.load(self.folder, self.bundle))
        self._signature = signature
        return True

    def _is_replaced(self) -> bool:
        """Return True if another bundle has taken the place of the opened one."""
        try:
            return (self.bundle.path / DIGEST).read_text(errors="replace").split()[:1] != [self.bundle.digest]
        except OSError:
            return False

    def prepare(self, changes: Sequence[Mapping[str, Any]], where: str = "items") -> CatalogChanges:
        """Check changes in full and return them merged with the earlier ones, without any effect.

        Args:
            changes: raw columns by name, with the key of the item and ``withdrawn``, see ``catalog_changes.py``.

        Raises:
            DataError: if a change does not fit the bundle.
            BundleError: if the items of the bundle cannot change, or another bundle has taken its place.
        """
        if self._is_replaced():
            problem = "another bundle, which has changes of its own"
            raise BundleError(
                str(self.bundle.path), problem, "the bundle that was opened", "open it again: POST /reload"
            )
        reader = build_change_reader(self.bundle, self._columns)
        keys = reader.list_keys(changes)
        stored = self.bundle.items.keys.index(build_array(keys, where), where) >= 0  # of all at once: one costs as much
        present = {key for key, is_stored in zip(keys, stored.tolist()) if is_stored}

        def contains(key: Key) -> bool:
            return key in self.changes.items or key in present

        merged = self.changes.merge(reader.read_all(changes, contains, where))
        try:
            self._build_table(merged)
        except DataError as error:
            raise DataError(f"{where}: {error.where}", error.found, error.expected, error.do) from None
        return merged

    def use(self, merged: CatalogChanges) -> None:
        """Use changes that ``prepare`` returned, whose file has been written."""
        signature = _read_signature(self.folder / NAME)
        if signature != self._signature:  # else a request has read the file already
            self._apply(merged)
            self._signature = signature

    def _build_table(self, changes: CatalogChanges) -> CatalogTable:
        return build_catalog_table(self.bundle, self._columns if changes.items else None, changes)

    def _apply(self, changes: CatalogChanges) -> None:
        before = self.changes
        if any(key not in changes.items for key in before.items):  # the file was removed or replaced from elsewhere
            before = CatalogChanges()
            self.changes, self.table = before, self._build_table(before)
            self._reset()
        table = self._build_table(changes)
        if self.index is not None or self.trie is not None:
            rows = find_changed_rows(before, changes, table.items)
            if len(rows):
                self._replace(rows, table.items, changes.revision)
        self._use(changes, table)
        self._listener(table.items)

    def _replace(self, rows: NDArray[np.int64], items: EntityTable, revision: int) -> None:
        """Replace the vectors or the paths of changed rows of the item table."""
        if (generator := self.bundle.manifest.generator) is not None and self.trie is not None:
            self.trie = update_item_trie(self.trie, generator, items, rows)
        if self.index is not None:
            vectors = compute_vectors(self._programs[ITEMS_PROGRAM], self.bundle.fitted, items, rows)
            if self.index.replace(rows - 1, vectors):
                tuned = tune_lists(self.index, self.bundle, self.folder, revision)
                self.index_facts = tuned or self.index_facts


def change_items(
    catalogs: Sequence[LiveCatalog], changes: Sequence[Mapping[str, Any]], where: str = "items"
) -> dict[str, int]:
    """Add, withdraw and change items of all bundles of a server, durably. The same changes may be repeated.

    Args:
        catalogs: the catalogs of the bundles, such as those of a ranker and its retriever.
        changes: raw columns by name, with the key of the item, and ``withdrawn``.

    Returns:
        The numbers of changes, of items of the first catalog, and of its withdrawn items.

    Raises:
        DataError: if a change does not fit a bundle. Then none is applied.
        BundleError: if the items of a bundle cannot change.
        StoreError: if another process changes them for long.
    """
    return finish_changes(change_items_in_steps(catalogs, changes, where))


def finish_changes(steps: ChangeSteps) -> dict[str, int]:
    """Return the result of changes, whose waits happen here."""
    with contextlib.closing(steps):
        for step in steps:
            if not callable(step):
                return step
            step()
    raise AssertionError("steps without a result")


def change_items_in_steps(
    catalogs: Sequence[LiveCatalog], changes: Sequence[Mapping[str, Any]], where: str = "items"
) -> ChangeSteps:
    """Yield functions that wait for another process or for a disk, to be called one by one, and the result.

    They may be called in another thread, while this one answers requests. Close the iterator if one of them fails.
    """
    for catalog in catalogs:
        catalog.refresh()
        catalog.prepare(changes, where)
    for catalog in catalogs:  # every bundle accepts them, also after changes of other processes
        with contextlib.closing(ChangesLock(catalog.folder)) as lock:
            yield lock.acquire
            catalog.refresh()
            merged = catalog.prepare(changes, where)
            if merged is not catalog.changes:
                yield partial(merged.save, catalog.folder, catalog.bundle)
                catalog.use(merged)
    first = catalogs[0]
    withdrawn = 0 if first.withdrawn is None else int(first.withdrawn.sum())
    yield {"changes": len(changes), "items": len(first), "withdrawn": withdrawn}


def open_catalog(folder: str | Path) -> LiveCatalog:
    """Open the catalog of a bundle without a server, to change it.

    Raises:
        BundleError: if the folder is no bundle, or its changes cannot be read.
    """
    from longrec.exporting.runtime import open_programs

    bundle = Bundle.open(folder)
    return LiveCatalog(bundle, open_programs(bundle.files, bundle.manifest.programs), lambda items: None)


def _read_signature(path: Path) -> tuple[int, ...] | None:
    """Return what differs between two files of one path, None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
