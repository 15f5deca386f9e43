"""Write-ahead log of an LSM store: framed events since the last segment, readable up to the last whole frame.

A frame is ``magic, count, CRC32`` (12 bytes, little-endian) and a payload: keys (int64 ``[count]``), times (int64
``[count]``), then the columns in the order of the store, one after the other. One append is one frame, so that either
all of it is read back or nothing. The checksum starts from the store's column types and the number of the log, so that
a frame of another store or of an older log is invalid.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.column_types import Types, format_type

_HEAD = struct.Struct("<4sII")
_MAGIC = b"LRE1"
_REPLAY = 1 << 18
"""Number of events after which a replay yields a batch."""

Batch = tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]
"""Keys, times and columns of events."""


@dataclass(frozen=True)
class RecoveryReport:
    """State of the end of a write-ahead log.

    Attributes:
        dropped_bytes: number of bytes after the last whole frame.
        is_torn: these bytes are the beginning of an unfinished frame, of a writer that ended while it wrote or that is
            still writing. False: they are a frame whose bytes were altered.
        saved_to: file to which a writer copied altered bytes before it truncated the log.
    """

    dropped_bytes: int = 0
    is_torn: bool = True
    saved_to: Path | None = None


class Frames:
    """Encoding of events with given columns into frames."""

    def __init__(self, types: Types, number: int) -> None:
        self.types = types
        self.fields = [("", np.dtype("<i8")), ("", np.dtype("<i8")), *types.items()]
        self.size = sum(dtype.itemsize for _, dtype in self.fields)
        text = ",".join(f"{name}:{format_type(dtype)}" for name, dtype in types.items())
        self.seed = zlib.crc32(f"{number};{text}".encode())

    def pack(self, keys: NDArray[np.int64], times: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> bytes:
        """Return one frame."""
        payload = b"".join([keys.tobytes(), times.tobytes(), *(columns[name].tobytes() for name in self.types)])
        return _HEAD.pack(_MAGIC, len(keys), self._crc(len(keys), payload)) + payload

    def _crc(self, count: int, payload: bytes) -> int:
        return zlib.crc32(payload, zlib.crc32(count.to_bytes(4, "little"), self.seed))

    def unpack(self, payload: bytes, count: int) -> Batch:
        """Return the events of a payload."""
        arrays, at = [], 0
        for _, dtype in self.fields:
            stop = at + count * dtype.itemsize
            arrays.append(np.frombuffer(payload[at:stop], dtype.base).reshape(count, *dtype.shape))
            at = stop
        return arrays[0], arrays[1], dict(zip(self.types, arrays[2:]))

    def read(self, file: int, at: int) -> Iterator[tuple[Batch, int]]:
        """Yield the events of whole frames from a position on, many frames at once, and the position after them."""
        batch: list[Batch] = []
        pending = 0
        while (frame := self._frame(file, at)) is not None:
            payload, count = frame
            batch.append(self.unpack(payload, count))
            at, pending = at + _HEAD.size + len(payload), pending + count
            if pending >= _REPLAY:
                yield _concatenate(batch, self.types), at
                batch, pending = [], 0
        if batch:
            yield _concatenate(batch, self.types), at

    def _frame(self, file: int, at: int) -> tuple[bytes, int] | None:
        """Return the payload of a whole frame and its count, or None."""
        head = os.pread(file, _HEAD.size, at)
        if len(head) < _HEAD.size:
            return None
        magic, count, crc = _HEAD.unpack(head)
        if magic != _MAGIC or not count or at + _HEAD.size + count * self.size > os.fstat(file).st_size:
            return None
        payload = _read_bytes(file, count * self.size, at + _HEAD.size)
        return (payload, count) if self._crc(count, payload) == crc else None

    def inspect_tail(self, file: int, at: int) -> RecoveryReport:
        """Return a report on the bytes after the last whole frame."""
        dropped = max(0, os.fstat(file).st_size - at)
        data = _read_bytes(file, dropped, at)
        begun = _MAGIC.startswith(data[:4]) if len(data) < _HEAD.size else data.startswith(_MAGIC)
        # An altered count looks like an unfinished frame, but then other frames follow.
        return RecoveryReport(dropped, begun and _MAGIC not in data[4:] and not self._is_whole(data))

    def _is_whole(self, data: bytes) -> bool:
        """Return True if the data contains all bytes of its first frame."""
        return len(data) >= _HEAD.size and len(data) >= _HEAD.size + _HEAD.unpack_from(data)[1] * self.size


class WriteAheadLog:
    """Writer of a write-ahead log.

    Args:
        at: end of its last whole frame. The file is truncated there.
        sync: wait until a frame is on the disk before an append returns.
    """

    def __init__(self, path: Path, frames: Frames, at: int, *, sync: bool) -> None:
        self.path, self.frames, self.at, self.sync = path, frames, at, sync
        self._file, self._broken = -1, ""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if os.fstat(self._file).st_size > at:
            os.ftruncate(self._file, at)
        if sync:
            os.fsync(self._file)

    def append(self, keys: NDArray[np.int64], times: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> None:
        """Write one frame. Then the events survive the end of the process (with ``sync`` also a power failure).

        Raises:
            StoreError: if the disk is full (no event is stored), or the disk fails (the events may be stored).
        """
        if self._broken:
            raise StoreError(str(self.path), self._broken, "a writable log", "open the store again")
        frame, where = self.frames.pack(keys, times, columns), str(self.path)
        try:
            _write_bytes(self._file, frame, self.at)
        except OSError as error:
            self._undo(error)
            raise StoreError(
                where, f"cannot be written: {error.strerror}", "", "free disk space and append again"
            ) from None
        try:
            if self.sync:
                os.fdatasync(self._file)
        except OSError as error:
            # The frame may be on the disk, and readers may have read it. Only opening the store again decides this.
            self._broken = f"the disk failed ({error.strerror})"
            raise StoreError(where, self._broken, "", "open the store again, then append again") from None
        self.at += len(frame)

    def _undo(self, error: OSError) -> None:
        try:
            os.ftruncate(self._file, self.at)
        except OSError as again:
            self._broken = f"failed to write ({error.strerror}) and to undo it ({again.strerror})"

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file, self._broken = -1, "closed"

    def __del__(self) -> None:
        self.close()


def _concatenate(batches: list[Batch], types: Types) -> Batch:
    if len(batches) == 1:
        return batches[0]
    keys, times = (np.concatenate([batch[index] for batch in batches]) for index in (0, 1))
    return keys, times, {name: np.concatenate([batch[2][name] for batch in batches]) for name in types}


def _read_bytes(file: int, size: int, at: int) -> bytes:
    """Return all requested bytes (one system call returns fewer than 2 GiB)."""
    data = os.pread(file, size, at)
    while len(data) < size:
        more = os.pread(file, size - len(data), at + len(data))
        if not more:  # truncated during the read
            break
        data += more
    return data


def _write_bytes(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done
