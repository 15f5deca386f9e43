"""Streams of events at a Redis or Valkey server: entries that are read with a consumer group, one worker at a time.

Addresses are those of stores, ``redis://host:port/db/name`` with the name of the stream. ``name:GROUP:worker`` names
the worker that reads now, so that entries are read in their order, and ``name:refused`` has the entries that are no
valid events. An entry stays pending until its event is stored, so that none is lost, whenever a worker ends.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from longrec.errors import ServerError, StoreError
from longrec.store.remote_client import call_server, connect, mask_password

FIELD = "event"
"""Field of an entry with the JSON of its event."""
_HELD = 30_000
"""Milliseconds after its last sign of life until a worker counts as ended."""
_CLAIMED = 10_000
"""Number of pending entries that are claimed at once."""


@dataclass(frozen=True)
class Entry:
    """One entry of a stream.

    Attributes:
        name: its id, such as ``1700000000000-0``.
        content: the JSON of its event. None for an entry without one.
    """

    name: str
    content: bytes | None

    @property
    def position(self) -> tuple[int, int]:
        """Both numbers of the id, by which entries are ordered. The first is milliseconds UTC, if the server set it."""
        first, _, second = self.name.partition("-")
        return int(first), int(second)


class EventStream:
    """A stream that one worker of a consumer group reads.

    Args:
        location: address of the stream.
        group: the consumer group. A missing one is created and reads the stream from its first entry.
        consumer: name of the worker, which a restarted one has again.

    Raises:
        StoreError: if the address is invalid.
    """

    def __init__(self, location: str, group: str, consumer: str) -> None:
        self._location, self.group, self.consumer = location, group, consumer
        self._client, self.name, cap = connect(location)
        from redis.backoff import NoBackoff  # only now: connect says what is missing
        from redis.retry import Retry

        self._client.set_retry(Retry(NoBackoff(), 0))  # a repeated call could write a refused entry twice
        if cap:
            raise StoreError(self.location, f"the option cap={cap}", "the address of a stream, without options")
        self._own = f"{secrets.token_hex(8)} {consumer}"
        self._holding = self._client.register_script(_HOLD)

    @property
    def location(self) -> str:
        """Its address without a password."""
        return mask_password(self._location)

    def join(self) -> str | None:
        """Create the group, and become its worker.

        Returns:
            None, or the name of another worker that reads the stream now.
        """
        self._create_group()
        holder: Any = self._hold(takes=True)
        return None if holder is None else holder.decode().partition(" ")[2]

    def stay(self) -> None:
        """Show that this worker is alive.

        Raises:
            StoreError: if another worker reads the stream.
        """
        if (holder := self._hold(takes=False)) is not None:
            name = holder.decode().partition(" ")[2]
            do = "run one worker per stream and group, or several streams with users of their own"
            raise StoreError(self.location, f"the worker {name!r} reads it now", "one worker", do)

    def leave(self) -> None:
        """Let the next worker begin at once, if the server responds, and close the connection."""
        with contextlib.suppress(ServerError):
            if self._hold(takes=False) is None:
                call_server(self._location, lambda: self._client.delete(self._lock))
        self._client.close()

    @property
    def _lock(self) -> str:
        return f"{self.name}:{self.group}:worker"

    def _hold(self, *, takes: bool) -> bytes | None:
        arguments: list[str | int] = [self._own, self.consumer if takes else "", _HELD]
        holder: Any = call_server(self._location, lambda: self._holding([self._lock], arguments))
        return None if holder is None else bytes(holder)

    def _create_group(self) -> None:
        import redis

        def create() -> None:
            try:
                self._client.xgroup_create(self.name, self.group, "0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):  # which it is if the group exists
                    raise

        call_server(self._location, create)

    def claim(self) -> tuple[list[Entry], int]:
        """Return all entries that were read and not finished, in their order, and how many of them were trimmed."""
        entries, trimmed, start = list[Entry](), 0, "0-0"
        while True:
            own = self.name, self.group, self.consumer, 0, start
            reply: Any = call_server(self._location, partial(self._client.xautoclaim, *own, count=_CLAIMED))
            cursor, rows, deleted = reply[0], reply[1], reply[2] if len(reply) > 2 else []
            entries += _read_entries(rows)
            trimmed += len(deleted)
            start = cursor.decode()
            if start == "0-0":
                return entries, trimmed

    def read(self, count: int, wait: int) -> list[Entry]:
        """Return entries that no worker has read yet. They are pending from now on.

        Args:
            count: largest number of entries.
            wait: milliseconds to wait for the first one.
        """
        read = self._client.xreadgroup
        reply: Any = call_server(
            self._location, lambda: read(self.group, self.consumer, {self.name: ">"}, count=count, block=wait)
        )
        return _read_entries(reply[0][1]) if reply else []

    def finish(self, entries: Sequence[Entry], refused: Sequence[tuple[Entry, str]] = ()) -> None:
        """Mark entries as read, and write those that are refused to ``name:refused``, all at once."""
        if not entries:
            return

        def send() -> None:
            with self._client.pipeline(transaction=True) as batch:
                for entry, reason in refused:
                    own: dict[Any, Any] = {"entry": entry.name, "reason": reason, FIELD: entry.content or b""}
                    batch.xadd(f"{self.name}:refused", own)
                batch.xack(self.name, self.group, *(entry.name for entry in entries))
                batch.execute()

        call_server(self._location, send)

    def count_waiting(self) -> int | None:
        """Return the number of entries that are not read yet. None if the server does not know it."""
        groups: Any = call_server(self._location, lambda: self._client.xinfo_groups(self.name))
        own = [one for one in groups if one["name"] == self.group.encode()]
        if not own:
            raise ServerError(self.location, f"no group {self.group!r}", "the group of the worker")
        waiting = own[0].get("lag")
        return None if waiting is None else int(waiting)


def _read_entries(rows: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    return [Entry(name.decode(), (fields or {}).get(FIELD.encode())) for name, fields in rows if name is not None]


_HOLD = """
-- KEYS: the lock. ARGV: own value (token, space, name), the name whose lock is taken over (or ''), milliseconds.
-- Returns nothing, or the value of the other worker that holds it.
local holder = redis.call('get', KEYS[1])
local same = ARGV[2] ~= '' and holder and string.sub(holder, 18) == ARGV[2]
if holder and holder ~= ARGV[1] and not same then return holder end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[3])
"""
