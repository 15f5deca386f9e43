"""Log of shown items: one row per item of an answer, written by a thread of its own, beside the requests.

A process appends rows as JSON lines to a file of its own, ``.active-*.jsonl``, and synchronizes it with the disk at
least every ``flush_seconds``. After ``rotate_seconds``, and at the end, the rows become a Parquet file: written under
another name, synchronized, renamed, and only then the lines are deleted. A reader of ``*.parquet`` never sees half a
file.

A process or machine that crashes loses at most the rows of its last ``flush_seconds``. Lines that a dead process left
become a Parquet file when the next one opens the folder. A file keeps its name through all of this, so that no row is
there twice. If the disk refuses writes, rows wait in memory, up to a limit above which the oldest are dropped and
counted in the server's log.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.resources import resource_error

MAX_WAITING = 1_000_000
"""Largest number of rows in memory while the disk refuses writes."""
_ACTIVE = ".active-"
_log = logging.getLogger(__name__)
Row = dict[str, Any]


def build_arrow_schema(
    text_users: bool,
    text_items: bool,
    steps: bool,
    score_columns: Iterable[str],
    rank_columns: Iterable[str] = (),
    *,
    explores: bool = False,
) -> pa.Schema:
    """Return the columns of the log.

    Args:
        text_users, text_items: True for keys of text, False for integers.
        steps: True for a log whose timestamps are steps.
        score_columns: names of the columns of scores.
        rank_columns: names of the columns of ranks in the lists of sources.
        explores: also bucket, seed, and whether the item was explored.
    """
    explored = [pa.field("bucket", pa.string()), pa.field("seed", pa.int64()), pa.field("explored", pa.bool_())]
    return pa.schema(
        [
            pa.field("request", pa.string()),
            pa.field("user", pa.string() if text_users else pa.int64()),
            pa.field("timestamp", pa.int64() if steps else pa.timestamp("ms", "UTC")),
            pa.field("item", pa.string() if text_items else pa.int64()),
            pa.field("position", pa.int32()),
            pa.field("policy", pa.string()),
            pa.field("policy_digest", pa.string()),
            pa.field("source", pa.string()),
            pa.field("propensity", pa.float32()),
            pa.field("new_user", pa.bool_()),
            pa.field("fallbacks", pa.string()),
            *(explored if explores else []),
            *(pa.field(name, pa.float32()) for name in score_columns),
            *(pa.field(name, pa.int32()) for name in rank_columns),
        ]
    )


class ImpressionWriter:
    """Writer of a folder of impressions, one per process.

    Args:
        folder: the folder, which is created.
        schema: columns of the rows, see ``build_arrow_schema``.
        flush_seconds: longest time from ``write`` to the disk.
        rotate_seconds: time after which rows become a Parquet file.

    Raises:
        ResourceError: if the folder cannot be written.
    """

    def __init__(
        self, folder: Path, schema: pa.Schema, flush_seconds: float = 1.0, rotate_seconds: float = 300.0
    ) -> None:
        self.folder, self.schema = folder, schema
        self._flush_seconds, self._rotate_seconds = flush_seconds, rotate_seconds
        self._waiting: list[Row] = []
        self._lock, self._disk, self._stop = threading.Lock(), threading.RLock(), threading.Event()
        self._opened_at = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._recover()
            self._file = self._open()
        except OSError as error:
            raise resource_error(error) or error from None
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._thread.start()

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows, which are on the disk at the latest ``flush_seconds`` later. Returns at once."""
        with self._lock:
            self._waiting.extend(rows)

    def flush(self) -> None:
        """Write all rows to the disk."""
        with self._disk:
            with self._lock:
                rows, self._waiting = self._waiting, []
            if not rows:
                return
            try:
                self._append(rows)
            except OSError as error:
                with self._lock:
                    self._waiting[:0] = rows
                    dropped = max(0, len(self._waiting) - MAX_WAITING)
                    del self._waiting[:dropped]
                _log.error("impressions cannot be written to %s (%s), %d rows lost", self.folder, error, dropped)

    def rotate(self) -> None:
        """Turn the rows on the disk into a Parquet file, and begin a new file of lines."""
        with self._disk:
            self.flush()
            if self._file.tell():
                self._close_file()
                self._file = self._open()

    def close(self) -> None:
        """Write all rows as Parquet and end the thread."""
        self._stop.set()
        self._thread.join()
        with self._disk:
            self.flush()
            self._close_file()

    def _run(self) -> None:
        while not self._stop.wait(self._flush_seconds):
            self.flush()
            if time.monotonic() - self._opened_at > self._rotate_seconds:
                try:
                    self.rotate()
                except OSError as error:
                    _log.error("impressions of %s cannot become Parquet (%s)", self.folder, error)

    def _open(self) -> FileIO:
        """Begin a file of lines, locked as long as this process lives."""
        began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{_ACTIVE}{began}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        file = FileIO(self.folder / name, "a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._opened_at = time.monotonic()
        return file

    def _append(self, rows: Sequence[Row]) -> None:
        lines = memoryview(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
        end = self._file.tell()
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # the same rows are written again later
                self._file.truncate(end)
                self._file.seek(end)
            raise

    def _close_file(self) -> None:
        write_parquet(Path(self._file.name), self.schema)
        self._file.close()

    def _recover(self) -> None:
        """Turn lines that dead processes left into Parquet. Those of a process that lives are locked."""
        for path in sorted(self.folder.glob(f"{_ACTIVE}*.jsonl")):
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                write_parquet(path, self.schema)


def write_parquet(path: Path, schema: pa.Schema) -> None:
    """Replace a file of lines by a Parquet file of the same name. A last line without its end is left out."""
    lines = path.read_bytes().splitlines(keepends=True)
    rows = [orjson.loads(line) for line in lines if line.endswith(b"\n")]
    if rows:
        stem = path.name.removeprefix(_ACTIVE).removesuffix(".jsonl")
        target, half = path.parent / f"impressions-{stem}.parquet", path.parent / f".impressions-{stem}.partial"
        names = dict.fromkeys([*schema.names, *(name for row in rows for name in row)])
        types = [schema.field(name) if name in schema.names else pa.field(name, pa.float32()) for name in names]
        with half.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(rows, pa.schema(types)), file)
            file.flush()
            os.fsync(file.fileno())
        half.rename(target)
        _synchronize_folder(path.parent)
    path.unlink()


def _synchronize_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
