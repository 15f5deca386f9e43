"""A history store in a Redis or Valkey server, which many processes read and write without a lock.

One string per key contains fixed-width records, sorted by time (and identity), without duplicates. A read is a binary
search in the server and one copy. ``name:meta`` contains the metadata of the store as JSON, ``name:e:KEY`` the events
of a key, and ``name:a:NAME`` a small array. The server's own settings (``appendfsync``) decide whether a write survives
a power failure.

Address: ``redis://[user:password@]host[:port]/db/name``, or ``rediss://`` for TLS. ``?cap=N`` at creation keeps the
newest N events of a key (up to a quarter more, between two trimmings).
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.column_types import Types, format_type, parse_type, validate_events, validate_types
from longrec.store.history_store import Events
from longrec.store.remote_client import call_server, connect, limit_waiting, mask_password
from longrec.store.remote_scripts import APPEND, LAST, REPLACE
from longrec.store.sorted_events import compute_read_order

if TYPE_CHECKING:
    from redis import Redis

FORMAT = "longrec-remote-1"
_TIME = "@time"
"""Record field of the time. No column can have this name."""
_SCAN = 256
"""Number of keys that a scan reads at once."""
_LOAD = 1 << 23
"""Bytes that a load sends at once."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Meta:
    """Metadata of a remote store.

    Attributes:
        types, rows, identity: as in ``history_store.HistoryStore``.
        cap: maximum number of events per key. 0: all.
        attributes: further JSON attributes.
    """

    types: Types
    rows: int | None
    identity: str | None
    cap: int
    attributes: dict[str, Any]

    def text(self) -> bytes:
        """Return the JSON text that the server stores."""
        columns = {name: format_type(dtype) for name, dtype in self.types.items()}
        return json.dumps({"format": FORMAT, **vars(self), "types": columns}, allow_nan=False).encode()

    @classmethod
    def parse(cls, text: bytes, where: str) -> Meta:
        """Parse the result of ``text``.

        Raises:
            StoreError: if the content is not that of a store, or has another format version.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            content["types"] = {name: parse_type(kind, where) for name, kind in content["types"].items()}
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(where, f"not readable ({error})", FORMAT, "give the address of a store") from None


class RemoteStore:
    """A store of events in a server. See the module."""

    def __init__(self, location: str, client: Redis, name: str, *, writable: bool) -> None:
        self.location, self._client, self._name, self._writable = mask_password(location), client, name, writable
        self._append, self._last = client.register_script(APPEND), client.register_script(LAST)
        self._replace = client.register_script(REPLACE)
        try:
            self.refresh()
        except BaseException:
            client.close()
            raise

    @classmethod
    def create(
        cls,
        location: str,
        columns: Mapping[str, Any],
        rows: int | None = None,
        identity: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Self:
        """Create a store. See ``LsmStore.create``.

        Raises:
            StoreError: if the store exists already, a column has an unsupported type, or the server does not respond.
        """
        client, name, cap = connect(location)
        meta = Meta(
            validate_types(columns, identity, mask_password(location)), rows, identity, cap, dict(attributes or {})
        )
        if not call_server(location, lambda: client.set(f"{name}:meta", meta.text(), nx=True)):
            client.close()
            raise StoreError(
                mask_password(location), "the store exists already", "another name", "open it, or remove it"
            )
        return cls(location, client, name, writable=True)

    @classmethod
    def open(cls, location: str, writable: bool = False) -> Self:
        """Open a store.

        Raises:
            StoreError: if there is no store, it has another format version, or the server does not respond.
        """
        client, name, _ = connect(location)
        return cls(location, client, name, writable=writable)

    def refresh(self) -> None:
        """Read the metadata again. Events are always read from the server."""
        text: Any = self._call(lambda: self._client.get(f"{self._name}:meta"))
        if text is None:
            raise StoreError(self.location, "no store of that name", "one that was created", "create it first")
        self._text, self._meta = text, Meta.parse(text, self.location)
        self.types, self.rows, self.identity = self._meta.types, self._meta.rows, self._meta.identity
        # The identity follows the time, because records are sorted by both.
        names = sorted(self.types, key=lambda name: name != self.identity)
        self._record = np.dtype([(_TIME, "<i8"), *((name, _to_little_endian(self.types[name])) for name in names)])
        self._head = 16 if self.identity is not None else 8

    def limit_waiting(self, seconds: float) -> None:
        """Wait for connections and responses no longer than this, and repeat no call that took too long."""
        limit_waiting(self._client, seconds)

    def ping(self) -> None:
        """Check that the server responds.

        Raises:
            StoreError: if it does not.
        """
        self._call(self._client.ping)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store (a copy)."""
        return dict(self._meta.attributes)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the attributes atomically.

        Raises:
            StoreError: if another writer changed the attributes since they were last read.
        """
        self._change(replace(self._meta, attributes=dict(attributes)))

    def retype(self, columns: Mapping[str, Any]) -> None:
        """Replace the columns of a store without events.

        Raises:
            StoreError: if the store has events, or a column has an unsupported type.
        """
        if next(iter(self._keys()), None) is not None:
            raise StoreError(self.location, "events", "a store without events")
        self._change(replace(self._meta, types=validate_types(columns, self.identity, self.location)))

    def _change(self, meta: Meta) -> None:
        self._require_writable()
        if not self._call(lambda: self._replace(keys=[f"{self._name}:meta"], args=[self._text, meta.text()])):
            actual, expected = "changed by another writer", "the metadata that was last read"
            raise StoreError(self.location, actual, expected, "refresh, then try again")
        self.refresh()

    def put_array(self, name: str, array: NDArray[Any]) -> None:
        """Store a small array beside the events, atomically. It replaces one of the same name."""
        self._require_writable()
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self._call(lambda: self._client.set(f"{self._name}:a:{name}", buffer.getvalue()))

    def take_array(self, name: str) -> NDArray[Any]:
        """Return an array stored beside the events.

        Raises:
            StoreError: if there is no array of that name.
        """
        content: Any = self._call(lambda: self._client.get(f"{self._name}:a:{name}"))
        if content is None:
            raise StoreError(self.location, f"no array {name!r}", "an array that was stored")
        return np.load(io.BytesIO(content), allow_pickle=False)

    def __len__(self) -> int:
        keys = list(self._keys())
        pipe = self._client.pipeline(transaction=False)
        for key in keys:
            pipe.strlen(self._key(key))
        return sum(self._call(pipe.execute)) // self._record.itemsize

    def append(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add events. See ``HistoryStore.append``. Several processes may append."""
        self._require_writable()
        keys, times, columns = validate_events(self.types, self.rows, keys, times, values)
        if len(keys):
            self._send(*self._group_records(keys, times, columns))

    def load(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add many events, some megabytes at a time. After an error the events sent before it are stored."""
        self._require_writable()
        keys, times, columns = validate_events(self.types, self.rows, keys, times, values)
        owners, records = self._group_records(keys, times, columns)
        first, size = 0, 0
        for at, record in enumerate(records):
            size += len(record)
            if size >= _LOAD or at + 1 == len(records):
                self._send(owners[first : at + 1], records[first : at + 1])
                first, size = at + 1, 0

    def _group_records(
        self, keys: NDArray[np.int64], times: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]
    ) -> tuple[list[int], list[bytes]]:
        """Return the keys, and the sorted records of each."""
        order = compute_read_order(keys, times, None if self.identity is None else columns[self.identity])
        records = np.empty(len(keys), self._record)
        records[_TIME] = times
        for name, column in columns.items():
            records[name] = column
        if order is not None:
            keys, records = keys.take(order), records.take(order)
        bounds = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
        data, size = records.tobytes(), self._record.itemsize
        cuts = [*(bounds * size).tolist(), len(data)]
        return keys[bounds].tolist(), [data[low:high] for low, high in itertools.pairwise(cuts)]

    def _send(self, keys: list[int], records: list[bytes]) -> None:
        args: list[Any] = [self._record.itemsize, self._head, self._meta.cap, *records]
        self._call(lambda: self._append(keys=[self._key(key) for key in keys], args=args))

    def last(
        self,
        keys: int | NDArray[Any],
        before: int | NDArray[np.int64],
        n: int,
        where: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Events:
        """Return the last ``n`` events of each key strictly before a timestamp. See ``HistoryStore.last``."""
        for name in (*(columns or ()), *((where,) if where is not None else ())):
            if name not in self.types:
                raise StoreError(self.location, f"no column {name!r}", ", ".join(self.types))
        wanted = np.atleast_1d(np.asarray(keys)).astype(np.int64, copy=False)
        timestamps = np.broadcast_to(np.asarray(before, np.int64), wanted.shape).astype("<i8").tobytes()
        if self.rows is not None and len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.rows:
            raise StoreError(
                "store", f"the key rows {wanted.min()} to {wanted.max()}", f"rows from 0 to {self.rows - 1}"
            )
        blocks: list[bytes] = []
        if len(wanted):
            args: list[Any] = [self._record.itemsize, self._head, n if where is None else -1]
            cuts = [timestamps[at : at + 8] for at in range(0, len(timestamps), 8)]
            names = [self._key(key) for key in wanted.tolist()]
            blocks = self._call(lambda: self._last(keys=names, args=[*args, *cuts]))
        return self._events(blocks, None if where is None else (where, n), columns)

    def _events(self, blocks: list[bytes], filtered: tuple[str, int] | None, columns: Sequence[str] | None) -> Events:
        records = np.frombuffer(b"".join(blocks), self._record)
        offsets = np.zeros(len(blocks) + 1, np.int64)
        np.cumsum([len(block) // self._record.itemsize for block in blocks], out=offsets[1:])
        if filtered is not None:
            where, n = filtered
            passing = np.concatenate([np.zeros(1, np.int64), np.cumsum(records[where] != 0)])
            later = (
                np.repeat(passing[offsets[1:]], np.diff(offsets)) - passing[:-1]
            )  # number of passing records from here on
            kept = (records[where] != 0) & (later <= n)
            records = records[kept]
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[offsets]
        own = {
            name: np.ascontiguousarray(records[name]).astype(self.types[name].base, copy=False)
            for name in (self.types if columns is None else columns)
        }
        return Events(offsets, records[_TIME].astype(np.int64), own)

    def scan(self) -> Iterator[tuple[int, Events]]:
        """Yield every key with its events. See ``HistoryStore.scan``."""
        keys = sorted(self._keys())
        for at in range(0, len(keys), _SCAN):
            some = keys[at : at + _SCAN]
            names = [self._key(key) for key in some]
            blocks: Any = self._call(partial(self._client.mget, names))
            for key, record in zip(some, blocks):
                if record:
                    yield key, self._events([record], None, None)

    def _keys(self) -> set[int]:
        """Return the keys that have events. (The server may list a key twice.)"""
        start = len(self._key(0)) - 1
        names: Any = self._call(lambda: list(self._client.scan_iter(f"{self._name}:e:*", count=1_000)))
        return {int(name[start:]) for name in names}

    def _key(self, key: int) -> str:
        return f"{self._name}:e:{key}"

    def compact(self) -> None:
        """Check that the store is writable. Records are sorted on arrival, so that nothing else is to do."""
        self._require_writable()

    def remove(self) -> None:
        """Remove the store and all its events."""
        self._require_writable()
        names: Any = self._call(lambda: list(self._client.scan_iter(f"{self._name}:*", count=1_000)))
        for at in range(0, len(names), 1_000):
            some = names[at : at + 1_000]
            self._call(partial(self._client.unlink, *some))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _require_writable(self) -> None:
        if not self._writable:
            raise StoreError(
                self.location, "open for reading", "a store open for writing", "open it with writable=True"
            )

    def _call(self, request: Callable[[], ResultT]) -> ResultT:
        return call_server(self.location, request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _to_little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype((dtype.base.newbyteorder("<"), dtype.shape))
