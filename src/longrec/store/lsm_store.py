"""A durable history store in one folder: what was appended outlives the process, and with ``sync`` the machine.

``store.json``          what the store is and which files count; replaced at once, never changed
``segment-NNNNNN/``     sorted events, memory-mapped (``segment.Segment``)
``wal-NNNNNN.log``  what was appended since (``wal``)
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
from longrec.store.column_types import validate_events, validate_types
from longrec.store.compaction import ColumnReader, Compaction, sync_path
from longrec.store.lsm import LsmTree
from longrec.store.lsm_files import Lock, Manifest, put_array, sweep, take_array, translate_os_errors
from longrec.store.memtable import Memtable
from longrec.store.segment import Segment, build_empty_segment
from longrec.store.sorted_events import compute_read_order
from longrec.store.write_ahead_log import Frames, RecoveryReport, WriteAheadLog

MEMTABLE_BYTES = 1 << 29


class LsmStore(LsmTree):
    """Events that stay; see the module.

    Attributes:
        folder: where it lies.
        recovered: what lay behind the last whole frame of the journal when it was last read.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, lock: Lock | None, *, verify: bool, sync: bool, memtable_bytes: int
    ) -> None:
        super().__init__(
            build_empty_segment(manifest.types, manifest.rows), manifest.types, manifest.rows, manifest.identity
        )
        self.folder, self._manifest, self._lock = folder, manifest, lock
        self._verify, self._sync, self._memtable_bytes = verify, sync, memtable_bytes
        self._write_lock = threading.RLock()
        self._wal: WriteAheadLog | None = None
        self._is_open = True
        self._wal_end, self._loaded_generation = 0, -1
        self.recovery = RecoveryReport()
        try:
            self._synchronize()
            if lock is not None:
                self._wal = WriteAheadLog(folder / manifest.wal_name, self._frames, self._wal_end, sync=sync)
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
        types = validate_types(columns, identity, str(folder))
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            sync_path(folder.parent)
        lock = Lock(folder)
        try:
            if (folder / Manifest.NAME).exists():
                raise StoreError(str(folder), "a store is there already", "another folder", "open it, or remove it")
            manifest = Manifest(0, None, types, rows, identity, dict(attributes or {}))
            with translate_os_errors(folder):
                (folder / manifest.wal_name).write_bytes(b"")
                manifest.write(folder)
        except BaseException:
            lock.close()
            raise
        return cls(folder, manifest, lock, verify=False, sync=sync, memtable_bytes=memtable_bytes)

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
        lock = Lock(folder)
        try:
            manifest = Manifest.read(folder)
        except BaseException:
            lock.close()
            raise
        store = cls(folder, manifest, lock, verify=verify, sync=sync, memtable_bytes=memtable_bytes)
        sweep(folder, manifest)  # only now: what the manifest names was there
        return store

    @property
    def attributes(self) -> dict[str, Any]:
        """What else is known of the store; a copy."""
        return dict(self._manifest.attributes)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the attributes, at once."""
        with self._write_lock:
            self._require_wal()
            manifest = replace(self._manifest, attributes=dict(attributes))
            with translate_os_errors(self.folder):
                manifest.write(self.folder)
            self._manifest = manifest

    def put_array(self, name: str, array: NDArray[Any]) -> None:
        """Keep a small array beside the events, at once; one of the same name is replaced."""
        with self._write_lock:
            self._require_wal()
            with translate_os_errors(self.folder):
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
        keys, times, columns = validate_events(self.types, self.rows, keys, times, values)
        with self._write_lock:
            wal = self._require_wal()
            if len(keys):
                wal.append(keys, times, columns)
                with self._read_lock:
                    self._memtable.add(keys, times, columns)
                if self._memtable.size * wal.frames.size > self._memtable_bytes and 2 * self._memtable.size > len(
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
        keys, times, columns = validate_events(self.types, self.rows, keys, times, values)
        ids = None if self.identity is None else columns[self.identity]
        with self._write_lock:
            self._require_wal()
            self.compact()
            order = compute_read_order(keys, times, ids)
            if order is None:
                readers: dict[str, ColumnReader] = {name: _slice_column(column) for name, column in columns.items()}
            else:
                keys, times = keys.take(order), times.take(order)
                ids = None if ids is None else ids.take(order)
                readers = {name: _reorder_column(column, order) for name, column in columns.items()}
            self._write_segment(Compaction(self._segment, keys, times, ids, self.identity), readers)

    def compact(self) -> None:
        """Write the segment and what came since into a new segment.

        Raises:
            StoreError: the store is open for reading, or the disk is full; the store is as it was.
        """
        with self._write_lock:
            self._require_wal()
            if not len(self._memtable):
                return
            keys, times, columns = self._memtable.sort_events(self.types)
            ids = None if self.identity is None else columns[self.identity]
            readers = {name: _slice_column(column) for name, column in columns.items()}
            self._write_segment(Compaction(self._segment, keys, times, ids, self.identity), readers)

    def retype(self, columns: Mapping[str, Any]) -> None:
        """Give a store that holds no events other columns.

        Raises:
            StoreError: it holds events, or columns that cannot be kept.
        """
        with self._write_lock:
            self._require_wal()
            if len(self):
                raise StoreError(str(self.folder), f"{len(self)} events", "a store without events")
            types = validate_types(columns, self.identity, str(self.folder))
            self._switch_to(
                replace(self._next_manifest(), segment=None, types=types), build_empty_segment(types, self.rows)
            )

    def _next_manifest(self) -> Manifest:
        number = self._manifest.generation + 1
        return replace(self._manifest, generation=number, segment=f"segment-{number:06d}")

    def _write_segment(self, compaction: Compaction, readers: Mapping[str, ColumnReader]) -> None:
        """Write a segment anew and turn to it."""
        new = self._next_manifest()
        assert new.segment is not None
        folder = self.folder / new.segment
        with translate_os_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            compaction.write(folder, self.types, readers, sync=self._sync)
        self._switch_to(new, Segment.open(folder))

    def _switch_to(self, new: Manifest, segment: Segment) -> None:
        """Begin a new journal over a segment, and let the manifest name both."""
        before, frames = self._require_wal(), Frames(new.types, new.generation)
        with translate_os_errors(self.folder):
            wal = WriteAheadLog(self.folder / new.wal_name, frames, 0, sync=self._sync)
            sync_path(self.folder)
        try:
            with translate_os_errors(self.folder):
                new.write(self.folder)
        except StoreError:
            if Manifest.read(self.folder).generation != self._manifest.generation:
                self.close()  # it was replaced after all, and may not last: only a new reading can tell
            raise
        self._manifest, self._frames, self._wal = new, frames, wal
        self.types = new.types
        self._install_layers(segment)
        before.close()
        sweep(self.folder, new)

    def refresh(self) -> None:
        """See what a writer has done since; of no effect in the writer itself.

        Raises:
            StoreError: what is there now is damaged, or this store was closed.
        """
        with self._write_lock:
            if self._lock is not None:
                return
            if not self._is_open:
                raise StoreError(str(self.folder), "closed", "an open store", "open it again")
            self._synchronize()

    def _synchronize(self) -> None:
        """Read manifest and journal until both are of one moment: what is told of events comes before the events."""
        while True:
            if self._manifest.generation != self._loaded_generation or not self._replay_wal(self._memtable):
                self._load_generation()
            if self._lock is not None or Manifest.read_stamp(self.folder) == self._manifest.stamp:
                return
            self._manifest = Manifest.read(self.folder)

    def _load_generation(self) -> None:
        """Map the segment and replay the journal that the manifest names."""
        while True:
            manifest = self._manifest
            try:
                segment = build_empty_segment(manifest.types, manifest.rows)
                if manifest.segment is not None:
                    segment = Segment.open(self.folder / manifest.segment, verify=self._verify)
                    manifest.check_segment(segment, self.folder)
                memtable = Memtable(manifest.types, self.identity)
                self._wal_end, self._frames = 0, Frames(manifest.types, manifest.generation)
                if self._replay_wal(memtable):
                    break
                fault = StoreError(str(self.folder), f"no {manifest.wal_name}", "its journal", "restore it from a copy")
            except StoreError as error:
                fault = error
            # The writer may have moved on between the manifest and the files.
            self._manifest = Manifest.read(self.folder)
            if self._manifest.generation == manifest.generation:
                raise fault
        self.types, self._loaded_generation = manifest.types, manifest.generation
        self._install_layers(segment, memtable)

    def _replay_wal(self, memtable: Memtable) -> bool:
        """Take in the frames that the journal has grown by; False when it is not the one that was read."""
        path = self.folder / self._manifest.wal_name
        try:
            wal = path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        with wal:
            file = wal.fileno()
            if os.fstat(file).st_size < self._wal_end:  # a writer took back what it could not finish
                return False
            for batch, at in self._frames.read(file, self._wal_end):
                with self._read_lock:
                    memtable.add(*batch)
                self._wal_end = at
            self.recovery = self._frames.inspect_tail(file, self._wal_end)
            if self._lock is not None and self.recovery.dropped_bytes and not self.recovery.is_torn:
                copy_path = path.with_name(f"{path.name}.{self._wal_end}.damaged")
                wal.seek(self._wal_end)
                with translate_os_errors(copy_path), copy_path.open("wb") as copy:
                    shutil.copyfileobj(wal, copy)
                self.recovery = replace(self.recovery, saved_to=copy_path)
        return True

    def _require_wal(self) -> WriteAheadLog:
        if self._wal is None:
            do = "open it with writable=True"
            raise StoreError(str(self.folder), "open for reading, or closed", "a store open for writing", do)
        return self._wal

    def close(self) -> None:
        """Give up the journal and the lock. What was read stays valid."""
        with self._write_lock:
            if self._wal is not None:
                self._wal.close()
            if self._lock is not None:
                self._lock.close()
            self._wal, self._lock, self._is_open = None, None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _slice_column(column: NDArray[Any]) -> ColumnReader:
    return lambda low, high: column[low:high]


def _reorder_column(column: NDArray[Any], order: NDArray[np.int64]) -> ColumnReader:
    return lambda low, high: column.take(order[low:high], axis=0)
