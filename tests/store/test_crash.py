"""Tests with killed writers: every acknowledged append is stored exactly once, and none partly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import crash_writer
import numpy as np
import pytest
from crash_writer import TOGETHER, TYPES, batch

from longrec.store.lsm_store import LsmStore


class Writers:
    """Writers of one store, one after the other."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self.process = folder, process

    def begin(self, seed: int) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill(self, writer: int) -> None:
        assert self.process.stdout is not None
        os.kill(writer, signal.SIGKILL)
        assert self.process.stdout.readline() == "dead\n"

    def acknowledged(self) -> int:
        acks = self.folder.parent / "acks"
        return acks.stat().st_size // 8 if acks.exists() else 0


@contextmanager
def writers(folder: Path) -> Iterator[Writers]:
    LsmStore.create(folder, TYPES, None, "name").close()
    process = subprocess.Popen(
        [sys.executable, crash_writer.__file__, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Writers(folder, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def appends(store: LsmStore) -> int:
    """Return the number of appends in a store, each of them complete, unique and unchanged."""
    counts: Counter[int] = Counter()
    for key, events in store.scan():
        numbers, names = events.columns["number"], events.columns["name"]
        assert (np.diff(events.times) >= 0).all()
        assert len(np.unique(names)) == len(names)
        assert (events.columns["vector"] == (numbers % 1_000)[:, None]).all()
        assert (names // TOGETHER == numbers).all()
        counts.update(numbers.tolist())
        own = batch(int(numbers[-1]))
        assert key in own[0]
    assert set(counts) == set(range(len(counts)))
    assert set(counts.values()) <= {TOGETHER}
    return len(counts)


def kill_writers(tmp_path: Path, times: int, seconds: float) -> int:
    random = np.random.default_rng(3)
    with writers(tmp_path / "s") as some:
        for seed in range(times):
            before, writer = some.acknowledged(), some.begin(seed)
            while some.acknowledged() == before:  # it has begun
                time.sleep(0.001)
            time.sleep(seconds * random.random())
            some.kill(writer)
            there = appends(LsmStore.open(tmp_path / "s", verify=True))
            assert some.acknowledged() <= there
        return some.acknowledged()


def test_a_killed_writer_loses_no_acknowledged_append(tmp_path: Path) -> None:
    assert kill_writers(tmp_path, 8, 0.05) >= 8


@pytest.mark.slow
def test_a_hundred_killed_writers_lose_nothing(tmp_path: Path) -> None:
    assert kill_writers(tmp_path, 100, 0.2) >= 100


def test_a_reader_in_another_process_sees_whole_appends(tmp_path: Path) -> None:
    with writers(tmp_path / "s") as some:
        reader, seen = LsmStore.open(tmp_path / "s"), 0
        writer = some.begin(1)
        end = time.monotonic() + 20
        while seen < 60 and time.monotonic() < end:
            minimum = some.acknowledged()
            reader.refresh()
            now = appends(reader)
            assert now >= max(seen, minimum)
            seen = now
        some.kill(writer)
        assert seen >= 60
