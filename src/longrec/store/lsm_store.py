"""An LSM store in one folder: appended events survive the end of the process, and with ``sync`` a power failure.

``store.json``          manifest: the columns, and the names of the current files, replaced atomically
``segment-NNNNNN/``     sorted events, memory-mapped (``segment.Segment``)
``journal-NNNNNN.log``  write-ahead log of the events appended since (``write_ahead_log``), a stored name that is kept
``arrays/``             small arrays, stored in addition to the events
``lock``                file lock of the one writer

Opening memory-maps the segment and replays the write-ahead log. ``compact`` writes both into a new segment and starts a
new log. The manifest is then replaced by one with the new files. Until it is replaced, the old files are the current
ones. There is one writer. Readers take no lock, continue with the files they have mapped, and read newer events after
``refresh``.
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
    """A persistent store of events in one folder. See the module.

    Attributes:
        folder: folder of the store.
        recovery: bytes after the last whole frame of the write-ahead log, as of its last read.
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
        """Create a store and open it for writing.

        Args:
            folder: a folder without a store.
            columns: type of each column. One vector of 32 per event is ``np.dtype((np.float16, (32,)))``.
            rows: number of key rows, row 0 included. None: any 64-bit integer is a key.
            identity: int64 column that identifies an event of a key and timestamp.
            attributes: further JSON attributes of the store.
            sync: an append returns once the disk has written it. Without it, a power failure may lose the newest ones.
            memtable_bytes: memory limit of new events. The append that exceeds it compacts, if there are also at least
                half as many new events as events in the segment.

        Raises:
            StoreError: if the store exists already, or a column has an unsupported type.
        """
        folder = Path(folder)
        types = validate_types(columns, identity, str(folder))
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            sync_path(folder.parent)
        lock = Lock(folder)
        try:
            if (folder / Manifest.NAME).exists():
                raise StoreError(str(folder), "the store exists already", "another folder", "open it, or remove it")
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
        """Open a store. A writer also truncates a torn end of the write-ahead log and removes files that a crash left.

        Args:
            writable: open it for writing.
            verify: read every byte of the segment and compare it with its checksum.
            sync, memtable_bytes: as in ``create``.

        Raises:
            StoreError: if there is no store, it is damaged or has another format version, or another writer holds its
                lock.
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
        sweep(folder, manifest)  # only now: the files that the manifest names exist
        return store

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store (a copy)."""
        return dict(self._manifest.attributes)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the attributes atomically."""
        with self._write_lock:
            self._require_wal()
            manifest = replace(self._manifest, attributes=dict(attributes))
            with translate_os_errors(self.folder):
                manifest.write(self.folder)
            self._manifest = manifest

    def put_array(self, name: str, array: NDArray[Any]) -> None:
        """Store a small array beside the events, atomically. It replaces one of the same name."""
        with self._write_lock:
            self._require_wal()
            with translate_os_errors(self.folder):
                put_array(self.folder, name, array)

    def take_array(self, name: str) -> NDArray[Any]:
        """Return an array stored beside the events.

        Raises:
            StoreError: if there is no array of that name.
        """
        return take_array(self.folder, name)

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events durably. See ``HistoryStore.append``.

        Raises:
            StoreError: as ``HistoryStore.append``, and if the store is open for reading, or the disk is full.
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
        """Add many events at once into a new segment. This is fastest if they are sorted by key, time and identity.

        Args:
            keys, times, values: as in ``append``. The later one of two equal events is kept.

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
        """Merge the segment and the memtable into a new segment.

        Raises:
            StoreError: if the store is open for reading, or the disk is full. The store is then unchanged.
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
        """Replace the columns of a store without events.

        Raises:
            StoreError: if the store has events, or a column has an unsupported type.
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
        """Write the next segment and switch to it."""
        new = self._next_manifest()
        assert new.segment is not None
        folder = self.folder / new.segment
        with translate_os_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            compaction.write(folder, self.types, readers, sync=self._sync)
        self._switch_to(new, Segment.open(folder))

    def _switch_to(self, new: Manifest, segment: Segment) -> None:
        """Start a new write-ahead log over a segment and write both names into the manifest."""
        before, frames = self._require_wal(), Frames(new.types, new.generation)
        with translate_os_errors(self.folder):
            wal = WriteAheadLog(self.folder / new.wal_name, frames, 0, sync=self._sync)
            sync_path(self.folder)
        try:
            with translate_os_errors(self.folder):
                new.write(self.folder)
        except StoreError:
            if Manifest.read(self.folder).generation != self._manifest.generation:
                self.close()  # it was replaced after all, but maybe not durably: open it again
            raise
        self._manifest, self._frames, self._wal = new, frames, wal
        self.types = new.types
        self._install_layers(segment)
        before.close()
        sweep(self.folder, new)

    def refresh(self) -> None:
        """Read what a writer has changed since. In the writer itself this does nothing.

        Raises:
            StoreError: if the store is damaged or closed.
        """
        with self._write_lock:
            if self._lock is not None:
                return
            if not self._is_open:
                raise StoreError(str(self.folder), "closed", "an open store", "open it again")
            self._synchronize()

    def _synchronize(self) -> None:
        """Read manifest and write-ahead log until both are of one state. A writer changes the manifest first."""
        while True:
            if self._manifest.generation != self._loaded_generation or not self._replay_wal(self._memtable):
                self._load_generation()
            if self._lock is not None or Manifest.read_stamp(self.folder) == self._manifest.stamp:
                return
            self._manifest = Manifest.read(self.folder)

    def _load_generation(self) -> None:
        """Memory-map the manifest's segment and replay its write-ahead log.

        A generation is one segment with its write-ahead log. Compaction starts a new generation.
        """
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
                fault = StoreError(
                    str(self.folder), f"no {manifest.wal_name}", "its write-ahead log", "restore it from a copy"
                )
            except StoreError as error:
                fault = error
            # The writer may have replaced the files after the manifest was read.
            self._manifest = Manifest.read(self.folder)
            if self._manifest.generation == manifest.generation:
                raise fault
        self.types, self._loaded_generation = manifest.types, manifest.generation
        self._install_layers(segment, memtable)

    def _replay_wal(self, memtable: Memtable) -> bool:
        """Replay the new frames of the write-ahead log. Return False if it is not the one that was read before."""
        path = self.folder / self._manifest.wal_name
        try:
            wal = path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        with wal:
            file = wal.fileno()
            if os.fstat(file).st_size < self._wal_end:  # a writer truncated a frame that it could not finish
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
        """Release the write-ahead log and the lock. Results of reads stay valid."""
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
