"""Stores of the states of users: a database file, or a Redis or Valkey server.

A state is derived from the stored events, so that a lost one is computed again. A removed state must stay removed, so
every removal is durable. A stored one need not be: after a loss of power its user has none, or the one before, which no
event has removed.
"""

from __future__ import annotations

import sqlite3
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from longrec.errors import StoreError
from longrec.exporting.store_copies import is_remote
from longrec.store.remote_client import call_server, connect, limit_waiting, mask_password

_HEADER = struct.Struct("<qq")
_WAIT = 2
"""Seconds that a request waits for a server of states."""


class StoredState(msgspec.Struct, frozen=True):
    """The state of one user.

    Attributes:
        until: events before this timestamp are in the state.
        at: requests from this timestamp on may use it.
        content: the packed states of all histories, as bytes.
    """

    until: int
    at: int
    content: bytes


class StateStore(Protocol):
    """Store of the states of one bundle, by the key numbers of users."""

    def get(self, user: int) -> StoredState | None:
        """Return the state of a user, or None."""
        ...

    def put(self, states: Mapping[int, StoredState]) -> None:
        """Store the states of users."""
        ...

    def remove(self, user: int, time: int) -> None:
        """Remove the state of a user if an event at a timestamp would be in it."""
        ...

    def remove_all(self, times: Mapping[int, int]) -> None:
        """Remove the states of users in which an event at the timestamp of the user would be."""
        ...

    def count(self) -> int:
        """Return the number of states."""
        ...

    def close(self) -> None:
        """Close the store."""
        ...


def open_states(location: str, seconds: int, most: int) -> StateStore:
    """Open the store of states at a location: a file, or an address. A missing one is created.

    Args:
        seconds: time after its last use until a state is removed.
        most: number of states. The least recently used ones above it are removed. A server has its own limit.

    Raises:
        StoreError: if it cannot be opened.
    """
    return RemoteStates(location, seconds) if is_remote(location) else FileStates(Path(location), seconds, most)


class FileStates:
    """Store in a database file, which several processes may use at once.

    Args:
        path: the file.
        seconds, most: see ``open_states``.
    """

    def __init__(self, path: Path, seconds: int, most: int) -> None:
        self._seconds, self._most, self._lock = seconds, most, threading.Lock()
        self._where = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._database.execute("pragma journal_mode=wal")
            self._database.execute(
                "create table if not exists states"
                "(user integer primary key, until integer, at integer, used integer, content blob)"
            )
            self._database.execute("create index if not exists by_use on states(used)")
        except sqlite3.Error as error:
            raise self._build_error(error) from None

    def get(self, user: int) -> StoredState | None:
        """Return the state of a user, or None."""
        rows = self._run("select until, at, content, used from states where user = ?", (user,))
        if not rows:
            return None
        until, at, content, used = rows[0]
        now = int(time.time())
        if now - used > self._seconds // 8:  # so that a read seldom writes
            self._run("update states set used = ? where user = ?", (now, user))
        return StoredState(until, at, content)

    def put(self, states: Mapping[int, StoredState]) -> None:
        """Store the states of users, and remove those that were not used for long, or are too many.

        This does not wait for the disk, since a request does it.
        """
        now = int(time.time())
        rows = [(user, one.until, one.at, now, one.content) for user, one in states.items()]
        with self._change(durably=False) as cursor:
            cursor.executemany("insert or replace into states values (?, ?, ?, ?, ?)", rows)
            cursor.execute("delete from states where used < ?", (now - self._seconds,))
            (count,) = cursor.execute("select count(*) from states").fetchone()
            if count > self._most:
                oldest = "select user from states order by used limit ?"
                cursor.execute(f"delete from states where user in ({oldest})", (count - self._most,))

    def remove(self, user: int, time: int) -> None:
        """Remove the state of a user if an event at a timestamp would be in it."""
        self.remove_all({user: time})

    def remove_all(self, times: Mapping[int, int]) -> None:
        """Remove the states of users in which an event at the timestamp of the user would be."""
        with self._change(durably=True) as cursor:
            cursor.executemany("delete from states where user = ? and until > ?", list(times.items()))

    @contextmanager
    def _change(self, *, durably: bool) -> Iterator[sqlite3.Cursor]:
        """Change the file in one transaction.

        Args:
            durably: wait until the disk has the change. It then has all changes before it too.
        """
        with self._lock:
            try:
                with closing(self._database.cursor()) as cursor:
                    cursor.execute(f"pragma synchronous={'full' if durably else 'normal'}")
                    cursor.execute("begin immediate")
                    yield cursor
                    cursor.execute("commit")
            except sqlite3.Error as error:
                raise self._build_error(error) from None
            finally:
                if self._database.in_transaction:
                    self._database.execute("rollback")

    def count(self) -> int:
        """Return the number of states."""
        return int(self._run("select count(*) from states", ())[0][0])

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _run(self, statement: str, values: Sequence[int]) -> list[tuple[int, int, bytes, int]]:
        with self._lock:
            try:
                return self._database.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._build_error(error) from None

    def _build_error(self, error: sqlite3.Error) -> StoreError:
        do = "free space, or remove the file: states are computed again from the events"
        return StoreError(self._where, f"the file of states does not respond ({error})", "a database file", do)


class RemoteStates:
    """Store at a Redis or Valkey server, which removes states after their time.

    Args:
        location: its address.
        seconds: time after its last change until a state is removed.
    """

    def __init__(self, location: str, seconds: int) -> None:
        self._location, self._seconds = location, seconds
        self._client, self._name, _ = connect(location)
        limit_waiting(self._client, _WAIT)
        self._removal = self._client.register_script(_REMOVE)

    def get(self, user: int) -> StoredState | None:
        """Return the state of a user, or None."""
        content = call_server(self._location, lambda: self._client.get(self._key(user)))
        if content is None:
            return None
        if not isinstance(content, bytes) or len(content) < _HEADER.size:
            raise StoreError(mask_password(self._location), "a value that is no state", "a state of a user")
        until, at = _HEADER.unpack(content[: _HEADER.size])
        return StoredState(until, at, content[_HEADER.size :])

    def put(self, states: Mapping[int, StoredState]) -> None:
        """Store the states of users."""
        with self._client.pipeline(transaction=False) as batch:
            for user, one in states.items():
                batch.set(self._key(user), _HEADER.pack(one.until, one.at) + one.content, ex=self._seconds)
            call_server(self._location, batch.execute)

    def remove(self, user: int, time: int) -> None:
        """Remove the state of a user if an event at a timestamp would be in it."""
        self.remove_all({user: time})

    def remove_all(self, times: Mapping[int, int]) -> None:
        """Remove the states of users in which an event at the timestamp of the user would be."""
        keys, packed = [self._key(user) for user in times], [_HEADER.pack(time, 0)[:8] for time in times.values()]
        call_server(self._location, lambda: self._removal(keys, packed))

    def count(self) -> int:
        """Return the number of states."""
        return call_server(self._location, lambda: sum(1 for _ in self._client.scan_iter(f"{self._name}:*", 1_000)))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _key(self, user: int) -> str:
        return f"{self._name}:{user}"


_REMOVE = """
for n, key in ipairs(KEYS) do
  local content = redis.call('getrange', key, 0, 7)
  if #content == 8 and struct.unpack('<i8', content) > struct.unpack('<i8', ARGV[n]) then redis.call('del', key) end
end
"""
"""A script, so that no state that another process writes in between is removed by its age."""
