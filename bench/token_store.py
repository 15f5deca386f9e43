"""Benchmark of the token store at 20 million tokens of 50 thousand users.

It measures loading, reads of batches and of single requests, appends with concurrent reads, and data loss after
`kill -9`. A Redis server is measured on a tenth of the tokens.

    python bench/token_store.py [--tokens 20000000 --users 50000 --kills 100]

Tokens are 32 numbers of 16 bits. Users are drawn by their activity and timestamps from their own tokens, so that a read
returns many or few tokens as in training. *Floor* copies from the same mapped arrays at precomputed positions, without
keys or search. Everything runs on one core with a warm page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from numpy.typing import NDArray

from longrec.store.segment import Segment
from longrec.store.token_store import TokenInfo, TokenStore, Version

TESTS = Path(__file__).resolve().parent.parent / "tests" / "store"
INFO = TokenInfo(width=32, codec="fp16", sides={"label": 3}, versions=tuple(Version(n) for n in range(8)))
TRAINING = ["vectors", "visible", "version"]
RAW = ["vector", "visible", "version"]
NOW = 2_000_000_000_000


@dataclass
class TokenSet:
    """Sorted tokens."""

    users: NDArray[np.int64]
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    vectors: NDArray[np.float16]

    def put(self, store: TokenStore, stop: int) -> None:
        times = self.times[:stop]
        store.load(
            self.users[:stop],
            times,
            instance=np.random.default_rng(1).integers(0, 2**62, stop),
            visible=times + 60_000,
            version=np.arange(stop) * 8 // stop,
            vectors=self.vectors[:stop],
            sides={"label": np.ones(stop, np.int8)},
            available_at={"label": times + 3_600_000},
        )

    def requests(self, count: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        at = np.random.default_rng(count).integers(0, stop, count)
        return self.users[at], self.times[at]


def build_tokens(count: int, users: int) -> TokenSet:
    random = np.random.default_rng(0)
    weight = random.lognormal(0, 1.2, users)
    counts = random.multinomial(count, weight / weight.sum())
    offsets = np.concatenate([[0], np.cumsum(counts)])
    passed = np.cumsum(random.exponential(3e6, count).astype(np.int64) + 1)
    before = np.concatenate([[0], passed])[offsets[:-1]]
    times = 1_700_000_000_000 + passed - np.repeat(before, counts)
    vectors = np.empty((count, 32), np.float16)
    for at in range(0, count, 1 << 20):
        chunk = vectors[at : at + (1 << 20)]
        chunk[:] = random.standard_normal(chunk.shape, dtype=np.float32)
    return TokenSet(np.repeat(np.arange(users) * 7_919 + 1, counts), offsets, times, vectors)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def batches(readers: dict[str, Callable[[Any, Any], int]], queries: list[tuple[Any, Any]]) -> list[list[str]]:
    """Return the rows of the table. Every batch is read once before timing, by one reader after the other."""
    counts = [[read(*one) for read in readers.values()] for one in queries]
    took = np.array([[timed(lambda read=read, one=one: read(*one)) for read in readers.values()] for one in queries])
    tokens = np.mean(counts, 0)
    return [
        [name, f"{wall * 1e3:.2f}", f"{cpu * 1e3:.2f}", f"{count / cpu / 1e6:.1f}"]
        for name, (wall, cpu), count in zip(readers, np.median(took, 0), tokens)
    ]


def singles(read: Callable[[int, int], Any], queries: list[tuple[int, int]]) -> list[str]:
    """Return percentiles of reads of one user at a time."""
    for one in queries[:500]:
        read(*one)
    return percentiles([timed(lambda one=one: read(*one)) for one in queries])


def percentiles(took: list[tuple[float, float]]) -> list[str]:
    """Return p50, p99 and p99.9 in microseconds, of wall and of CPU seconds."""
    values = np.percentile(np.array(took) * 1e6, [50, 99, 99.9], axis=0)
    return [" / ".join(f"{value:.0f}" for value in column) for column in values.T]


def floor(folder: Path, queries: list[tuple[Any, Any]]) -> Callable[[Any, Any], int]:
    """Return a reader of plain mapped arrays at precomputed positions."""
    segment = Segment.open(next(folder.glob("segment-*")))
    columns = [segment.times, *(segment.columns[name] for name in RAW)]
    slices = {}
    for users, timestamps in queries:
        ranges = [
            segment.find_before(segment.find_row(user), timestamp)
            for user, timestamp in zip(users.tolist(), timestamps.tolist())
        ]
        slices[id(users)] = [slice(max(start, stop - 256), stop) for start, stop in ranges]

    def read(users: Any, timestamps: Any) -> int:
        pieces = slices[id(users)]
        return len([np.concatenate([column[piece] for piece in pieces]) for column in columns][0])

    return read


def append(store: TokenStore, random: np.random.Generator, users: NDArray[np.int64], number: int) -> None:
    """Append new tokens of some users."""
    count = len(users)
    times = np.full(count, NOW + number)
    store.append(
        users,
        times,
        instance=number * 10_000 + np.arange(count),
        visible=times,
        version=np.zeros(count, np.int64),
        vectors=random.standard_normal((count, 32), dtype=np.float32),
        sides={"label": np.full(count, 3)},
        available_at={"label": times},
    )


def append_on(folder: Path, users: int) -> None:
    """Append a thousand tokens at a time until the process ends."""
    random, number = np.random.default_rng(5), 1_000_000
    with TokenStore.open(folder, writable=True) as store:
        while True:
            append(store, random, random.choice(users, min(1_000, users), replace=False) * 7_919 + 1, number)
            number += 1
            time.sleep(0.02)


def appends(folder: Path, users: int) -> list[list[str]]:
    random, rows, number = np.random.default_rng(2), [], 0
    for together, rounds, sync in ((1_000, 200, True), (1_000, 200, False), (1, 500, True), (1, 500, False)):
        queries = [random.choice(users, min(together, users), replace=False) * 7_919 + 1 for _ in range(rounds)]
        with TokenStore.open(folder, writable=True) as store:
            store.backend._wal.sync = sync

            def write(store: TokenStore = store, queries: list[Any] = queries, number: int = number) -> None:
                for at, own in enumerate(queries):
                    append(store, random, own, number + at)

            wall, cpu = timed(write)
        number += rounds
        total = sum(map(len, queries))
        rows.append([str(together), "yes" if sync else "no", f"{total / wall:,.0f}", f"{total / cpu:,.0f}"])
    return rows


def remote(token_set: TokenSet, stop: int) -> tuple[list[str], list[str]]:
    """Return load, memory and reads of a server, or an empty row if there is none."""
    sys.path.insert(0, str(TESTS))
    import redis
    import redis_server

    try:
        serving = redis_server.serving()
        url = serving.__enter__()
    except redis_server.NoServer as reason:
        return [], [f"no Redis server: {reason}"]
    try:
        with redis.Redis.from_url(url) as client, TokenStore.create(f"{url}/bench", INFO) as store:
            empty = client.info("memory")["used_memory"]
            wall, _ = timed(lambda: token_set.put(store, stop))
            used = client.info("memory")["used_memory"] - empty
            queries = [token_set.requests(512 + at, stop) for at in range(20)]
            row = batches({"Redis, float32": lambda u, t: len(store.last(u, t, 256, TRAINING))}, queries)[0]
            one = list(zip(*(array.tolist() for array in token_set.requests(3_000, stop))))
            wall_us, cpu_us = singles(lambda u, t: store.last(u, t, 256), one)
    finally:
        serving.__exit__(None, None, None)
    said = [
        f"{stop:,} tokens loaded in {wall:.1f} s, {used / stop:.0f} bytes of memory per token. One user, last 256, "
        f"{wall_us} us (p50 / p99 / p99.9), of which the client computes {cpu_us}"
    ]
    return row, said


def kills(count: int) -> str:
    sys.path.insert(0, str(TESTS))
    import test_crash

    with tempfile.TemporaryDirectory(dir=machine.CACHE) as folder:
        acknowledged = test_crash.kill_writers(Path(folder), count, 0.2)
    return (
        f"{count} writers killed (`kill -9`) while they appended and compacted: {acknowledged:,} acknowledged appends "
        "of 50 events, 0 lost, 0 torn, 0 doubled."
    )


def measure(folder: Path, token_set: TokenSet, arguments: argparse.Namespace) -> str:
    store = TokenStore.create(folder, INFO)
    load = timed(lambda: token_set.put(store, arguments.tokens))
    store.close()
    bytes_each = {path.stem: path.stat().st_size / arguments.tokens for path in folder.rglob("*.npy")}
    queries = [token_set.requests(512 + at, arguments.tokens) for at in range(40)]
    one = list(zip(*(array.tolist() for array in token_set.requests(10_000, arguments.tokens))))
    stop = arguments.tokens // 10
    redis_row, redis_said = remote(token_set, stop)
    opened = timed(lambda: TokenStore.open(folder).close())
    reader = TokenStore.open(folder)
    readers: dict[str, Callable[[Any, Any], int]] = {
        "floor: mapped arrays": floor(folder, queries),
        "store, stored types": lambda u, t: len(reader.backend.last(u, t, 256, None, RAW)),
        "store, float32": lambda u, t: len(reader.last(u, t, 256, TRAINING)),
        "store, float32, all columns": lambda u, t: len(reader.last(u, t, 256)),
    }
    rows, mean_tokens = batches(readers, queries), np.mean([readers["store, stored types"](*own) for own in queries])
    quiet = [
        ["stored types", *singles(lambda u, t: reader.backend.last(u, t, 256, None, RAW), one)],
        ["float32, all columns", *singles(lambda u, t: reader.last(u, t, 256), one)],
    ]
    writes = appends(folder, arguments.users)
    reader.refresh()
    newest = [(user, NOW * 2) for user, _ in one]
    quiet.append(["float32, all columns, newest not compacted", *singles(lambda u, t: reader.last(u, t, 256), newest)])
    writer = subprocess.Popen([sys.executable, __file__, "--append", str(folder), "--users", str(arguments.users)])
    try:
        time.sleep(3)
        busy, refresh = [], []
        for at, (user, timestamp) in enumerate(newest):
            if at % 20 == 0:
                refresh.append(timed(reader.refresh))
                time.sleep(0.001)
            busy.append(timed(lambda u=user, t=timestamp: reader.last(u, t, 256)))
    finally:
        writer.kill()
        writer.wait()
    for name, took in (
        ("the same while another process appends", busy),
        ("refresh after its appends", refresh),
    ):
        quiet.append([name, *percentiles(took)])
    with TokenStore.open(folder, writable=True) as store:
        new = len(store.backend._memtable)
        compact = timed(store.compact)
    lean = sum(bytes_each[name] for name in ("times", "vector", "visible", "version"))
    head = ["512 users, last 256", "ms", "CPU, ms", "million tokens per CPU-second"]
    return f"""# The token store at {arguments.tokens:,} tokens of {arguments.users:,} users

32 numbers of 16 bits per token, one side column. A batch of 512 users reads {mean_tokens:,.0f} tokens on average.

Loaded, sorted, in {load[0]:.1f} s ({load[1]:.1f} CPU-s). On disk {sum(bytes_each.values()):.1f} bytes per token, of
which timestamp, vector, visible and version {lean:.1f}, and the instance {bytes_each["instance"]:.1f}. Opened in
{opened[0] * 1e3:.0f} ms; {new:,} newer tokens compacted into it in {compact[0]:.1f} s ({compact[1]:.1f} CPU-s).

{machine.format_table(head, rows)}

On {stop:,} of the tokens, over a local socket: {redis_said[0]}.

{machine.format_table(head, [redis_row]) if redis_row else ""}

{machine.format_table(["one user, last 256", "us, p50 / p99 / p99.9", "us of CPU"], quiet)}

{machine.format_table(["tokens per append", "synced", "tokens per second", "tokens per CPU-second"], writes)}

{kills(arguments.kills)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tokens", 20_000_000), ("users", 50_000), ("kills", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--append", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.append:
        append_on(arguments.append, arguments.users)
        return
    machine.CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=machine.CACHE, prefix="tokens-"))
    try:
        text = measure(folder / "tokens", build_tokens(arguments.tokens, arguments.users), arguments)
    finally:
        shutil.rmtree(folder)
    machine.write("token_store", text)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
