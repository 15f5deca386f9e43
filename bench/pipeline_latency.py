"""Latency of a whole pipeline: two sources over 200,000 items, DIN on 100 candidates, MMR, quotas and a log.

    python bench/pipeline_latency.py [--requests 1000] [--items 200000] [--folder FOLDER]

Writes a log, trains SASRec and DIN for a few steps (weights do not change the time) and counts for the second source,
exports them, and serves the pipeline in a process of its own. Requests over one persistent connection have random
users. The stages are those of the header server-timing. With --folder the bundles are kept and used again.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import longrec
from longrec.config import to_yaml
from longrec.serve.client import client
from longrec.serve.server import run_server

USERS, EVENTS, START = 1_000, 120, 1_700_000_000
PIPELINE = {
    "name": "bench",
    "recall": {
        "sasrec": {"bundle": "sasrec.bundle", "count": 300},
        "covisit": {"bundle": "covisit.bundle", "count": 200},
    },
    "merge": {"count": 100},
    "rank": {"bundle": "din.bundle", "count": 60},
    "rerank": [{"method": "mmr", "lambda": 0.7, "vectors": "sasrec", "count": 20}],
    "mix": {"quotas": [{"attribute": "category", "at_most": 3}]},
    "log": "impressions",
}  # fmt: skip


def write_log(folder: Path, items: int, rng: np.random.Generator) -> None:
    """Write a log of 120 events per user, an hour apart. The most popular item has two percent of the events."""
    count = USERS * EVENTS
    times = START + np.tile(np.arange(EVENTS) * 3_600, USERS) + rng.integers(0, 3_600, count)
    share = np.arange(1, items + 1) ** -0.8
    item = rng.choice(items, count, p=share / share.sum())
    columns = {"user_id": np.repeat(np.arange(USERS), EVENTS), "item_id": item, "time": times,
               "click": rng.integers(0, 2, count)}  # fmt: skip
    pq.write_table(pa.table(columns), folder / "events.parquet")
    categories = pa.table({"item_id": np.arange(items), "category": np.arange(items) % 1_000})
    pq.write_table(categories, folder / "items.parquet")


def build_job(folder: Path, name: str, model: dict) -> dict:
    """Return the job of one model over item and category."""
    features = {"user_id": "id", "item_id": {"kind": "id", "min_count": 1}, "category": {"kind": "id", "side": "item"}}
    histories = {"events": {"features": ["item_id", "category"], "max_length": 100}}
    time_column = {"column": "time", "unit": "s"}
    schema = {"user": "user_id", "item": "item_id", "time": time_column, "label": "click", "features": features}
    data = {"log": str(folder / "events.parquet"), "items": str(folder / "items.parquet"),
            "folder": str(folder / "prepared"), "schema": {**schema, "histories": histories},
            "split": {"by": "time", "valid": 0.001, "test": 0.001}}  # fmt: skip
    job = {"name": name, "data": data, "model": model, "evaluate": {"n_resamples": 2, "valid_rows": 10}}
    steps = {} if name == "covisit" else {"epochs": 1, "max_steps": 5, "val_checks_per_epoch": 1}
    return {**job, "fit": {**steps, "runs": str(folder / "runs")}}


def build_bundles(folder: Path, items: int) -> None:
    """Write the log, the bundles and the file of the pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder, items, np.random.default_rng(0))
    models = {
        "sasrec": {"name": "sasrec", "embedding_dim": 64},
        "covisit": {"name": "covisit"},
        "din": {"name": "din", "embedding_dim": 16, "attention": [80, 40], "mlp": [200, 80]},
    }
    for name, model in models.items():
        run = longrec.train(build_job(folder, name, model), quiet=True)
        longrec.export(run, folder / f"{name}.bundle")
    (folder / "bench.yaml").write_text(to_yaml(PIPELINE))


def time_requests(url: str, requests: int, warm: int) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Return milliseconds of every request after the warm-up, and those of each stage."""
    rng, address = np.random.default_rng(1), urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    elapsed, stages = [], defaultdict[str, list[float]](list)
    for number in range(requests + warm):
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(START + EVENTS * 3_600))}Z"
        body = json.dumps({"user": int(rng.integers(0, USERS)), "k": 10, "at": at})
        began = time.perf_counter()
        connection.request("POST", "/recommend", body, {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        seconds = time.perf_counter() - began
        assert response.status == 200, content
        if number >= warm:
            elapsed.append(1e3 * seconds)
            for entry in (response.getheader("server-timing") or "").split(", "):
                name, _, duration = entry.partition(";dur=")
                stages[name].append(float(duration))
    connection.close()
    return np.array(elapsed), stages


@contextlib.contextmanager
def open_folder(folder: str | None) -> Iterator[Path]:
    """Yield the folder of the bundles: one that stays, or a temporary one."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="longrec-pipeline-") as temporary:
        yield Path(temporary)


def describe(name: str, values: np.ndarray | list[float]) -> str:
    """Return median, 95th and 99th percentile in one line."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return f"{name:<16} p50 {p50:7.2f} ms   p95 {p95:7.2f} ms   p99 {p99:7.2f} ms"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--warm", type=int, default=100)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--folder", help="folder for the bundles, which are used again if they are there")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(machine.get_hardware_name())
    with open_folder(args.folder) as folder:
        if not (folder / "bench.yaml").exists():
            build_bundles(folder, args.items)
        with client(folder / "bench.yaml") as local:
            print(f"{args.items:,} items; page: {[item.id for item in local.recommend(user=1, k=5)]}")
        with run_server(folder / "bench.yaml") as url:
            elapsed, stages = time_requests(url, args.requests, args.warm)
    print(describe("over HTTP", elapsed))
    for name, values in stages.items():
        print(describe(f"  {name}", values))


if __name__ == "__main__":
    main()
