"""The contract in slow words, a list of events that is searched from end to end, and every backend filled with one."""

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
    "place": np.dtype(np.int64),
    "seen": np.dtype(np.int64),
    "name": np.dtype(np.int64),
    "vector": np.dtype((np.float16, (3,))),
}
OPEN = (-(2**63), -5, 0, 3, 2**62 + 1)
ROWS = 5

Log = list[tuple[int, int, int, int]]
"""(which key, time, mask, name) of events, in the order in which they came; an event's place is where it stands."""

event = st.tuples(st.integers(1, ROWS - 1), st.integers(-1, 4), st.integers(0, 1), st.integers(-1, 1))
logs = st.lists(event, max_size=30)


@dataclass(frozen=True)
class Space:
    """Which keys there are, and whether events are named."""

    rows: int | None
    identity: str | None

    def key(self, which: int) -> int:
        return which if self.rows is not None else OPEN[which]

    def __str__(self) -> str:
        return f"{'open' if self.rows is None else 'rows'} {self.identity or 'unnamed'}"


def arrays(space: Space, log: Log, start: int = 0) -> tuple[NDArray[Any], NDArray[Any], dict[str, NDArray[Any]]]:
    which, times, masks, names = (np.array([event[part] for event in log], np.int64) for part in range(4))
    places = np.arange(start, start + len(log))
    vectors = np.stack([places, places + 0.5, -places], 1).astype(np.float16)
    keys = np.array([space.key(one) for one in which.tolist()], np.int64)
    return keys, times, {"place": places, "seen": masks, "name": names, "vector": vectors}


def kept(space: Space, log: Log) -> Log:
    """Key, time, mask and place of the events that count, in the order in which they are read."""
    events: dict[Any, tuple[int, int, int, int]] = {}
    for place, (key, time, mask, name) in enumerate(log):
        events[(key, time, name) if space.identity else place] = (key, time, mask, place)
    order = (lambda place: log[place][3]) if space.identity else (lambda place: place)
    return sorted(events.values(), key=lambda found: (found[0], found[1], order(found[3])))


def slow_last(space: Space, log: Log, which: int, before: int, n: int, masked: bool = False) -> list[int]:
    """Places of the last events of a key strictly before a moment."""
    mine = [found for found in kept(space, log) if found[0] == which and found[1] < before and (found[2] or not masked)]
    return [place for _, _, _, place in mine][-n:] if n else []


def places(events: Events, part: int = 0) -> list[int]:
    return events.columns["place"][events.offsets[part] : events.offsets[part + 1]].tolist()


Build = Callable[[Space, Log, Path, str], HistoryStore]
_numbers = itertools.count()


def _memory(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = MemoryStore(TYPES, space.rows, space.identity)
    for place, one in enumerate(log):
        store.append(*arrays(space, [one], place))
    return store


def _memory_at_once(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = MemoryStore(TYPES, space.rows, space.identity)
    store.append(*arrays(space, log))
    return store


def segment(space: Space, log: Log) -> Segment:
    """Sorted by hand."""
    keys, times, values = arrays(space, log)
    order = np.lexsort((times, keys))
    keys, columns = keys[order], {name: values[name][order].astype(dtype.base) for name, dtype in TYPES.items()}
    if space.rows is not None:
        return Segment(np.searchsorted(keys, np.arange(space.rows + 1)), times[order], columns)
    owners = np.unique(keys)
    return Segment(np.append(np.searchsorted(keys, owners), len(keys)), times[order], columns, owners)


def _disk(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    return DiskStore(segment(space, log))


def _disk_and_delta(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    half = len(log) // 2
    store = DiskStore(segment(space, log[:half]))
    store.append(*arrays(space, log[half:], half))
    return store


def _created(space: Space, folder: Path) -> LsmStore:
    return LsmStore.create(folder / f"s{next(_numbers)}", TYPES, space.rows, space.identity, sync=False)


def _in_thirds(store: HistoryStore, space: Space, log: Log, between: Callable[[int], Any]) -> None:
    third = max(1, len(log) // 3)
    for part, at in enumerate(range(0, len(log), third)):
        store.append(*arrays(space, log[at : at + third], at))
        between(part)


def _durable(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = _created(space, folder)
    _in_thirds(store, space, log, lambda part: None)
    return store


def _reopened(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = _created(space, folder)
    _in_thirds(store, space, log, lambda part: store.compact() if part == 0 else None)
    store.close()
    return LsmStore.open(store.folder, writable=True, verify=True, sync=False)


def _half_compacted(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = _created(space, folder)
    _in_thirds(store, space, log, lambda part: store.compact() if part == 1 else None)
    return store


def _compacted(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = _created(space, folder)
    _in_thirds(store, space, log, lambda part: store.compact())
    return store


def _loaded(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store, half = _created(space, folder), len(log) // 2
    store.load(*arrays(space, log[:half]))
    store.load(*arrays(space, log[half:], half))
    return store


def _remote(space: Space, log: Log, folder: Path, url: str) -> HistoryStore:
    store = RemoteStore.create(f"{url}/contract-{next(_numbers)}", TYPES, space.rows, space.identity)
    _in_thirds(store, space, log, lambda part: None)
    return store


BACKENDS: dict[str, Build] = {
    "memory": _memory,
    "memory at once": _memory_at_once,
    "disk": _disk,
    "disk and delta": _disk_and_delta,
    "durable": _durable,
    "durable reopened": _reopened,
    "durable half compacted": _half_compacted,
    "durable compacted": _compacted,
    "durable loaded": _loaded,
    "remote": _remote,
}
NAMED, UNNAMED = Space(None, "name"), Space(ROWS, None)
SPACES = {
    "memory": [Space(None, None), Space(ROWS, "name"), NAMED, UNNAMED],
    "disk": [Space(None, None), UNNAMED],  # a segment that somebody brings names no events
    "disk and delta": [Space(None, None), UNNAMED],
    "durable half compacted": [Space(None, None), Space(ROWS, "name"), NAMED, UNNAMED],
}
CASES = [(name, space) for name in BACKENDS for space in SPACES.get(name, [NAMED, UNNAMED])]


@contextmanager
def filled(name: str, space: Space, log: Log, folder: Path, url: str) -> Iterator[HistoryStore]:
    """A store of one backend that holds a log."""
    store = BACKENDS[name](space, log, folder, url)
    try:
        yield store
    finally:
        if isinstance(store, LsmStore | RemoteStore):
            store.close()
