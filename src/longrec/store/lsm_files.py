"""Files of an LSM store: its manifest, its lock, and the leftovers of a crash."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.features.manifest import read_manifest
from longrec.store.column_types import Types, format_type, get_array_type, parse_type
from longrec.store.compaction import sync_path
from longrec.store.segment import Segment

FORMAT = "longrec-store-1"
_OWN_FILES = re.compile(r"segment-\d{6,}|journal-\d{6,}\.log|store\.json\.new")
_ARRAY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Manifest:
    """Content of ``store.json``.

    Attributes:
        generation: number of the write-ahead log.
        segment: name of the current segment, None before the first.
        types, rows, identity: as in ``history_store.HistoryStore``.
        attributes: further JSON attributes.
        stamp: stamp of the file before it was read.
    """

    NAME: ClassVar[str] = "store.json"

    generation: int
    segment: str | None
    types: Types
    rows: int | None
    identity: str | None
    attributes: dict[str, Any]
    stamp: tuple[int, int, int] | None = None

    @property
    def wal_name(self) -> str:
        """Name of the current write-ahead log."""
        # The stored name is kept.
        return f"journal-{self.generation:06d}.log"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a store.

        Raises:
            StoreError: if there is no store, or it has another format version.
        """
        what = "an LSM store"
        stamp = cls.read_stamp(folder)
        content = read_manifest(folder / cls.NAME, FORMAT, what, "restore it from a copy", StoreError)
        try:
            where = str(folder / cls.NAME)
            types = {name: parse_type(text, where) for name, text in content["columns"].items()}
            number, segment = int(content["generation"]), content["segment"]
            rows, identity = content["rows"], content["identity"]
            return cls(number, segment, types, rows, identity, content["attributes"], stamp)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(str(folder / cls.NAME), f"not readable ({error!r})", what, "restore it") from None

    def check_segment(self, segment: Segment, folder: Path) -> None:
        """Check that a segment has the columns and keys of the manifest.

        Raises:
            StoreError: if the segment has other columns or other keys than the manifest.
        """
        shapes = {name: get_array_type(column).shape for name, column in segment.columns.items()}
        same = shapes == {name: dtype.shape for name, dtype in self.types.items()}
        keys = segment.keys is not None if self.rows is None else segment.keys is None and segment.rows == self.rows
        if not (same and keys):
            actual, expected = (
                f"a segment with the columns {', '.join(shapes)}",
                f"{', '.join(self.types)}, and their keys",
            )
            raise StoreError(str(folder), actual, expected, "restore it from a copy")

    def write(self, folder: Path) -> None:
        """Replace the manifest atomically."""
        content = {
            "format": FORMAT,
            "generation": self.generation,
            "segment": self.segment,
            "columns": {name: format_type(dtype) for name, dtype in self.types.items()},
            "rows": self.rows,
            "identity": self.identity,
            "attributes": self.attributes,
        }
        try:
            text = json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(str(folder), f"attributes that are not JSON ({error})", "plain values") from None
        _replace(folder / self.NAME, text.encode())

    @classmethod
    def read_stamp(cls, folder: Path) -> tuple[int, int, int]:
        """Return the stamp of a manifest: file facts that change whenever it is replaced.

        Raises:
            StoreError: if there is no manifest.
        """
        try:
            facts = (folder / cls.NAME).stat()
        except OSError as error:
            actual = f"no readable {cls.NAME} ({error.strerror})"
            raise StoreError(str(folder), actual, "an LSM store", "give the folder of one") from None
        return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_path(path.parent)


class Lock:
    """Exclusive file lock of a writer. Closing it, or the end of the process, releases it.

    Raises:
        StoreError: if another writer holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._owner = -1, os.getpid()
        with translate_os_errors(folder):
            self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise StoreError(
                str(folder), "another writer holds it", "one writer per store", "close that one, or open for reading"
            ) from None

    def close(self) -> None:
        """Release the lock."""
        if self._file >= 0:
            if os.getpid() == self._owner:  # a forked process holds the same lock and must not release it
                fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Raise OS errors inside the block as errors of a store.

    Raises:
        StoreError: if the disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        actual = f"cannot be written: {error.strerror or error}"
        raise StoreError(
            str(path), actual, "a writable path", "free disk space or choose another path, then try again"
        ) from None


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove segments and write-ahead logs that are not current. Readers that have mapped them keep them."""
    for path in folder.iterdir():
        if _OWN_FILES.fullmatch(path.name) and path.name not in (manifest.segment, manifest.wal_name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def put_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write a small array atomically."""
    _check_array_name(folder, name)
    (folder / "arrays").mkdir(exist_ok=True)
    path = folder / "arrays" / f"{name}.npy"
    new = path.with_name(f"{name}.new.npy")
    np.save(new, array, allow_pickle=False)
    sync_path(new)
    new.replace(path)
    sync_path(path.parent)


def take_array(folder: Path, name: str) -> NDArray[Any]:
    """Return a stored array.

    Raises:
        StoreError: if there is no such array, or it cannot be read.
    """
    _check_array_name(folder, name)
    path = folder / "arrays" / f"{name}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(str(path), f"no readable array ({error})", "an array that was stored") from None


def _check_array_name(folder: Path, name: str) -> None:
    if not _ARRAY.fullmatch(name):
        raise StoreError(str(folder), f"an array named {name!r}", "letters, digits, dots and dashes")
