"""Data preparation at 20 million events of 50 thousand users: time, memory, size, and what longer histories cost.

    python bench/prepare_20m.py [--events 20000000 --users 50000 --items 300000]

The raw log is made once and kept in the cache. Each ``prepare`` runs in a process of its own, in a new folder; peak
memory is the process's resident peak, DuckDB and mapped files included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PREPARE = """
import json, sys
from pathlib import Path
from longrec.config import parse
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.features.schema import Schema
given = json.loads(sys.argv[1])
print(prepare(parse(DataConfig, given["data"], "bench"), parse(Schema, given["schema"], "bench")))
"""


def raw_log(path: Path, events: int, users: int, items: int, seed: int) -> None:
    """Events in the order of time, in whole seconds: some seconds hold several events of one user."""
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0, 1.0, users)
    popularity = np.cumsum(np.arange(1, items + 1) ** -1.05)
    category = rng.integers(1, 1_001, items).astype(np.int32)
    user_ids = rng.permutation(users * 10)[:users].astype(np.int32)
    item_ids = rng.permutation(items * 10)[:items].astype(np.int32)
    cumulative = np.cumsum(weight / weight.sum())
    seconds = np.sort(rng.integers(1_700_000_000, 1_700_000_000 + 30 * 86_400, events))
    writer = None
    for low in range(0, events, 1_000_000):
        count = min(1_000_000, events - low)
        user = np.minimum(np.searchsorted(cumulative, rng.random(count)), users - 1)
        repeat = np.flatnonzero(rng.random(count - 1) < 0.2) + 1  # a burst: the same user at the same second
        time = seconds[low : low + count].copy()
        user[repeat], time[repeat] = user[repeat - 1], time[repeat - 1]
        item = np.searchsorted(popularity, rng.random(count) * popularity[-1])
        table = pa.table({
            "user_id": user_ids[user],
            "item_id": item_ids[item],
            "time": time,
            "category": category[item],
            "label": (rng.random(count) < 0.2 + 0.2 * (category[item] % 3 == 0)).astype(np.int8),
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def settings(log: Path, folder: Path, last: int) -> str:
    """The data and schema sections, as JSON."""
    schema = {
        "user": "user_id",
        "item": "item_id",
        "time": {"column": "time", "unit": "s"},
        "label": "label",
        "features": {
            "user_id": {"kind": "id"},
            "item_id": {"kind": "id"},
            "category": {"kind": "id"},
            "clicked": {"kind": "id", "column": "label", "feedback": True},
        },
        "histories": {"past": {"features": ["item_id", "category", "clicked"], "max_length": last}},
    }
    return json.dumps({"schema": schema, "data": {"log": str(log), "folder": str(folder)}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("events", 20_000_000), ("users", 50_000), ("items", 300_000), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    machine.CACHE.mkdir(parents=True, exist_ok=True)
    log = machine.CACHE / f"events_{args.events}_{args.users}_{args.items}_{args.seed}.parquet"
    if not log.exists():
        half = log.with_suffix(".half")
        raw_log(half, args.events, args.users, args.items, args.seed)
        half.rename(log)
    raw = sum(pq.read_table(log, columns=[name]).nbytes for name in pq.read_schema(log).names)
    rows = []
    for last in (100, 1_000):
        folder = Path(tempfile.mkdtemp(dir=machine.CACHE, prefix="prepared-"))
        try:
            command = [sys.executable, "-c", PREPARE, settings(log, folder, last)]
            used = machine.measure(command)
            again = machine.measure(command)
            written = size(Path(used.output.strip().splitlines()[-1]))
        finally:
            shutil.rmtree(folder)
        rows.append([
            str(last), f"{used.wall:.1f}", f"{used.cpu:.1f}", f"{used.peak_mb / 1000:.2f}", f"{written / 1e6:,.0f}",
            f"{written / raw:.2f}", f"{again.wall:.1f}",
        ])  # fmt: skip
        print(f"last {last}: {used.wall:.1f} s, {used.peak_mb:.0f} MB", flush=True)
    head = ["history, last", "wall, s", "CPU, s", "peak memory, GB", "prepared, MB", "of the raw columns", "again, s"]
    machine.write(
        "prepare_20m",
        f"# Preparation of {args.events:,} events of {args.users:,} users\n\n"
        f"Raw columns (user, item, time, category, label) {raw / 1e6:,.0f} MB in memory, "
        f"{log.stat().st_size / 1e6:,.0f} MB as Parquet. One process, at most two threads; start of Python and imports "
        "included. *Again* is the same call "
        f"on the folder it finds prepared.\n\n{machine.format_table(head, rows)}",
    )


if __name__ == "__main__":
    main()
