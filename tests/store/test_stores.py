"""Tests of stores whose keys are rows of a table, as in bundles and prepared logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.errors import StoreError
from longrec.store.disk_store import DiskStore
from longrec.store.history_store import HistoryStore
from longrec.store.lsm_store import LsmStore
from longrec.store.memory_store import MemoryStore
from longrec.store.segment import Segment

ROWS = 5
TYPES = {"item": np.dtype(np.uint8), "known.r": np.dtype(np.int64)}


def segment() -> Segment:
    """Return a segment with events of key rows 1, 1 and 3."""
    items, available = np.array([0, 1, 2], np.uint8), np.array([4, 5, 4])
    return Segment(np.array([0, 0, 2, 2, 3, 3]), np.array([1, 2, 1]), {"item": items, "known.r": available})


def memory() -> HistoryStore:
    store = MemoryStore(TYPES, ROWS)
    store.append(np.array([1, 1, 3]), np.array([1, 2, 1]), {"item": np.arange(3), "known.r": np.array([4, 5, 4])})
    return store


backends = pytest.mark.parametrize("build", [memory, lambda: DiskStore(segment())], ids=["memory", "disk"])


@backends
def test_integers_are_read_wider_than_stored(build: Callable[[], HistoryStore]) -> None:
    store = build()
    store.append(np.array([1]), np.array([3]), {"item": np.array([70_000]), "known.r": np.array([2**40])})
    for keys in (1, np.array([1, 3, 3])):
        got = store.last(keys, 9, 9)
        assert {name: column.dtype for name, column in got.columns.items()} == {"item": np.int32, "known.r": np.int64}
        assert got.columns["item"][:3].tolist() == [0, 1, 70_000]
    with pytest.raises(StoreError, match="values that fit int32"):
        store.append(np.array([1]), np.array([1]), {"item": np.array([2**40]), "known.r": np.array([1])})
    assert len(store) == 4


@pytest.mark.parametrize("keys", [None, np.array([-4, 0, 2, 2**62, 2**63 - 1])], ids=["rows", "open"])
def test_a_store_on_disk_opens_what_was_written(tmp_path: Path, keys: Any) -> None:
    whole = segment()
    columns = {**whole.columns, "vector": np.arange(6, dtype=np.float16).reshape(3, 2)}
    Segment(whole.offsets, whole.times, columns, keys).write(tmp_path / "s")
    store = DiskStore.open(tmp_path / "s", verify=True)
    one, three = (1, 3) if keys is None else (0, 2**62)
    assert store.last(one, 3, 5).columns["item"].tolist() == [0, 1]
    assert store.last(np.array([three, one]), 3, 1).columns["vector"].tolist() == [[4, 5], [2, 3]]
    assert [key for key, _ in store.scan()] == [one, three]
    assert store.rows == (ROWS if keys is None else None)
    data = bytearray((tmp_path / "s" / "item.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "s" / "item.npy").write_bytes(bytes(data))
    with pytest.raises(StoreError, match="checksum"):
        DiskStore.open(tmp_path / "s", verify=True)
    (tmp_path / "s" / "item.npy").write_bytes(bytes(data[:-1]))
    with pytest.raises(StoreError, match=r"item.npy: \d+ bytes; expected"):
        DiskStore.open(tmp_path / "s")


def test_a_segment_whose_files_do_not_belong_together_is_refused(tmp_path: Path) -> None:
    segment().write(tmp_path / "s")
    np.save(tmp_path / "s" / "item.npy", np.arange(4, dtype=np.uint8))
    manifest = tmp_path / "s" / "segment.json"
    size = (tmp_path / "s" / "item.npy").stat().st_size
    manifest.write_text(manifest.read_text().replace(f'"bytes": {size - 1}', f'"bytes": {size}'))
    with pytest.raises(StoreError, match="expected 3 events"):
        Segment.open(tmp_path / "s")


def test_a_float_column_may_lose_digits_but_not_its_size() -> None:
    store = MemoryStore({"price": np.float32}, 3)
    store.append(np.array([1]), np.array([1]), {"price": np.array([0.1])})
    with pytest.raises(StoreError, match="values that fit float32"):
        store.append(np.array([1]), np.array([2]), {"price": np.array([1e300])})
    assert store.last(1, 5, 5).columns["price"].tolist() == [np.float32(0.1)]


@pytest.mark.parametrize(
    ("columns", "identity", "message"),
    [
        ({"a/b": np.int64}, None, "a column named 'a/b'"),
        ({"times": np.int64}, None, "a column named 'times'"),
        ({"a": "U3"}, None, "a column of type '<U3'"),
        ({"a": (np.float32, (2, 2))}, None, "column 'a' with 2 axes an event"),
        ({"a": np.int32}, "a", "identity 'a': int32; expected the name of an int64 column"),
        ({"a": np.int64}, "b", "identity 'b': no such column"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(
    tmp_path: Path, columns: dict[str, Any], identity: str | None, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        MemoryStore(columns, None, identity)
    with pytest.raises(StoreError, match=message):
        LsmStore.create(tmp_path / "s", columns, None, identity)
    assert not (tmp_path / "s").exists()
