"""Tests of the LSM store: its lock, refresh of readers, crashes and full disks."""

from __future__ import annotations

import errno
import gc
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store import compaction, lsm_files
from longrec.store.lsm_store import LsmStore

TYPES = {"name": np.dtype(np.int64), "small": np.dtype(np.int32), "vector": np.dtype((np.float16, (4,)))}


def events(keys: Any, times: Any, names: Any, value: int = 0) -> tuple[Any, Any, dict[str, NDArray[Any]]]:
    keys, times, names = (np.array(array, np.int64) for array in (keys, times, names))
    vectors = np.repeat(names[:, None] % 1_000, 4, 1).astype(np.float16)
    return keys, times, {"name": names, "small": np.full(len(keys), value), "vector": vectors}


def store_of(folder: Path, count: int = 3) -> LsmStore:
    store = LsmStore.create(folder, TYPES, None, "name", {"about": "test"}, sync=False)
    store.append(*events([7] * count, range(count), range(count)))
    return store


def names(store: LsmStore, key: int = 7) -> list[int]:
    return store.last(key, 10**6, 10**6).columns["name"].tolist()


def test_appended_events_are_read_after_reopening(tmp_path: Path) -> None:
    with store_of(tmp_path / "s") as store:
        store.set_attributes({"about": "test", "more": [1, 2.5]})
        store.put_array("books", np.eye(3))
    with LsmStore.open(tmp_path / "s", verify=True) as reader:
        assert names(reader) == [0, 1, 2]
        assert reader.attributes == {"about": "test", "more": [1, 2.5]}
        assert np.array_equal(reader.take_array("books"), np.eye(3))
        assert (reader.recovery.dropped_bytes, reader.recovery.saved_to) == (0, None)
        with pytest.raises(StoreError, match="open for reading"):
            reader.append(*events([1], [1], [1]))
        for write in (reader.compact, lambda: reader.set_attributes({}), lambda: reader.put_array("x", np.eye(1))):
            with pytest.raises(StoreError, match="open for reading"):
                write()
        with pytest.raises(StoreError, match="no readable array"):
            reader.take_array("none")
        with pytest.raises(StoreError, match=r"an array named '\.\./store'"):
            reader.take_array("../store")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s")
    for second in (
        lambda: LsmStore.open(tmp_path / "s", writable=True),
        lambda: LsmStore.create(tmp_path / "s", TYPES),
    ):
        with pytest.raises(StoreError, match="another writer holds it"):
            second()
    assert names(LsmStore.open(tmp_path / "s")) == [0, 1, 2]
    store.close()
    with pytest.raises(StoreError, match="the store exists already"):
        LsmStore.create(tmp_path / "s", TYPES)
    LsmStore.open(tmp_path / "s", writable=True)  # not closed: the lock is released with the object
    gc.collect()
    with LsmStore.open(tmp_path / "s", writable=True) as again:
        again.append(*events([7], [9], [9]))
        assert names(again) == [0, 1, 2, 9]
    with pytest.raises(StoreError, match="closed"):
        again.append(*events([7], [9], [9]))


def test_a_forked_process_neither_keeps_nor_releases_the_lock(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s")
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        store.close()  # as if it were garbage-collected there
        os.write(write_end, b"x")
        os._exit(0)
    os.read(read_end, 1)
    with pytest.raises(StoreError, match="another writer holds it"):
        LsmStore.open(tmp_path / "s", writable=True)
    os.waitpid(child, 0)
    store.append(*events([7], [9], [9]))
    store.close()
    with LsmStore.open(tmp_path / "s", writable=True) as again:
        assert names(again) == [0, 1, 2, 9]
    os.close(read_end)
    os.close(write_end)


def test_a_reader_reads_newer_events_after_refresh(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s")
    reader = LsmStore.open(tmp_path / "s")
    store.append(*events([7, 8], [9, 9], [9, 9]))
    assert names(reader) == [0, 1, 2]
    reader.refresh()
    assert names(reader) == names(store) == [0, 1, 2, 9]
    for _ in range(2):
        store.compact()  # removes the files that the reader has mapped
        store.append(*events([7], [20 + _], [20 + _]))
    assert names(reader) == [0, 1, 2, 9]
    assert dict(reader.scan()).keys() == {7, 8}
    reader.refresh()
    assert names(reader) == names(store) == [0, 1, 2, 9, 20, 21]
    store.set_attributes({"n": 1})
    reader.refresh()
    assert reader.attributes == {"n": 1}
    reader.close()
    with pytest.raises(StoreError, match="closed"):
        reader.refresh()


def test_only_current_files_remain_in_the_folder(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s")
    store.compact()
    store.compact()  # nothing to compact
    store.close()
    left = {path.name for path in (tmp_path / "s").iterdir()}
    assert left == {"lock", "store.json", "segment-000001", "journal-000001.log"}
    (tmp_path / "s" / "segment-000009").mkdir()
    (tmp_path / "s" / "journal-000009.log").write_bytes(b"x")
    (tmp_path / "s" / "notes").mkdir()
    LsmStore.open(tmp_path / "s").close()
    assert (tmp_path / "s" / "segment-000009").exists()  # a reader removes nothing
    LsmStore.open(tmp_path / "s", writable=True).close()
    assert {path.name for path in (tmp_path / "s").iterdir()} == left | {"notes"}


def test_integers_are_stored_as_narrow_as_possible(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s")
    store.compact()
    columns = json.loads((tmp_path / "s" / "segment-000001" / "segment.json").read_text())["columns"]
    assert columns == {"name": "uint8", "small": "uint8", "vector": "float16[4]"}
    store.append(*events([7], [3], [-(2**60)], value=-3))
    store.compact()
    columns = json.loads((tmp_path / "s" / "segment-000002" / "segment.json").read_text())["columns"]
    assert columns == {"name": "int64", "small": "int8", "vector": "float16[4]"}
    got = store.last(7, 99, 99)
    assert got.columns["small"].tolist() == [0, 0, 0, -3]
    assert (got.columns["small"].dtype, names(store)[-1]) == (np.int32, -(2**60))


@pytest.mark.parametrize("step", ["segment", "wal", "manifest"])
def test_a_compaction_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    store = store_of(tmp_path / "s")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if step == "segment":
            patched.setattr(compaction, "write_manifest", full)
        elif step == "wal":
            patched.setattr("longrec.store.lsm_store.sync_path", full)
        else:
            patched.setattr(lsm_files, "_replace", full)
        with pytest.raises(StoreError, match="No space left on device"):
            store.compact()
        assert names(store) == [0, 1, 2]
    store.append(*events([7], [9], [9]))
    assert names(LsmStore.open(tmp_path / "s")) == [0, 1, 2, 9]
    store.compact()
    assert names(LsmStore.open(tmp_path / "s", verify=True)) == [0, 1, 2, 9]


def test_a_manifest_that_may_not_last_ends_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest was replaced, but the disk failed. Events appended to the old log could be lost."""
    store = store_of(tmp_path / "s")
    replace_ = lsm_files._replace

    def fails_late(*arguments: Any) -> None:
        replace_(*arguments)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lsm_files, "_replace", fails_late)
    with pytest.raises(StoreError, match="Input/output error"):
        store.compact()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="closed"):
        store.append(*events([7], [9], [9]))
    with LsmStore.open(tmp_path / "s", writable=True, verify=True) as again:
        assert names(again) == [0, 1, 2]


def test_an_append_that_meets_a_full_disk_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path / "s")
    write = os.pwrite

    def half(file: int, data: Any, at: int) -> int:
        if len(data) < 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, bytes(data)[: len(data) // 2], at)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(StoreError, match=r"No space left on device\n.*append again"):
        store.append(*events([7], [9], [9]))
    monkeypatch.undo()
    assert names(store) == [0, 1, 2]
    store.append(*events([7], [10], [10]))
    reader = LsmStore.open(tmp_path / "s")
    assert names(reader) == [0, 1, 2, 10]
    assert reader.recovery.dropped_bytes == 0


def test_a_disk_that_fails_ends_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LsmStore.create(tmp_path / "s", TYPES, None, "name")

    def fails(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(StoreError, match="the disk failed"):
        store.append(*events([7], [1], [1]))
    monkeypatch.undo()
    with pytest.raises(StoreError, match="the disk failed"):
        store.append(*events([7], [2], [2]))
    store.close()
    with LsmStore.open(tmp_path / "s", writable=True) as again:
        again.append(*events([7], [1], [1]))  # whether it was stored before or not, it is stored once now
        assert names(again) == [1]


def test_new_events_are_compacted_when_memory_ends(tmp_path: Path) -> None:
    store = LsmStore.create(tmp_path / "s", TYPES, None, "name", sync=False, memtable_bytes=28 * 10)
    for at in range(0, 40, 4):
        store.append(*events([7] * 4, range(at, at + 4), range(at, at + 4)))
    assert list((tmp_path / "s").glob("segment-*"))
    assert names(store) == names(LsmStore.open(tmp_path / "s", verify=True)) == list(range(40))


@pytest.mark.parametrize("case", ["sorted", "ties", "mixed"])
def test_a_load_is_a_sorted_append(tmp_path: Path, case: str) -> None:
    random = np.random.default_rng(0)
    keys, times, ids = random.integers(-50, 50, (3, 2_000)) // np.array([[1], [2], [5]])
    order = {
        "sorted": np.lexsort((ids, times, keys)),
        "ties": np.lexsort((times, keys)),
        "mixed": np.arange(len(keys)),
    }[case]
    keys, times, ids = keys[order], times[order], ids[order]
    kept = {triple: at for at, triple in enumerate(zip(keys.tolist(), times.tolist(), ids.tolist()))}
    store = LsmStore.create(tmp_path / "s", {"name": np.int64, "at": np.int32}, None, "name", sync=False)
    store.append(keys[:5], times[:5], {"name": ids[:5], "at": np.full(5, -1)})
    store.load(keys, times, {"name": ids, "at": np.arange(len(keys))})
    positions = {}
    for key, own in store.scan():
        for time, name, at in zip(own.times.tolist(), own.columns["name"].tolist(), own.columns["at"].tolist()):
            positions[(key, time, name)] = at
    assert list(positions.items()) == sorted(kept.items())
    assert len(store) == len(kept)


def test_an_empty_store_accepts_other_columns(tmp_path: Path) -> None:
    store = LsmStore.create(tmp_path / "s", {"name": np.int64}, None, "name")
    reader = LsmStore.open(tmp_path / "s")
    store.retype(TYPES)
    store.append(*events([7], [1], [1]))
    reader.refresh()
    assert names(reader) == [1]
    assert reader.types == TYPES
    with pytest.raises(StoreError, match="1 events; expected a store without events"):
        store.retype({"name": np.int64})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "longrec-store-9"}, "format 'longrec-store-9'; expected longrec-store-1"),
        ({"columns": {"name": "text"}}, "a column of type 'text'"),
        ({"columns": 3}, "store.json: not readable"),
        ({"generation": 8}, "no journal-000008.log"),
        ({"segment": "segment-000003"}, "no readable segment.json"),
        (
            {"columns": {"name": "int64", "small": "int32", "other": "int8"}},
            "a segment with the columns name, small, vector; expected name, small, other",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store = store_of(tmp_path / "s")
    store.compact()
    store.close()
    path = tmp_path / "s" / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for writable in (False, True):
        with pytest.raises(StoreError, match=message):
            LsmStore.open(tmp_path / "s", writable)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no readable store.json"):
        LsmStore.open(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        LsmStore.create(tmp_path / "file", TYPES)
    store = store_of(tmp_path / "s")
    with pytest.raises(StoreError, match="attributes that are not JSON"):
        store.set_attributes({"n": float("nan")})
    store.close()
    (tmp_path / "s" / "store.json").write_text("{")
    with pytest.raises(StoreError, match="no readable store.json"):
        LsmStore.open(tmp_path / "s")


def test_a_damaged_segment_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s")
    store.compact()
    store.close()
    path = tmp_path / "s" / "segment-000001" / "vector.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="checksum"):
        LsmStore.open(tmp_path / "s", verify=True)
    path.unlink()
    with pytest.raises(StoreError, match="no such file"):
        LsmStore.open(tmp_path / "s")


def test_threads_read_while_one_writes_and_compacts(tmp_path: Path) -> None:
    """Every read returns a prefix of the written events, never shorter than the read before."""
    store = LsmStore.create(tmp_path / "s", TYPES, None, "name", sync=False)
    done, faults = threading.Event(), []

    def read() -> None:
        seen = 0
        while not done.is_set():
            got = store.last(np.array([7, 8, 7]), 10**6, 10**6)
            for index in range(3):
                own = slice(*got.offsets[index : index + 2])
                own_names, vectors = got.columns["name"][own], got.columns["vector"][own]
                if (
                    own_names.tolist() != list(range(len(own_names)))
                    or not (vectors == (own_names % 1_000)[:, None]).all()
                ):
                    faults.append((index, own_names))
            if got.offsets[1] < seen:
                faults.append(("shorter", seen))
            seen = int(got.offsets[1])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for at in range(0, 400, 4):
        for key in (7, 8):
            store.append(*events([key] * 4, [time // 3 for time in range(at, at + 4)], range(at, at + 4)))
        if at % 80 == 40:
            store.compact()
    done.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert names(store) == list(range(400))
