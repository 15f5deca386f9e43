"""Fingerprint of the inputs of a prepared log: one digest of the contents of files and frames, and of the
results of queries.

The content of a file is hashed once. Its digest is stored next to the prepared logs, with size, times and inode
of the file, and the file is hashed again only if these changed. So the prepared log is reused if a file is rewritten
with the same content, and not if it is replaced by another file of the same size and modification time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from longrec.data.input_files import group_files_by_split
from longrec.data.settings import DataConfig
from longrec.data.sql import unreadable, wrap_query
from longrec.errors import DataError

INDEX = "files.json"
_RACY = 2_000_000_000
"""Nanoseconds. A file changed within this time before it was hashed may have changed again with the same timestamp."""


def fingerprint(config: DataConfig, connect: Callable[[], duckdb.DuckDBPyConnection], files: ContentIndex) -> str:
    """Return a digest of the inputs: path, content, split and format of every file, the result of each query, and the
    contents of each frame.

    Args:
        connect: returns a connection. It is called for queries only.
    """
    sections: list[str] = []
    for source in (config.log, config.users, config.items):
        if source is None:
            sections.append("none")
        elif source.query is not None:
            con = connect()
            query = wrap_query(con, source.query, str(source))
            try:
                columns = [row[:2] for row in con.execute(f"DESCRIBE SELECT * FROM ({query})").fetchall()]
                # A sum, because equal rows would cancel out in an exclusive or.
                rows = con.execute(f"SELECT count(*), sum(hash(q)) FROM ({query}) q").fetchall()
            except duckdb.Error as error:
                raise unreadable(str(source), error) from None
            sections.append(f"{query} {columns} {rows}")
        elif source.frame is not None:
            sections.append(f"frame {source.frame.digest}")
        else:
            for split, paths in group_files_by_split(source).items():
                if split is not None:
                    sections.append(f"part {split}")
                sections += [f"{path.resolve()} {files.digest(path)}" for path in paths]
        if source is not None and source.rows is not None:
            sections.append(f"rows {source.rows.model_dump_json()}")
        if source is not None and source.nulls:
            sections.append(f"nulls {list(source.nulls)}")
        if source is not None and source.as_of is not None:
            sections.append(f"as of {source.as_of}")
    return hashlib.sha256("\n".join(sections).encode()).hexdigest()


class ContentIndex:
    """Cache of the content digests of files, stored in ``files.json`` of a folder of prepared logs.

    If an entry is lost, its file is hashed again. So a damaged index is ignored, and if two processes write at the same
    time, either version may remain.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / INDEX
        self._entries = self._read()
        self._used: dict[str, Path] = {}
        self._new: dict[str, dict[str, Any]] = {}

    def digest(self, path: Path) -> str:
        """Return the digest of a file's content.

        Raises:
            DataError: a file that cannot be read, or that changes while it is read.
        """
        key = str(path.resolve())
        self._used[key] = path
        stat = _stat(path)
        entry = self._entries.get(key)
        if entry is None or entry["stat"] != stat or max(stat[1], stat[2]) > entry["hashed_at"] - _RACY:
            began = time.time_ns()
            try:
                with path.open("rb") as file:
                    content_digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(str(path), f"cannot be read: {error.strerror}", "a file that can be read") from None
            entry = {"stat": stat, "hashed_at": began, "digest": content_digest}
            self._entries[key] = self._new[key] = entry
            self.check()
        return str(entry["digest"])

    def check(self) -> None:
        """Raise an error if a file changed since it was read, since rows of two states would be mixed.

        Raises:
            DataError: a changed file.
        """
        for key, path in self._used.items():
            if not path.exists() or _stat(path) != self._entries[key]["stat"]:
                raise DataError(str(path), "changed while it was read", "a file that does not change", "prepare again")

    def save(self, scratch: Path) -> None:
        """Write new entries atomically, through a copy in ``scratch``, a folder of the same file system.

        Write errors are ignored, because the index is only a cache.
        """
        if not self._new:
            return
        entries = {key: entry for key, entry in {**self._read(), **self._new}.items() if os.path.exists(key)}
        with contextlib.suppress(OSError):
            copy = scratch / INDEX
            copy.write_text(json.dumps(entries, indent=1), encoding="utf-8")
            copy.replace(self._path)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return (
            {key: entry for key, entry in content.items() if _is_complete(entry)} if isinstance(content, dict) else {}
        )


def _stat(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _is_complete(entry: Any) -> bool:
    """Return whether an entry has all its fields, as opposed to a damaged one."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("digest"), str)
        and isinstance(entry.get("hashed_at"), int)
        and isinstance(entry.get("stat"), list)
    )
