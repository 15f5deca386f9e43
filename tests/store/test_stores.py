"""One contract, every backend: the same questions get the same answers as a list searched from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.disk import DiskStore
from longrec.store.memory import MemoryStore
from longrec.store.segment import Segment
from longrec.store.store import Events, HistoryStore

ROWS = 5
TYPES = {"item": np.dtype(np.uint8), "seen": np.dtype(np.uint8), "known.r": np.dtype(np.int64)}
Log = list[tuple[int, int, int]]
"""(key row, time, mask) of events, in the order in which they came; an event's item is its place."""


def arrays(log: Log, start: int = 0) -> tuple[NDArray[Any], NDArray[Any], dict[str, NDArray[Any]]]:
    keys, times, masks = (np.array([event[part] for event in log], np.int64) for part in range(3))
    items = np.arange(start, start + len(log))
    return keys, times, {"item": items, "seen": masks, "known.r": times + 3}


def memory(log: Log) -> HistoryStore:
    store = MemoryStore(TYPES, ROWS)
    for place, event in enumerate(log):
        store.append(*arrays([event], place))
    return store


def memory_at_once(log: Log) -> HistoryStore:
    store = MemoryStore(TYPES, ROWS)
    store.append(*arrays(log))
    return store


def segment(log: Log) -> Segment:
    keys, times, values = arrays(log)
    order = np.lexsort((times, keys))
    offsets = np.searchsorted(keys[order], np.arange(ROWS + 1))
    return Segment(offsets, times[order], {n: values[n][order].astype(dtype) for n, dtype in TYPES.items()})


def disk(log: Log) -> HistoryStore:
    return DiskStore(segment(log))


def disk_half(log: Log) -> HistoryStore:
    half = len(log) // 2
    store = DiskStore(segment(log[:half]))
    store.append(*arrays(log[half:], half))
    return store


BACKENDS: dict[str, Callable[[Log], HistoryStore]] = {
    "memory": memory,
    "memory at once": memory_at_once,
    "disk": disk,
    "disk and delta": disk_half,
}
backends = pytest.mark.parametrize("build", BACKENDS.values(), ids=BACKENDS)


def slow_last(log: Log, key: int, before: int, n: int, masked: bool) -> list[int]:
    mine = [(time, place) for place, (k, time, m) in enumerate(log) if k == key and time < before and (m or not masked)]
    return [place for _, place in sorted(mine)][-n:] if n else []


def items(events: Events, part: int = 0) -> list[int]:
    return events.columns["item"][events.offsets[part] : events.offsets[part + 1]].tolist()


event = st.tuples(st.integers(1, ROWS - 1), st.integers(0, 6), st.integers(0, 1))


@backends
@settings(deadline=None, max_examples=25)
@given(log=st.lists(event, max_size=30), n=st.integers(0, 6), masked=st.booleans(), moment=st.integers(-1, 8))
def test_last_equals_a_search_from_end_to_end(
    build: Callable[[Log], HistoryStore], log: Log, n: int, masked: bool, moment: int
) -> None:
    store = build(log)
    keys = np.array([2, 1, 2, 0, 4])
    before = moment + np.arange(5)
    got = store.last(keys, before, n, "seen" if masked else None)
    for part, (key, at) in enumerate(zip(keys.tolist(), before.tolist())):
        assert items(got, part) == slow_last(log, key, at, n, masked)
    assert np.array_equal(got.columns["known.r"], got.times + 3)
    assert items(store.last(2, moment, n)) == slow_last(log, 2, moment, n, False)


@backends
@settings(deadline=None, max_examples=25)
@given(log=st.lists(event, max_size=30), late=st.lists(event, min_size=1, max_size=5), moment=st.integers(0, 6))
def test_what_comes_at_or_after_a_moment_changes_no_answer_for_it(
    build: Callable[[Log], HistoryStore], log: Log, late: Log, moment: int
) -> None:
    store = build(log)
    keys = np.arange(ROWS)
    first = store.last(keys, moment, 4)
    late = [(key, time + moment, mask) for key, time, mask in late]
    store.append(*arrays(late, len(log)))
    again = store.last(keys, moment, 4)
    assert np.array_equal(first.offsets, again.offsets)
    assert np.array_equal(first.times, again.times)
    assert all(np.array_equal(first.columns[name], again.columns[name]) for name in TYPES)


@backends
@settings(deadline=None, max_examples=25)
@given(log=st.lists(event, max_size=30))
def test_scan_tells_every_event_once(build: Callable[[Log], HistoryStore], log: Log) -> None:
    store = build(log)
    told = {key: (events.times.tolist(), events.columns["item"].tolist()) for key, events in store.scan()}
    expected = {}
    for key in sorted({key for key, _, _ in log}):
        mine = sorted((time, place) for place, (k, time, _) in enumerate(log) if k == key)
        expected[key] = ([time for time, _ in mine], [place for _, place in mine])
    assert list(told.items()) == list(expected.items())
    assert len(store) == len(log)


@backends
def test_columns_are_read_in_the_same_types_everywhere(build: Callable[[Log], HistoryStore]) -> None:
    got = build([(1, 1, 1), (1, 2, 0), (2, 1, 1), (1, 1, 1)]).last(np.array([1, 3]), 9, 9)
    assert {name: column.dtype for name, column in got.columns.items()} == {
        "item": np.int32,
        "seen": np.int32,
        "known.r": np.int64,
    }
    assert (got.offsets.dtype, got.times.dtype) == (np.int64, np.int64)


@backends
@pytest.mark.parametrize(
    ("keys", "times", "change", "message"),
    [
        ([1], [1], {"item": None}, "expected item, known.r, seen"),
        ([1], [1], {"other": [1]}, "the columns item, known.r, other, seen"),
        ([1, 2], [1], {}, "2 keys, 1 times, 1 item"),
        ([1.0], [1], {}, "keys of type float64"),
        ([0], [1], {}, "the key row 0; expected rows from 1 to 4"),
        ([5], [1], {}, "the key row 5"),
        ([1], [1], {"item": [1.5]}, "column 'item': values of type float64"),
        ([1], [1], {"item": [2**40]}, "what fits int32"),
        ([1], [1], {"item": ["a"]}, "column 'item': values of type <U1"),
    ],
)
def test_a_wrong_append_changes_nothing(
    build: Callable[[Log], HistoryStore], keys: Any, times: Any, change: dict[str, Any], message: str
) -> None:
    store = build([(1, 1, 1), (2, 1, 1)])
    values = {"item": [3], "seen": [1], "known.r": [1]} | change
    with pytest.raises(StoreError, match=message):
        store.append(np.array(keys), np.array(times), {n: np.array(v) for n, v in values.items() if v is not None})
    assert len(store) == 2


@backends
def test_an_empty_append_and_a_key_that_is_none(build: Callable[[Log], HistoryStore]) -> None:
    store = build([(1, 1, 1)])
    store.append(*arrays([]))
    assert len(store) == 1
    for key in (-1, ROWS):
        with pytest.raises(StoreError, match="rows from 0 to 4"):
            store.last(key, 9, 1)


def test_a_store_on_disk_opens_what_was_written(tmp_path: Path) -> None:
    segment([(1, 1, 1), (1, 2, 0), (3, 1, 1)]).write(tmp_path / "s")
    assert items(DiskStore.open(tmp_path / "s", verify=True).last(1, 3, 5)) == [0, 1]
    data = bytearray((tmp_path / "s" / "item.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "s" / "item.npy").write_bytes(bytes(data))
    with pytest.raises(StoreError, match="checksum"):
        DiskStore.open(tmp_path / "s", verify=True)


def test_a_float_column_may_lose_digits_but_not_its_size() -> None:
    store = MemoryStore({"price": np.float32}, 3)
    store.append(np.array([1]), np.array([1]), {"price": np.array([0.1])})
    with pytest.raises(StoreError, match="what fits float32"):
        store.append(np.array([1]), np.array([2]), {"price": np.array([1e300])})
    assert store.last(1, 5, 5).columns["price"].tolist() == [np.float32(0.1)]
