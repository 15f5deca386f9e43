"""Serving latency: 100 candidates and 100 past events a request, DIN, one process, JSON included.

    python bench/serving_latency.py [--requests 2000]

Makes a log of users with at least 100 events, trains DIN for a few steps (weights do not change the time), exports it,
starts the server in a process of its own and asks it over one connection that stays open, each request for another user
and other candidates. In process, such requests go through the same JSON without HTTP.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec import client, verbs
from longrec.serve.server import running

USERS, ITEMS, PAST, CANDIDATES = 2_000, 100_000, 100, 100


def log(folder: Path, rng: np.random.Generator) -> None:
    """120 events a user, a second or more apart."""
    count = USERS * (PAST + 20)
    user = np.repeat(np.arange(USERS), PAST + 20)
    category = rng.integers(0, 1_000, ITEMS)
    table = pa.table({
        "user_id": user,
        "item_id": rng.integers(0, ITEMS, count),
        "time": 1_700_000_000 + np.tile(np.arange(PAST + 20) * 3_600, USERS) + rng.integers(0, 3_600, count),
        "device": rng.integers(0, 5, count),
        "click": rng.integers(0, 2, count),
    })  # fmt: skip
    pq.write_table(table, folder / "events.parquet")
    pq.write_table(pa.table({"item_id": np.arange(ITEMS), "category": category}), folder / "items.parquet")


def job(folder: Path) -> dict:
    """DIN of the usual size over item and category."""
    return {
        "name": "din",
        "data": {
            "log": str(folder / "events.parquet"),
            "items": str(folder / "items.parquet"),
            "folder": str(folder / "prepared"),
            "schema": {
                "user": "user_id",
                "item": "item_id",
                "time": {"column": "time", "unit": "s"},
                "label": "click",
                "features": {
                    "user_id": {"kind": "id"},
                    "item_id": {"kind": "id"},
                    "category": {"kind": "id", "table": "item"},
                    "device": {"kind": "id"},
                    "hour": {"kind": "time"},
                },
                "histories": {"past": {"of": ["item_id", "category", "time_gap"], "last": PAST}},
            },
        },
        "model": {"name": "din", "embedding_dim": 16, "attention": [80, 40], "mlp": [200, 80]},
        "fit": {"epochs": 1, "max_steps": 20, "validations_per_epoch": 1, "runs": str(folder / "runs")},
        "evaluate": {"replicates": 2},
    }


def ask(bundle: str, requests: int, warm: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Milliseconds of every request after the warm-up, and this process's CPU milliseconds a request."""
    drawn = [
        (int(rng.integers(USERS)), rng.choice(ITEMS, CANDIDATES, replace=False).tolist())
        for _ in range(requests + warm)
    ]
    spent = np.empty(len(drawn))
    with client(bundle) as shop:
        for number, (user, candidates) in enumerate(drawn):
            if number == warm:
                cpu = time.process_time()
            began = time.perf_counter()
            ranking = shop.rank(user=user, candidates=candidates, context={"device": 1})
            spent[number] = time.perf_counter() - began
            assert len(ranking) == CANDIDATES
        cpu = time.process_time() - cpu
    return 1_000 * spent[warm:], 1_000 * cpu / requests


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--requests", type=int, default=2_000)
    asked.add_argument("--warm", type=int, default=200)
    given = asked.parse_args()
    machine.CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=machine.CACHE, prefix="serving-"))
    rng = np.random.default_rng(1)
    try:
        log(folder, rng)
        run = verbs.train(job(folder), quiet=True)
        bundle = folder / "shop.bundle"
        began = time.perf_counter()
        verbs.export(run, bundle)
        exported = time.perf_counter() - began
        rows = []
        load = os.getloadavg()[0]
        with running(bundle) as url:
            for title, where in (("over HTTP", url), ("in process", str(bundle))):
                spent, cpu = ask(where, given.requests, given.warm, rng)
                figures = [*np.percentile(spent, (5, 50, 90, 99)), spent.max(), cpu]
                rows.append([title, *(f"{figure:.2f}" for figure in figures)])
    finally:
        shutil.rmtree(folder)
    machine.write(
        "serving_latency",
        f"# Serving latency\n\n{CANDIDATES} candidates, {PAST} past events, DIN (16; 80-40; 200-80), "
        f"{given.requests:,} requests one after another over one connection, after {given.warm} to warm up; JSON in "
        "and out, the client's own work included. One server process, one thread; the machine's load was "
        f"{load:.1f} when it began. Export with its checks took {exported:.0f} s.\n\n"
        + machine.table(["milliseconds", "p5", "p50", "p90", "p99", "longest", "CPU of the asking process"], rows),
    )


if __name__ == "__main__":
    main()
