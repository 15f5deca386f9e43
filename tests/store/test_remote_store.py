"""Tests of the remote store: several writers, the cap of events per key, and servers that do not respond."""

from __future__ import annotations

import builtins
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis

from longrec.errors import StoreError
from longrec.store.remote_store import RemoteStore
from longrec.store.token_store import TokenInfo, TokenStore

TYPES = {"name": np.dtype(np.int64), "vector": np.dtype((np.float16, (4,)))}
_numbers = itertools.count()


def events(keys: Any, times: Any, names: Any) -> tuple[Any, Any, dict[str, Any]]:
    names = np.array(names, np.int64)
    return np.array(keys), np.array(times), {"name": names, "vector": np.repeat(names[:, None] % 1_000, 4, 1) * 1.0}


def names(store: RemoteStore, key: int = 7, before: int = 2**63 - 1, n: int = 99) -> list[int]:
    return store.last(key, before, n).columns["name"].tolist()


@pytest.fixture
def location(redis_url: str) -> Iterator[str]:
    where = f"{redis_url}/remote-{next(_numbers)}"
    yield where
    with RemoteStore.open(where, writable=True) as store:
        store.remove()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_timestamps_and_identities_of_64_bits_keep_their_order(location: str) -> None:
    """Lua numbers are doubles, which have no odd integers above 2**53."""
    ends = [-(2**63), -(2**62) - 1, -1, 0, 2**32 - 1, 2**32, 2**53 + 1, 2**53 + 2, 2**62 + 1, 2**63 - 2]
    with RemoteStore.create(location, TYPES, None, "name") as store:
        for at in np.random.default_rng(0).permutation(len(ends)).tolist():
            store.append(*events([7] * len(ends), [ends[at]] * len(ends), ends))
        stored = store.last(7, 2**63 - 1, 1_000)
        assert list(zip(stored.times.tolist(), stored.columns["name"].tolist())) == list(itertools.product(ends, ends))
        for at, end in enumerate(ends):
            assert len(store.last(7, end, 1_000)) == at * len(ends)


def test_many_writers_append_to_one_key(location: str) -> None:
    RemoteStore.create(location, TYPES, None, "name").close()

    def write(writer: int) -> None:
        with RemoteStore.open(location, writable=True) as store:
            for at in range(20):
                store.append(*events([7, 8], [at, at], [at * 4 + writer] * 2))
                store.append(*events([7, 8], [at, at], [at * 4 + writer] * 2))

    writers = [threading.Thread(target=write, args=[writer]) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with RemoteStore.open(location) as store:
        assert names(store) == names(store, 8) == list(range(80))
        assert len(store) == 160


def test_a_cap_keeps_the_newest(location: str, client: redis.Redis) -> None:
    with RemoteStore.create(f"{location}?cap=20", TYPES, None, "name") as store:
        for at in range(0, 300, 3):
            store.append(*events([7] * 3, range(at, at + 3), range(at, at + 3)))
            store.append(*events([7], [0], [0]))  # older than all kept events, so that it may be dropped again
            assert len(store) <= 25
        stored = names(store)
        assert stored[-20:] == list(range(280, 300))
        assert len(stored) <= 25
    with RemoteStore.open(location, writable=True) as again:
        again.append(*events([7] * 30, range(300, 330), range(300, 330)))
        assert names(again) == list(range(310, 330))


def test_a_load_of_many_megabytes_goes_in_pieces(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrec.store.remote_store._LOAD", 100)
    keys = np.arange(200) // 7
    with RemoteStore.create(location, TYPES, None, "name") as store:
        store.load(*events(keys, np.arange(200), np.arange(200)))
        assert len(store) == 200
        assert names(store, 3) == list(range(21, 28))


def test_concurrent_changes_of_metadata_are_refused(location: str) -> None:
    with (
        RemoteStore.create(location, TYPES, None, "name") as first,
        RemoteStore.open(location, writable=True) as second,
    ):
        second.set_attributes({"by": "second"})
        with pytest.raises(StoreError, match=r"changed by another writer.*\n.*Refresh"):
            first.set_attributes({"by": "first"})
        first.refresh()
        assert first.attributes == {"by": "second"}
        first.set_attributes({"by": "first"})
        first.append(*events([7], [1], [1]))
        with pytest.raises(StoreError, match="events; expected a store without events"):
            first.retype({"name": np.int64})
    with pytest.raises(StoreError, match="the store exists already"):
        RemoteStore.create(location, TYPES)


def test_a_reader_writes_nothing(location: str) -> None:
    RemoteStore.create(location, TYPES, None, "name").close()
    with RemoteStore.open(location) as store:
        for write in (
            lambda: store.append(*events([7], [1], [1])),
            lambda: store.load(*events([7], [1], [1])),
            lambda: store.set_attributes({}),
            lambda: store.put_array("a", np.eye(2)),
            store.compact,
            store.remove,
        ):
            with pytest.raises(StoreError, match="open for reading"):
                write()
        with pytest.raises(StoreError, match="no array 'a'"):
            store.take_array("a")


def test_stores_of_one_server_do_not_touch_each_other(redis_url: str, client: redis.Redis) -> None:
    with (
        RemoteStore.create(f"{redis_url}/one", TYPES, None) as one,
        RemoteStore.create(f"{redis_url}/one.two", TYPES, None) as two,
    ):
        one.append(*events([7], [1], [1]))
        two.append(*events([7, 8], [1, 1], [2, 3]))
        assert (len(one), len(two)) == (1, 2)
        one.remove()
        assert names(two) == [2]
        two.remove()
    assert not list(client.scan_iter("one*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no store of that name"),
        (b"{", "not readable"),
        (b"[]", "not readable"),
        (b'{"format": "longrec-remote-9"}', "another format"),
        (b'{"format": "longrec-remote-1"}', "not readable"),
    ],
)
def test_what_is_no_store_is_refused(redis_url: str, client: redis.Redis, text: bytes | None, message: str) -> None:
    if text is not None:
        client.set("odd:meta", text)
    with pytest.raises(StoreError, match=message):
        RemoteStore.open(f"{redis_url}/odd")
    client.delete("odd:meta")


@pytest.mark.parametrize(
    "location",
    ["redis://host/0", "redis://host/x/name", "redis://host/0/a/b", "redis://host/0/a*", "http://host/0/name"],
)
def test_an_invalid_address_is_refused(location: str) -> None:
    with pytest.raises(StoreError, match="not the address of a store; expected redis://host:port/db/name"):
        RemoteStore.open(location)
    with pytest.raises(StoreError, match="the options"):
        RemoteStore.open("redis://host/0/name?cap=-1")
    with pytest.raises(StoreError, match="the options"):
        RemoteStore.open("redis://host/0/name?cup=1")


def test_a_server_that_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "redis://user:secret@127.0.0.1:1/0/name"
    for begin in (lambda: TokenStore.open(where), lambda: TokenStore.create(where, TokenInfo(width=4))):
        with pytest.raises(StoreError, match=r"no response .*\n.*Start redis-server or valkey-server") as raised:
            begin()
        assert "secret" not in str(raised.value)
    import_ = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "redis":
            raise ImportError(name)
        return import_(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StoreError, match=r"redis is not installed\n.*longrec\[remote\]"):
        TokenStore.open(where)


def test_a_server_that_is_full_refuses(redis_url: str, client: redis.Redis, location: str) -> None:
    with RemoteStore.create(location, TYPES, None, "name") as store:
        store.append(*events([7], [1], [1]))
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreError, match="the server refuses"):
                store.append(*events([7], [2], [2]))
        finally:
            client.config_set("maxmemory", "0")
        assert names(store) == [1]


def test_a_script_that_the_server_forgot_is_sent_again(location: str, client: redis.Redis) -> None:
    with RemoteStore.create(location, TYPES, None, "name") as store:
        store.append(*events([7], [1], [1]))
        client.script_flush()
        store.append(*events([7], [2], [2]))
        client.script_flush()
        assert names(store) == [1, 2]
