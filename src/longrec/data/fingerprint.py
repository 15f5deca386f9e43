"""Fingerprint of the sources of a prepared log: contents of files and results of queries, as one digest.

The content of a file is hashed once. Its digest is kept beside the prepared logs with what the file system says of the
file, and the file is read again only where that changed: a copy, a checkout or a new time stamp finds the log prepared
before, and a file replaced by one of equal size and time does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import duckdb

from longrec.data.relation import group_files_by_split, query_rows, unreadable
from longrec.data.settings import DataConfig
from longrec.errors import DataError

INDEX = "files.json"
_RACY = 2_000_000_000
"""Nanoseconds. A file changed so shortly before it was hashed may have changed again within one tick of its clock."""


def fingerprint(config: DataConfig, con: duckdb.DuckDBPyConnection, files: ContentIndex) -> str:
    """Return a digest of the sources: path, content, split and format of every file, and the result of a query."""
    sections: list[str] = []
    for source in (config.log, config.users, config.items):
        if source is None:
            sections.append("none")
        elif source.query is not None:
            query = query_rows(source.query)
            try:
                columns = [row[:2] for row in con.execute(f"DESCRIBE SELECT * FROM ({query})").fetchall()]
                # A sum, not an exclusive or, in which two equal rows would cancel out.
                rows = con.execute(f"SELECT count(*), sum(hash(q)) FROM ({query}) q").fetchall()
            except duckdb.Error as error:
                raise unreadable(str(source), error) from None
            sections.append(f"{query} {columns} {rows}")
        else:
            for split, paths in group_files_by_split(source).items():
                if split is not None:
                    sections.append(f"part {split}")
                sections += [f"{path.resolve()} {files.digest(path)}" for path in paths]
            if source.rows is not None:
                sections.append(f"rows {source.rows.model_dump_json()}")
        if source is not None and source.as_of is not None:
            sections.append(f"as of {source.as_of}")
    return hashlib.sha256("\n".join(sections).encode()).hexdigest()


class ContentIndex:
    """Index of the content digests of files, kept in ``files.json`` of a folder of prepared logs.

    Losing an entry costs a reading of its file, no more: a damaged index is written anew, and of two processes that
    write at once either may win.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / INDEX
        self._entries = self._read()
        self._used: dict[str, Path] = {}
        self._new: dict[str, dict[str, Any]] = {}

    def digest(self, path: Path) -> str:
        """Return the digest of a file's content.

        Raises:
            DataError: a file that cannot be read, or that changes meanwhile.
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
        """Refuse files that changed since they were read: rows of two states would be mixed.

        Raises:
            DataError: with the file.
        """
        for key, path in self._used.items():
            if not path.exists() or _stat(path) != self._entries[key]["stat"]:
                raise DataError(str(path), "changed while it was read", "a file that stays as it is", "prepare again")

    def save(self, scratch: Path) -> None:
        """Write new entries, through a copy in ``scratch``, a folder of the same file system.

        The index only saves reading, so a folder that cannot be written, or a full disk, is none of its business.
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
    """Return whether an entry has all its fields. Anything else in the file is damage."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("digest"), str)
        and isinstance(entry.get("hashed_at"), int)
        and isinstance(entry.get("stat"), list)
    )
