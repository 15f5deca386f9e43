"""Serving latency of DIN: 100 candidates and 100 past events per request, one process, JSON included.

    python bench/serving_latency.py [--requests 2000] [--case plain|tokens]

Writes a log of users with at least 100 events, trains DIN for a few steps (weights do not change the time), exports it,
and starts the server in a process of its own. Requests over one persistent connection have random users and candidates.
In process, such requests use the same JSON without HTTP.

``tokens``: the same DIN inside a reader of 256 instance tokens of 64 numbers each (fp16) with their labels and ages,
read from the bundle's copy, and from a live store, whose writer adds a token every few milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import longrec
from longrec.serve.client import client
from longrec.serve.interface import Client
from longrec.serve.server import run_server
from longrec.serve.settings import Settings
from longrec.store.token_store import TokenInfo, TokenStore, Version

USERS, ITEMS, HISTORY_LENGTH, CANDIDATES = 2_000, 100_000, 100, 100
TOKENS, WIDTH, START = 256, 64, 1_700_000_000


def write_log(folder: Path, rng: np.random.Generator) -> None:
    """Write a log of 120 events per user, a second or more apart."""
    count = USERS * (HISTORY_LENGTH + 20)
    user = np.repeat(np.arange(USERS), HISTORY_LENGTH + 20)
    category = rng.integers(0, 1_000, ITEMS)
    table = pa.table({
        "user_id": user,
        "item_id": rng.integers(0, ITEMS, count),
        "time": START + np.tile(np.arange(HISTORY_LENGTH + 20) * 3_600, USERS) + rng.integers(0, 3_600, count),
        "device": rng.integers(0, 5, count),
        "click": rng.integers(0, 2, count),
    })  # fmt: skip
    pq.write_table(table, folder / "events.parquet")
    pq.write_table(pa.table({"item_id": np.arange(ITEMS), "category": category}), folder / "items.parquet")


def build_job(folder: Path, history: int = HISTORY_LENGTH) -> dict:
    """Return the job of DIN of the usual size over item and category."""
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
                    "category": {"kind": "id", "side": "item"},
                    "device": {"kind": "id"},
                    "hour": {"kind": "calendar"},
                },
                "histories": {"past": {"features": ["item_id", "category", "time_gap"], "max_length": history}},
            },
        },
        "model": {"name": "din", "embedding_dim": 16, "attention": [80, 40], "mlp": [200, 80]},
        "fit": {"epochs": 1, "max_steps": 20, "val_checks_per_epoch": 1, "runs": str(folder / "runs")},
        "evaluate": {"n_resamples": 2},
    }


def build_reader_job(folder: Path) -> dict:
    """Return the job of the same DIN inside a reader of tokens."""
    config = build_job(folder)
    of = ["token", "label", "time_gap"]
    config["data"]["schema"]["histories"]["tokens"] = {
        "from": str(folder / "tokens"),
        "features": of,
        "max_length": TOKENS,
    }
    return {**config, "name": "reader", "model": {"name": "iat_reader", "base": config["model"]}}


def write_tokens(folder: Path, rng: np.random.Generator) -> None:
    """Write a store with ``TOKENS`` tokens per user, all before the last events."""
    info = TokenInfo(WIDTH, codec="fp16", sides={"label": 3}, standardized=True, versions=(Version(0),))
    count = USERS * TOKENS
    times = 1_000 * (START + np.tile(np.arange(TOKENS) * 600, USERS))
    with TokenStore.create(folder, info) as store:
        store.load(
            np.repeat(np.arange(USERS), TOKENS),
            times,
            instance=np.arange(count),
            visible=times,
            version=np.zeros(count, np.int64),
            vectors=rng.standard_normal((count, WIDTH), dtype=np.float32),
            sides={"label": rng.integers(0, 3, count)},
            available_at={"label": times + 1_000},
        )


@contextlib.contextmanager
def write_in_background(folder: Path) -> Iterator[None]:
    """Add a token of a random user every five milliseconds in a second thread."""
    end, rng = threading.Event(), np.random.default_rng(2)
    with TokenStore.open(folder, writable=True) as store:

        def write() -> None:
            number = USERS * TOKENS
            while not end.wait(0.005):
                number += 1
                at = np.array([1_000 * (START + TOKENS * 600) + number])
                vector = rng.standard_normal((1, WIDTH), dtype=np.float32)
                store.append(rng.integers(0, USERS, 1), at, instance=np.array([number]), visible=at,
                             version=np.zeros(1, np.int64), vectors=vector, sides={"label": np.array([1])},
                             available_at={"label": at})  # fmt: skip

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def measure_requests(
    bundle: str, requests: int, warm: int, rng: np.random.Generator, **live: object
) -> tuple[np.ndarray, float]:
    """Return milliseconds of every request after the warm-up, and this process's CPU milliseconds per request."""
    with client(bundle, **live) as shop:
        return time_requests(shop, requests, warm, rng)


def time_requests(shop: Client, requests: int, warm: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return the same of a client."""
    drawn = [
        (int(rng.integers(USERS)), rng.choice(ITEMS, CANDIDATES, replace=False).tolist())
        for _ in range(requests + warm)
    ]
    spent = np.empty(len(drawn))
    for number, (user, candidates) in enumerate(drawn):
        if number == warm:
            cpu = time.process_time()
        began = time.perf_counter()
        ranking = shop.rank(user=user, candidates=candidates, context={"device": 1})
        spent[number] = time.perf_counter() - began
        assert len(ranking) == CANDIDATES
    cpu = time.process_time() - cpu
    return 1_000 * spent[warm:], 1_000 * cpu / requests


def measure_serving(
    folder: Path, case: str, arguments: argparse.Namespace, rng: np.random.Generator
) -> tuple[list, float]:
    """Return rows of the table, and the duration of the export."""
    config = build_job(folder)
    if case == "tokens":
        write_tokens(folder / "tokens", rng)
        config = build_reader_job(folder)
    run = longrec.train(config, quiet=True)
    bundle = folder / "shop.bundle"
    began = time.perf_counter()
    longrec.export(run, bundle)
    exported, rows = time.perf_counter() - began, []

    def add_row(title: str, where: str, **live: object) -> None:
        spent, cpu = measure_requests(where, arguments.requests, arguments.warm, rng, **live)
        rows.append([title, *(f"{f:.2f}" for f in (*np.percentile(spent, (5, 50, 90, 99)), spent.max(), cpu))])

    with run_server(bundle) as url:
        add_row("over HTTP", url)
    add_row("in process", str(bundle))
    if case == "tokens":
        live = {"tokens": str(folder / "tokens")}
        with run_server(bundle, settings=Settings(live)) as url:
            add_row("over HTTP, a live store", url)
            with write_in_background(folder / "tokens"):
                add_row("over HTTP, a live store that is written", url)
    return rows, exported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--warm", type=int, default=200)
    parser.add_argument("--case", choices=["plain", "tokens"], default="plain")
    arguments = parser.parse_args()
    machine.CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=machine.CACHE, prefix="serving-"))
    rng = np.random.default_rng(1)
    load = os.getloadavg()[0]
    try:
        write_log(folder, rng)
        rows, exported = measure_serving(folder, arguments.case, arguments, rng)
    finally:
        shutil.rmtree(folder)
    model, name = "DIN (16; 80-40; 200-80)", "serving_latency"
    if arguments.case == "tokens":
        model, name = f"{model} inside a reader of {TOKENS} instance tokens of {WIDTH} numbers", "serving_tokens"
    machine.write(
        name,
        f"# Serving latency\n\n{CANDIDATES} candidates, {HISTORY_LENGTH} past events, {model}, "
        f"{arguments.requests:,} requests one after another over one connection, after {arguments.warm} to warm up; "
        "JSON in and out, the client's own work included. One server process, one thread; the machine's load was "
        f"{load:.1f} when it began. Export with its checks took {exported:.0f} s.\n\n"
        + machine.format_table(
            ["milliseconds", "p5", "p50", "p90", "p99", "longest", "CPU of the client process"], rows
        ),
    )


if __name__ == "__main__":
    main()
