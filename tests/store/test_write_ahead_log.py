"""Tests of damaged write-ahead logs: the store opens with the last whole append before the damage and reports it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from longrec.store.lsm_store import LsmStore
from longrec.store.write_ahead_log import Frames, WriteAheadLog

TYPES = {"name": np.dtype(np.int64), "vector": np.dtype((np.float16, (4,)))}
SIZES = [1, 3, 1, 20, 2, 7, 1, 1, 12, 5]


def append(store: LsmStore, first: int, count: int) -> None:
    names = np.arange(first, first + count)
    vectors = np.repeat(names[:, None], 4, 1).astype(np.float16)
    store.append(names % 3, names, {"name": names, "vector": vectors})


def read_names(store: LsmStore) -> list[int]:
    names = np.concatenate([np.zeros(0, np.int64), *(events.columns["name"] for _, events in store.scan())])
    for _, events in store.scan():
        assert (events.columns["vector"] == events.columns["name"][:, None]).all()
    return sorted(names.tolist())


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[int]]:
    """Return a store of ten appends and the end of each in the write-ahead log."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    ends, first = [0], 0
    with LsmStore.create(tmp_path / "whole", TYPES, sync=False) as store:
        for size in SIZES:
            append(store, first, size)
            first += size
            ends.append((tmp_path / "whole" / "journal-000000.log").stat().st_size)
    return tmp_path / "whole", ends


def test_300_cuts_and_flips_reopen_to_the_valid_prefix(whole: tuple[Path, list[int]], tmp_path: Path) -> None:
    folder, ends = whole
    wal = folder / "journal-000000.log"
    data, random = wal.read_bytes(), np.random.default_rng(7)
    for trial in range(300):
        at = int(random.integers(len(data)))
        altered = bytearray(data[:at] if trial % 2 else data)
        if not trial % 2:
            altered[at] ^= 1 << int(random.integers(8))
        frames = int(np.searchsorted(ends, at, side="right")) - 1
        valid, expected = ends[frames], list(range(sum(SIZES[:frames])))
        wal.write_bytes(altered)
        for kept in folder.glob("*.damaged"):
            kept.unlink()
        reader = LsmStore.open(folder)
        assert read_names(reader) == expected
        assert reader.recovery.dropped_bytes == len(altered) - valid
        assert wal.read_bytes() == altered  # a reader changes nothing
        with LsmStore.open(folder, writable=True, sync=False) as writer:
            assert read_names(writer) == expected
            assert writer.recovery.dropped_bytes == len(altered) - valid
            last = not trial % 2 and frames == len(SIZES) - 1  # an altered last frame may look like an unfinished one
            if trial % 2 or (last and writer.recovery.is_torn):
                assert writer.recovery.is_torn
                assert writer.recovery.saved_to is None
            else:
                assert writer.recovery.saved_to is not None
                assert writer.recovery.saved_to.read_bytes() == altered[valid:]
            append(writer, len(expected), 2)
        reader.refresh()
        assert read_names(reader) == read_names(LsmStore.open(folder)) == list(range(len(expected) + 2))
    shutil.rmtree(folder)


def test_a_frame_of_another_store_or_log_is_rejected(whole: tuple[Path, list[int]]) -> None:
    folder, ends = whole
    keys = times = np.zeros(1, np.int64)
    columns = {"name": np.zeros(1, np.int64), "vector": np.zeros((1, 4), np.float16)}
    other = {"eman": TYPES["name"], "vector": TYPES["vector"]}
    for frames in (Frames(TYPES, 1), Frames(other, 0)):
        with (folder / "journal-000000.log").open("ab") as wal:
            wal.write(frames.pack(keys, times, dict(zip(frames.types, columns.values()))))
        reader = LsmStore.open(folder)
        assert read_names(reader) == list(range(sum(SIZES)))
        assert reader.recovery.dropped_bytes > 0


def test_a_long_log_is_replayed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More frames than one batch. The last one of equal events is kept."""
    monkeypatch.setattr("longrec.store.write_ahead_log._REPLAY", 8)
    types = {"name": np.dtype(np.int64), "value": np.dtype(np.int64)}
    frames = Frames(types, 0)
    wal = WriteAheadLog(tmp_path / "j", frames, 0, sync=False)
    for value in range(40):
        one = np.array([value % 4], np.int64)
        wal.append(one, one, {"name": one, "value": np.array([value], np.int64)})
    wal.close()
    with (tmp_path / "j").open("rb") as file:
        batches = list(frames.read(file.fileno(), 0))
    assert len(batches) == 5
    assert np.concatenate([columns["value"] for (_, _, columns), _ in batches]).tolist() == list(range(40))
    assert batches[-1][1] == (tmp_path / "j").stat().st_size
