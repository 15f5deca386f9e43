"""Training with and without ``fit.group_requests``: rows per CPU-second, in turn, in one process.

    python bench/grouped_training.py [--rounds 5] [--steps 30] [--logs movielens generated] [--work build/grouped]

Logs: MovieLens-1M, where a request is a user at a timestamp (some two ratings each), and a generated log of 10
impressions per request with histories of 200 events. Models: DIN, whose attention sees the candidate, and models whose
encoder of the history does not. A round trains some steps of each arm. The loss of a batch is compared too.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(1, str(Path(__file__).resolve().parent / "quality"))
import machine
from ranking_logs import TASKS

import longrec
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.models.core import registry
from longrec.training.job import read_job
from longrec.training.loaders import build_loader
from longrec.training.loop import update
from longrec.training.optimizers import build_optimizers
from longrec.training.running_loss import RunningLoss
from longrec.training.settings import FitConfig

MODELS: tuple[dict[str, Any], ...] = (
    {"name": "din", "embedding_dim": 32},
    {"name": "pooling", "embedding_dim": 32},
    {"name": "dupn", "embedding_dim": 32},
    {"name": "dmt", "embedding_dim": 32},
)
BATCH = 1024
USERS, REQUESTS, IMPRESSIONS, EVENTS = 300, 40, 10, 200


def write_generated(folder: Path) -> dict[str, Any]:
    """Write a log of requests with ten impressions each, and return its ``data`` section."""
    rng = np.random.default_rng(0)
    n = USERS * REQUESTS * IMPRESSIONS
    request = np.arange(n) // IMPRESSIONS
    item = rng.zipf(1.2, n) % 20_000
    columns = {
        "user": request // REQUESTS,
        "item": item,
        "category": item % 100,
        "hour": (request * 7) % 24,
        "t": 1_600_000_000 + 3_600 * (request % REQUESTS),
        "click": rng.integers(0, 2, n),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "log.parquet")
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "t", "unit": "s"},
        "label": "click",
        "features": {
            "user": {"kind": "id"},
            "hour": {"kind": "id"},
            "item": {"kind": "id"},
            "category": {"kind": "id", "side": "item"},
        },
        "histories": {"seen": {"features": ["item", "category"], "max_length": EVENTS}},
    }
    return {"log": str(folder / "log.parquet"), "split": {"by": "time", "valid": 0.05, "test": 0.05}, "schema": schema}


def open_log(name: str, work: Path) -> Log:
    """Prepare a log and open it."""
    folder = work / name
    data = (
        write_generated(folder) if name == "generated" else TASKS[name](Path("data"), work).section("past", [], False)
    )
    config = {"name": name, "data": {**data, "folder": str(folder / "prepared")}, "model": {"name": "lr"}}
    job = read_job(config)
    return Log.open(prepare(job.data, job.schema), job.schema)


def measure(log: Log, section: dict[str, Any], rounds: int, steps: int) -> list[str]:
    """Return a row of the table."""
    torch.set_num_threads(1)
    fit, rates = FitConfig(batch_size=BATCH), {False: [], True: []}
    trainers: dict[bool, Any] = {}
    running = RunningLoss("bench", fit.bf16)
    for group in (False, True):
        torch.manual_seed(0)
        model = registry.build(section, log.fields()).train()
        assert model.reads_groups
        loader = build_loader(model, log, log.rows_of("train"), BATCH, group_requests=group)
        trainers[group] = model, build_optimizers(model, fit), iter(loader.epoch(0))
    rows = log.rows_of("train")[-2_000:]
    with torch.no_grad():
        model = trainers[False][0].eval()
        losses = [float(model.loss(gather(log, rows, group=group))) for group in (False, True)]
        model.train()
    for number in range(rounds + 1):
        for group in (False, True) if number % 2 else (True, False):
            model, optimizers, batches = trainers[group]
            began, count = time.process_time(), 0
            for step in range(steps):
                batch = next(batches)
                update(model, optimizers, fit, step, batch, running)
                count += batch.size
            if number:  # the first round warms up
                rates[group].append(count / (time.process_time() - began))
    gains = [on / off for off, on in zip(rates[False], rates[True])]
    off, on = (f"{np.median(rates[group]):,.0f}" for group in (False, True))
    span = f"{np.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
    return [section["name"], off, on, span, f"{abs(losses[0] - losses[1]):.1e}"]


def main() -> None:
    """Print a table per log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/grouped"))
    parser.add_argument("--logs", nargs="*", default=["movielens", "generated"])
    parser.add_argument("--models", nargs="*", default=[section["name"] for section in MODELS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    print(f"longrec {longrec.__version__}, torch {torch.__version__}, one thread, batches of {BATCH} rows")
    head = ["model", "rows per CPU-second", "grouped", "gain (rounds)", "difference in loss"]
    for name in args.logs:
        log = open_log(name, args.work)
        train = log.rows_of("train")
        keys = np.stack([log.user(train), log.timestamps.take(train)])
        requests = 1 + int((np.diff(keys) != 0).any(0).sum())
        print(f"\n{name}: {len(train):,} training rows in {requests:,} requests ({len(train) / requests:.2f} each)\n")
        rows = [measure(log, m, args.rounds, args.steps) for m in MODELS if m["name"] in args.models]
        print(machine.format_table(head, rows), flush=True)


if __name__ == "__main__":
    main()
