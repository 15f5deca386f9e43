"""A durable history store in one folder: what was appended outlives the process, and with ``sync`` the machine.

``store.json``          what the store is and which files count; replaced at once, never changed
``segment-NNNNNN/``     sorted events, memory-mapped (``segment.Segment``)
``journal-NNNNNN.log``  what was appended since (``journal``)
``arrays/``             small arrays kept beside the events
``lock``                held by the one writer

Opening maps the segment and replays the journal. ``compact`` writes both into a new segment and begins a new journal;
the manifest then names the new ones, and until that moment the old ones count. There is one writer; readers take no
lock, go on with the files they have mapped, and see what is new when they ``refresh``.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.column_types import checked, column_types
from longrec.store.compaction import Compaction, Piece, sync_path
from longrec.store.lsm import LsmTree
from longrec.store.lsm_files import Lock, Manifest, put_array, sweep, take_array, written
from longrec.store.memtable import Memtable
from longrec.store.segment import Segment, no_events
from longrec.store.sorted_events import reading_order
from longrec.store.write_ahead_log import Frames, RecoveryReport, WriteAheadLog

MEMTABLE_BYTES = 1 << 29


class LsmStore(LsmTree):
    """Events that stay; see the module.

    Attributes:
        folder: where it lies.
        recovered: what lay behind the last whole frame of the journal when it was last read.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, held: Lock | None, *, verify: bool, sync: bool, memtable_bytes: int
    ) -> None:
        super().__init__(no_events(manifest.types, manifest.rows), manifest.types, manifest.rows, manifest.identity)
        self.folder, self._manifest, self._lock = folder, manifest, held
        self._verify, self._sync, self._memtable_bytes = verify, sync, memtable_bytes
        self._writing = threading.RLock()
        self._journal: WriteAheadLog | None = None
        self._open = True
        self._at, self._mapped = 0, -1
        self.recovery = RecoveryReport()
        try:
            self._settle()
            if held is not None:
                self._journal = WriteAheadLog(folder / manifest.journal, self._frames, self._at, sync=sync)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        folder: str | Path,
        columns: Mapping[str, Any],
        rows: int | None = None,
        identity: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        *,
        sync: bool = True,
        memtable_bytes: int = MEMTABLE_BYTES,
    ) -> Self:
        """Begin a store, and hold it for writing.

        Args:
            folder: a folder that holds no store yet.
            columns: type of each column; a vector an event is ``np.dtype((np.float16, (32,)))``.
            rows: how many key rows there are, row 0 included; None: any 64-bit integer is a key.
            identity: the int64 column that names an event of a key and moment.
            attributes: what else is to be known of the store, as JSON.
            sync: an append returns once the disk holds it. Without, a power cut may take the newest ones.
            room: bytes that new events may take in memory; the append that exceeds them compacts, once they are also
                half as many as those in the segment.

        Raises:
            StoreError: a store is there already, or a column that cannot be kept.
        """
        folder = Path(folder)
        types = column_types(columns, identity, str(folder))
        with written(folder):
            folder.mkdir(parents=True, exist_ok=True)
            sync_path(folder.parent)
        held = Lock(folder)
        try:
            if (folder / Manifest.NAME).exists():
                raise StoreError(str(folder), "a store is there already", "another folder", "open it, or remove it")
            manifest = Manifest(0, None, types, rows, identity, dict(attributes or {}))
            with written(folder):
                (folder / manifest.journal).write_bytes(b"")
                manifest.write(folder)
        except BaseException:
            held.close()
            raise
        return cls(folder, manifest, held, verify=False, sync=sync, memtable_bytes=memtable_bytes)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        writable: bool = False,
        *,
        verify: bool = False,
        sync: bool = True,
        memtable_bytes: int = MEMTABLE_BYTES,
    ) -> Self:
        """Open a store; a writer also cuts off a torn end of the journal and sweeps what a crash left.

        Args:
            writable: hold it for writing.
            verify: read every byte of the segment and hold it against its checksum.
            sync, room: as in ``create``.

        Raises:
            StoreError: no store, one that is damaged or of another version, or one that another writer holds.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if not writable:
            return cls(folder, manifest, None, verify=verify, sync=sync, memtable_bytes=memtable_bytes)
        held = Lock(folder)
        try:
            manifest = Manifest.read(folder)
        except BaseException:
            held.close()
            raise
        store = cls(folder, manifest, held, verify=verify, sync=sync, memtable_bytes=memtable_bytes)
        sweep(folder, manifest)  # only now: what the manifest names was there
        return store

    @property
    def attributes(self) -> dict[str, Any]:
        """What else is known of the store; a copy."""
        return dict(self._manifest.attributes)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the attributes, at once."""
        with self._writing:
            self._writer()
            manifest = replace(self._manifest, attributes=dict(attributes))
            with written(self.folder):
                manifest.write(self.folder)
            self._manifest = manifest

    def put_array(self, name: str, array: NDArray[Any]) -> None:
        """Keep a small array beside the events, at once; one of the same name is replaced."""
        with self._writing:
            self._writer()
            with written(self.folder):
                put_array(self.folder, name, array)

    def take_array(self, name: str) -> NDArray[Any]:
        """An array kept beside the events.

        Raises:
            StoreError: there is none of that name.
        """
        return take_array(self.folder, name)

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events, and make them last; see ``HistoryStore.append``.

        Raises:
            StoreError: also when the store is open for reading, or the disk is full.
        """
        keys, times, columns = checked(self.types, self.rows, keys, times, values)
        with self._writing:
            journal = self._writer()
            if len(keys):
                journal.append(keys, times, columns)
                with self._reading:
                    self._delta.add(keys, times, columns)
                if self._delta.size * journal.frames.size > self._memtable_bytes and 2 * self._delta.size > len(
                    self._segment
                ):
                    self.compact()

    def load(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add many events at once, straight into a new segment; fastest when sorted by key, time and identity.

        Args:
            keys, times, values: as in ``append``; of events written twice the later one counts.

        Raises:
            StoreError: as ``append``.
        """
        keys, times, columns = checked(self.types, self.rows, keys, times, values)
        ids = None if self.identity is None else columns[self.identity]
        with self._writing:
            self._writer()
            self.compact()
            order = reading_order(keys, times, ids)
            if order is None:
                parts: dict[str, Piece] = {name: _part(column) for name, column in columns.items()}
            else:
                keys, times = keys.take(order), times.take(order)
                ids = None if ids is None else ids.take(order)
                parts = {name: _picked(column, order) for name, column in columns.items()}
            self._renew(Compaction(self._segment, keys, times, ids, self.identity), parts)

    def compact(self) -> None:
        """Write the segment and what came since into a new segment.

        Raises:
            StoreError: the store is open for reading, or the disk is full; the store is as it was.
        """
        with self._writing:
            self._writer()
            if not len(self._delta):
                return
            keys, times, columns = self._delta.sorted(self.types)
            ids = None if self.identity is None else columns[self.identity]
            parts = {name: _part(column) for name, column in columns.items()}
            self._renew(Compaction(self._segment, keys, times, ids, self.identity), parts)

    def retype(self, columns: Mapping[str, Any]) -> None:
        """Give a store that holds no events other columns.

        Raises:
            StoreError: it holds events, or columns that cannot be kept.
        """
        with self._writing:
            self._writer()
            if len(self):
                raise StoreError(str(self.folder), f"{len(self)} events", "a store without events")
            types = column_types(columns, self.identity, str(self.folder))
            self._turn(replace(self._next(), segment=None, types=types), no_events(types, self.rows))

    def _next(self) -> Manifest:
        number = self._manifest.generation + 1
        return replace(self._manifest, generation=number, segment=f"segment-{number:06d}")

    def _renew(self, rewrite: Compaction, parts: Mapping[str, Piece]) -> None:
        """Write a segment anew and turn to it."""
        new = self._next()
        assert new.segment is not None
        folder = self.folder / new.segment
        with written(folder):
            shutil.rmtree(folder, ignore_errors=True)
            rewrite.write(folder, self.types, parts, sync=self._sync)
        self._turn(new, Segment.open(folder))

    def _turn(self, new: Manifest, segment: Segment) -> None:
        """Begin a new journal over a segment, and let the manifest name both."""
        before, frames = self._writer(), Frames(new.types, new.generation)
        with written(self.folder):
            journal = WriteAheadLog(self.folder / new.journal, frames, 0, sync=self._sync)
            sync_path(self.folder)
        try:
            with written(self.folder):
                new.write(self.folder)
        except StoreError:
            if Manifest.read(self.folder).generation != self._manifest.generation:
                self.close()  # it was replaced after all, and may not last: only a new reading can tell
            raise
        self._manifest, self._frames, self._journal = new, frames, journal
        self.types = new.types
        self._under(segment)
        before.close()
        sweep(self.folder, new)

    def refresh(self) -> None:
        """See what a writer has done since; of no effect in the writer itself.

        Raises:
            StoreError: what is there now is damaged, or this store was closed.
        """
        with self._writing:
            if self._lock is not None:
                return
            if not self._open:
                raise StoreError(str(self.folder), "closed", "an open store", "open it again")
            self._settle()

    def _settle(self) -> None:
        """Read manifest and journal until both are of one moment: what is told of events comes before the events."""
        while True:
            if self._manifest.generation != self._mapped or not self._caught_up(self._delta):
                self._map()
            if self._lock is not None or Manifest.stamp_of(self.folder) == self._manifest.stamp:
                return
            self._manifest = Manifest.read(self.folder)

    def _map(self) -> None:
        """Map the segment and replay the journal that the manifest names."""
        while True:
            manifest = self._manifest
            try:
                segment = no_events(manifest.types, manifest.rows)
                if manifest.segment is not None:
                    segment = Segment.open(self.folder / manifest.segment, verify=self._verify)
                    manifest.fits(segment, self.folder)
                delta = Memtable(manifest.types, self.identity)
                self._at, self._frames = 0, Frames(manifest.types, manifest.generation)
                if self._caught_up(delta):
                    break
                fault = StoreError(str(self.folder), f"no {manifest.journal}", "its journal", "restore it from a copy")
            except StoreError as error:
                fault = error
            # The writer may have moved on between the manifest and the files.
            self._manifest = Manifest.read(self.folder)
            if self._manifest.generation == manifest.generation:
                raise fault
        self.types, self._mapped = manifest.types, manifest.generation
        self._under(segment, delta)

    def _caught_up(self, delta: Memtable) -> bool:
        """Take in the frames that the journal has grown by; False when it is not the one that was read."""
        path = self.folder / self._manifest.journal
        try:
            journal = path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        with journal:
            file = journal.fileno()
            if os.fstat(file).st_size < self._at:  # a writer took back what it could not finish
                return False
            for batch, at in self._frames.read(file, self._at):
                with self._reading:
                    delta.add(*batch)
                self._at = at
            self.recovery = self._frames.rest(file, self._at)
            if self._lock is not None and self.recovery.dropped and not self.recovery.torn:
                kept = path.with_name(f"{path.name}.{self._at}.damaged")
                journal.seek(self._at)
                with written(kept), kept.open("wb") as copy:
                    shutil.copyfileobj(journal, copy)
                self.recovery = replace(self.recovery, kept=kept)
        return True

    def _writer(self) -> WriteAheadLog:
        if self._journal is None:
            do = "open it with writable=True"
            raise StoreError(str(self.folder), "open for reading, or closed", "a store open for writing", do)
        return self._journal

    def close(self) -> None:
        """Give up the journal and the lock. What was read stays valid."""
        with self._writing:
            if self._journal is not None:
                self._journal.close()
            if self._lock is not None:
                self._lock.close()
            self._journal, self._lock, self._open = None, None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _part(column: NDArray[Any]) -> Piece:
    return lambda low, high: column[low:high]


def _picked(column: NDArray[Any], order: NDArray[np.int64]) -> Piece:
    return lambda low, high: column.take(order[low:high], axis=0)
