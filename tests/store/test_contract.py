"""Contract tests of every backend: reads return the same events as a linear search of a list."""

from __future__ import annotations

import os
from pathlib import Path

import contract
import numpy as np
import pytest
from contract import ROWS, TYPES, Log, Space, arrays, list_kept_events, open_filled_store, read_positions, slow_last
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longrec.errors import StoreError

cases = pytest.mark.parametrize(("name", "space"), contract.CASES, ids=str)
few = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace fsync, because these tests do not cover power failures."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def url(name: str, request: pytest.FixtureRequest) -> str:
    """Return the address of a server, started only for the remote backend."""
    return request.getfixturevalue("redis_url") if name == "remote" else ""


@cases
@few
@given(log=contract.logs, n=st.integers(0, 6), masked=st.booleans(), timestamp=st.integers(-2, 6))
def test_last_equals_a_linear_search(
    name: str, space: Space, folder: Path, url: str, log: Log, n: int, masked: bool, timestamp: int
) -> None:
    which = np.array([2, 1, 2, 0, 4])
    keys = np.array([space.key(one) for one in which.tolist()])
    before = timestamp + np.arange(5)
    with open_filled_store(name, space, log, folder, url) as store:
        got = store.last(keys, before, n, "seen" if masked else None)
        for index, (one, at) in enumerate(zip(which.tolist(), before.tolist())):
            assert read_positions(got, index) == slow_last(space, log, one, at, n, masked)
        position = got.columns["position"]
        assert np.array_equal(
            got.columns["vector"], np.stack([position, position + 0.5, -position], 1).astype(np.float16)
        )
        assert got.times.tolist() == [log[at][1] for at in position.tolist()]
        one = store.last(space.key(2), timestamp, n, columns=["position"])
        assert read_positions(one) == slow_last(space, log, 2, timestamp, n)
        assert set(one.columns) == {"position"}


@cases
@few
@given(log=contract.logs, late=st.lists(contract.event, min_size=1, max_size=5), timestamp=st.integers(0, 4))
def test_later_events_do_not_change_an_earlier_read(
    name: str, space: Space, folder: Path, url: str, log: Log, late: Log, timestamp: int
) -> None:
    keys = np.array([space.key(one) for one in range(ROWS)])
    with open_filled_store(name, space, log, folder, url) as store:
        first = store.last(keys, timestamp, 4)
        store.append(
            *arrays(space, [(key, time + timestamp + 1, mask, id_) for key, time, mask, id_ in late], len(log))
        )
        again = store.last(keys, timestamp, 4)
    assert np.array_equal(first.offsets, again.offsets)
    assert np.array_equal(first.times, again.times)
    assert all(np.array_equal(first.columns[column], again.columns[column]) for column in TYPES)


@cases
@few
@given(log=contract.logs)
def test_scan_returns_every_event_once(name: str, space: Space, folder: Path, url: str, log: Log) -> None:
    expected: dict[int, list[tuple[int, int]]] = {}
    for key, time, _, position in list_kept_events(space, log):
        expected.setdefault(space.key(key), []).append((time, position))
    with open_filled_store(name, space, log, folder, url) as store:
        events_by_key = {key: list(zip(events.times.tolist(), read_positions(events))) for key, events in store.scan()}
        assert list(events_by_key.items()) == sorted(expected.items())
        assert len(store) == sum(map(len, expected.values()))


@cases
@few
@given(log=contract.logs, again=st.data())
def test_11_a_retried_append_never_multiplies(
    name: str, space: Space, folder: Path, url: str, log: Log, again: st.DataObject
) -> None:
    """Join cardinality: an event that is written again with other values is still one event."""
    if space.identity is None:
        return
    some = again.draw(st.lists(st.sampled_from(log), max_size=8)) if log else []
    some = [(key, time, 1 - mask, id_) for key, time, mask, id_ in some]
    with open_filled_store(name, space, log, folder, url) as store:
        count = len(store)
        store.append(*arrays(space, some, len(log)))
        store.append(*arrays(space, some, len(log)))
        assert len(store) == count
        whole = log + some + some
        for which in range(1, ROWS):
            got = store.last(space.key(which), 9, 99)
            positions = [position if position < len(log) else position + len(some) for position in read_positions(got)]
            assert positions == slow_last(space, whole, which, 9, 99)


@cases
def test_12_order_list_sorted_by_event_time_and_truncation_keeps_the_newest(
    name: str, space: Space, folder: Path, url: str
) -> None:
    log: Log = [(1, time, 1, 0) for time in (3, 1, 4, 0, 2)]
    with open_filled_store(name, space, log, folder, url) as store:
        assert store.last(space.key(1), 9, 99).times.tolist() == [0, 1, 2, 3, 4]
        assert store.last(space.key(1), 9, 2).times.tolist() == [3, 4]
        assert store.last(space.key(1), 3, 2).times.tolist() == [1, 2]


@cases
def test_columns_are_read_in_the_same_types_everywhere(name: str, space: Space, folder: Path, url: str) -> None:
    with open_filled_store(name, space, [(1, 1, 1, 0), (1, 2, 0, 0), (2, 1, 1, 1)], folder, url) as store:
        for keys in (np.array([space.key(1), space.key(3)]), np.array([space.key(1)]), np.zeros(0, np.int64)):
            got = store.last(keys, 9, 9)
            assert {n: (column.dtype, column.shape[1:]) for n, column in got.columns.items()} == {
                n: (dtype.base, dtype.shape) for n, dtype in TYPES.items()
            }
            assert (got.offsets.dtype, got.times.dtype) == (np.int64, np.int64)
            assert len(got.offsets) == len(keys) + 1


WRONG = [
    ([1], [1], {"position": None}, "expected name, position, seen, vector"),
    ([1], [1], {"other": [1]}, "the columns name, other, position, seen, vector"),
    ([1, 2], [1], {}, "2 keys, 1 times, 1 position"),
    ([1.0], [1], {}, "keys of type float64"),
    ([2**64 - 1], [1], {}, "18446744073709551615|values that fit int64"),
    ([1], [1], {"position": [1.5]}, "column 'position': values of type float64"),
    ([1], [1], {"position": [2**63]}, "values that fit int64"),
    ([1], [1], {"position": ["a"]}, "column 'position': values of type <U1"),
    ([1], [1], {"vector": [1]}, r"column 'vector': \[1\]; expected \[1, 3\]"),
    ([1], [1], {"vector": [[1, 2]]}, r"column 'vector': \[1, 2\]; expected \[1, 3\]"),
    ([1], [1], {"vector": [[1, 2, 1e9]]}, "values that fit float16"),
    ([1], [1], {"seen": [[1]]}, r"column 'seen': \[1, 1\]; expected \[1\]"),
]


@cases
def test_a_wrong_append_changes_nothing(name: str, space: Space, folder: Path, url: str) -> None:
    with open_filled_store(name, space, [(1, 1, 1, 0), (2, 1, 1, 0)], folder, url) as store:
        for keys, times, change, message in WRONG:
            values = {"position": [3], "seen": [1], "name": [1], "vector": [[1, 2, 3]]} | change
            columns = {n: np.array(v) for n, v in values.items() if v is not None}
            with pytest.raises(StoreError, match=message):
                store.append(np.array(keys), np.array(times), columns)
        assert len(store) == 2


@cases
def test_an_empty_append_an_unknown_key_and_an_unknown_column(name: str, space: Space, folder: Path, url: str) -> None:
    with open_filled_store(name, space, [(1, 1, 1, 0)], folder, url) as store:
        store.append(*arrays(space, []))
        assert len(store) == 1
        for key in (-1, ROWS):
            if space.rows is None:
                assert len(store.last(key, 9, 1)) == 0
                assert len(store.last(np.array([key, space.key(1)]), 9, 1)) == 1
                continue
            for key_rows in (key, np.array([1, key])):
                with pytest.raises(StoreError, match="rows from 0 to 4"):
                    store.last(key_rows, 9, 1)
        if space.rows is not None:
            with pytest.raises(StoreError, match="the key row 0; expected rows from 1 to 4"):
                store.append(np.array([0]), np.array([1]), arrays(space, [(1, 1, 1, 1)])[2])
        for arguments in ({"where": "sen"}, {"columns": ["sen"]}):
            with pytest.raises(StoreError, match="no column 'sen'"):
                store.last(space.key(1), 9, 1, **arguments)


@cases
@few
@given(log=st.lists(st.tuples(st.just(1), st.integers(0, 40), st.integers(0, 1), st.integers(0, 5)), max_size=90))
def test_long_lists_are_read_as_short_ones(name: str, space: Space, folder: Path, url: str, log: Log) -> None:
    """Many events per key are copied in slices, few one by one."""
    keys = np.array([space.key(1), space.key(2), space.key(1)])
    with open_filled_store(name, space, log, folder, url) as store:
        got = store.last(keys, np.array([30, 30, 99]), 80)
        assert read_positions(got, 0) == slow_last(space, log, 1, 30, 80)
        assert read_positions(got, 1) == []
        assert read_positions(got, 2) == slow_last(space, log, 1, 99, 80)
        position = got.columns["position"]
        assert np.array_equal(got.columns["vector"][:, 0], position.astype(np.float16))
        assert got.columns["name"].tolist() == [log[at][3] for at in position.tolist()]
