"""Reference implementation of the contract, a linear search of a list of events, and every backend filled with one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from longrec.store.disk_store import DiskStore
from longrec.store.history_store import Events, HistoryStore
from longrec.store.lsm_store import LsmStore
from longrec.store.memory_store import MemoryStore
from longrec.store.remote_store import RemoteStore
from longrec.store.segment import Segment

TYPES = {
    "position": np.dtype(np.int64),
    "seen": np.dtype(np.int64),
    "name": np.dtype(np.int64),
    "vector": np.dtype((np.float16, (3,))),
}
OPEN = (-(2**63), -5, 0, 3, 2**62 + 1)
ROWS = 5

Log = list[tuple[int, int, int, int]]
"""(key number, time, mask, name) per event, in order of arrival. The position of an event is its index."""

event = st.tuples(st.integers(1, ROWS - 1), st.integers(-1, 4), st.integers(0, 1), st.integers(-1, 1))
logs = st.lists(event, max_size=30)


@dataclass(frozen=True)
class Space:
    """A key space, with or without an identity of events."""

    rows: int | None
    identity: str | None

    def key(self, which: int) -> int:
        return which if self.rows is not None else OPEN[which]

    def __str__(self) -> str:
        return f"{'open' if self.rows is None else 'rows'} {self.identity or 'unnamed'}"


def arrays(space: Space, log: Log, start: int = 0) -> tuple[NDArray[Any], NDArray[Any], dict[str, NDArray[Any]]]:
    which, times, masks, names = (np.array([event[index] for event in log], np.int64) for index in range(4))
    positions = np.arange(start, start + len(log))
    vectors = np.stack([positions, positions + 0.5, -positions], 1).astype(np.float16)
    keys = np.array([space.key(one) for one in which.tolist()], np.int64)
    return keys, times, {"position": positions, "seen": masks, "name": names, "vector": vectors}


def list_kept_events(space: Space, log: Log) -> Log:
    """Return key, time, mask and position of the events that are kept, in read order."""
    events: dict[Any, tuple[int, int, int, int]] = {}
    for position, (key, time, mask, name) in enumerate(log):
        events[(key, time, name) if space.identity else position] = (key, time, mask, position)
    order = (lambda position: log[position][3]) if space.identity else (lambda position: position)
    return sorted(events.values(), key=lambda entry: (entry[0], entry[1], order(entry[3])))


def slow_last(space: Space, log: Log, which: int, before: int, n: int, masked: bool = False) -> list[int]:
    """Return the positions of the last events of a key strictly before a timestamp."""
    mine = [
        entry
        for entry in list_kept_events(space, log)
        if entry[0] == which and entry[1] < before and (entry[2] or not masked)
    ]
    return [position for _, _, _, position in mine][-n:] if n else []


def read_positions(events: Events, index: int = 0) -> list[int]:
    return events.columns["position"][events.offsets[index] : events.offsets[index + 1]].tolist()


Build = Callable[[Space, Log, Path, str], HistoryStore]
_numbers = itertools.count()


def _memory(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = MemoryStore(TYPES, space.rows, space.identity)
    for position, one in enumerate(log):
        store.append(*arrays(space, [one], position))
    return store


def _memory_at_once(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = MemoryStore(TYPES, space.rows, space.identity)
    store.append(*arrays(space, log))
    return store


def segment(space: Space, log: Log) -> Segment:
    """Return a segment sorted with plain numpy."""
    keys, times, values = arrays(space, log)
    order = np.lexsort((times, keys))
    keys, columns = keys[order], {name: values[name][order].astype(dtype.base) for name, dtype in TYPES.items()}
    if space.rows is not None:
        return Segment(np.searchsorted(keys, np.arange(space.rows + 1)), times[order], columns)
    owners = np.unique(keys)
    return Segment(np.append(np.searchsorted(keys, owners), len(keys)), times[order], columns, owners)


def _disk(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    return DiskStore(segment(space, log))


def _disk_and_memtable(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    half = len(log) // 2
    store = DiskStore(segment(space, log[:half]))
    store.append(*arrays(space, log[half:], half))
    return store


def _create(space: Space, folder: Path) -> LsmStore:
    return LsmStore.create(folder / f"s{next(_numbers)}", TYPES, space.rows, space.identity, sync=False)


def _in_thirds(store: HistoryStore, space: Space, log: Log, between: Callable[[int], Any]) -> None:
    third = max(1, len(log) // 3)
    for index, at in enumerate(range(0, len(log), third)):
        store.append(*arrays(space, log[at : at + third], at))
        between(index)


def _lsm(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = _create(space, folder)
    _in_thirds(store, space, log, lambda index: None)
    return store


def _reopen(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = _create(space, folder)
    _in_thirds(store, space, log, lambda index: store.compact() if index == 0 else None)
    store.close()
    return LsmStore.open(store.folder, writable=True, verify=True, sync=False)


def _compact_half(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = _create(space, folder)
    _in_thirds(store, space, log, lambda index: store.compact() if index == 1 else None)
    return store


def _compact_all(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = _create(space, folder)
    _in_thirds(store, space, log, lambda index: store.compact())
    return store


def _load(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store, half = _create(space, folder), len(log) // 2
    store.load(*arrays(space, log[:half]))
    store.load(*arrays(space, log[half:], half))
    return store


def _remote(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = RemoteStore.create(f"{url}/contract-{next(_numbers)}", TYPES, space.rows, space.identity)
    _in_thirds(store, space, log, lambda index: None)
    return store


BACKENDS: dict[str, Build] = {
    "memory": _memory,
    "memory at once": _memory_at_once,
    "disk": _disk,
    "disk and memtable": _disk_and_memtable,
    "lsm": _lsm,
    "lsm reopened": _reopen,
    "lsm half compacted": _compact_half,
    "lsm compacted": _compact_all,
    "lsm loaded": _load,
    "remote": _remote,
}
NAMED, UNNAMED = Space(None, "name"), Space(ROWS, None)
SPACES = {
    "memory": [Space(None, None), Space(ROWS, "name"), NAMED, UNNAMED],
    "disk": [Space(None, None), UNNAMED],  # a segment from elsewhere has no identity
    "disk and memtable": [Space(None, None), UNNAMED],
    "lsm half compacted": [Space(None, None), Space(ROWS, "name"), NAMED, UNNAMED],
}
CASES = [(name, space) for name in BACKENDS for space in SPACES.get(name, [NAMED, UNNAMED])]


@contextmanager
def open_filled_store(name: str, space: Space, log: Log, folder: Path, url: str) -> Iterator[HistoryStore]:
    """Open a store of one backend, filled with a log."""
    store = BACKENDS[name](space, log, folder, url)
    try:
        yield store
    finally:
        if isinstance(store, LsmStore | RemoteStore):
            store.close()
