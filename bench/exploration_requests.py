"""Cost of exploration in a request: the whole request with and without it, for five rankers.

    python bench/exploration_requests.py [--models din fm dcn_v2 deepfm bst] [--rounds 15] [--uncertainty thompson]

Writes a log, trains every ranker for a few steps (weights do not change the time), and exports it with AGE. A pipeline
is one source of 100 items of 2,000, the ranker, and a page of 10. Requests are answered in this process (one thread),
by the same users, in interleaved rounds:

- `plain`: without exploration;
- `20` and `100`: every page explores (share 1) over so many candidates. A page costs the same with a smaller share
  where propensities are logged; without a log, a page that does not explore costs as much as a plain one.

The figures are medians of the CPU time of a round, per request, and the exploring stage alone as a trace states it.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import longrec
from longrec.config import to_yaml

USERS, ITEMS, EVENTS, START, SOURCED, K = 200, 2_000, 100, 1_700_000_000, 100, 10
CANDIDATES = (20, 100)


def write_log(folder: Path) -> dict[str, Any]:
    """Write a log of 100 events per user, and return the data section of its jobs."""
    random, count = np.random.default_rng(0), USERS * EVENTS
    times = START + np.tile(np.arange(EVENTS) * 3_600, USERS)
    columns = {
        "user_id": np.repeat(np.arange(USERS), EVENTS),
        "item_id": random.integers(0, ITEMS, count),
        "time": times,
        "click": random.integers(0, 2, count),
    }
    pq.write_table(pa.table(columns), folder / "events.parquet")
    categories = pa.table({"item_id": np.arange(ITEMS), "category": np.arange(ITEMS) % 50})
    pq.write_table(categories, folder / "items.parquet")
    features = {"user_id": "id", "item_id": "id", "category": {"kind": "id", "side": "item"}}
    histories = {"events": {"features": ["item_id", "category"], "max_length": EVENTS}}
    schema = {"user": "user_id", "item": "item_id", "time": {"column": "time", "unit": "s"}, "label": "click"}
    return {
        "log": str(folder / "events.parquet"),
        "items": str(folder / "items.parquet"),
        "folder": str(folder / "prepared"),
        "schema": {**schema, "features": features, "histories": histories},
        "split": {"by": "time", "valid": 0.01, "test": 0.01},
    }


def export(folder: Path, data: dict[str, Any], name: str, explore: dict[str, Any] | None) -> float:
    """Train a model for a few steps and export it. Returns the CPU seconds of the export."""
    fit = {} if name == "popularity" else {"epochs": 1, "max_steps": 5, "val_checks_per_epoch": 1}
    job = {
        "name": name,
        "data": data,
        "model": {"name": name},
        "evaluate": {"n_resamples": 2, "valid_rows": 10},
        "fit": {**fit, "runs": str(folder / "runs")},
    }
    run = longrec.train(job, quiet=True)
    began = time.process_time()
    longrec.export(run, folder / f"{name}.bundle", explore=explore)
    return time.process_time() - began


def measure(folder: Path, name: str, rounds: int) -> dict[str, float]:
    """Return CPU milliseconds per request: plain, with exploration, and of the stage alone."""
    with contextlib.ExitStack() as stack:
        opened = {}
        for candidates in (0, *CANDIDATES):
            content: dict[str, Any] = {
                "recall": {"popularity": {"bundle": "popularity.bundle", "count": SOURCED}},
                "filter": {"seen": False},
                "rank": {"bundle": f"{name}.bundle"},
            }
            if candidates:
                content["explore"] = {"position": 5, "share": 1.0, "candidates": candidates, "seed": 0}
            path = folder / f"{name}-{candidates}.yaml"
            path.write_text(to_yaml(content))
            opened[candidates] = stack.enter_context(longrec.open_pipeline(path))
        times: dict[int, list[float]] = {candidates: [] for candidates in opened}
        own: dict[int, list[float]] = {candidates: [] for candidates in CANDIDATES}
        at = START + EVENTS * 3_600
        for number in range(-1, rounds):  # the first round is not counted
            users = [(10 * number + user) % USERS for user in range(10)]
            for candidates, pipeline in opened.items():
                began = time.process_time()
                for user in users:
                    pipeline.recommend(user, K, at=at)
                if number >= 0:
                    times[candidates].append((time.process_time() - began) / len(users))
            for candidates in CANDIDATES:
                stages = opened[candidates].trace(users[0], K, at=at).stages
                own[candidates] += [stage.cpu_seconds for stage in stages if stage.name == "explore"]
    figures = {f"{candidates}": 1e3 * statistics.median(spent) for candidates, spent in times.items()}
    return {**figures, **{f"stage {candidates}": 1e3 * statistics.median(spent) for candidates, spent in own.items()}}


def main() -> None:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["fm", "deepfm", "dcn_v2", "din", "bst"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--uncertainty", default="thompson", choices=["ucb", "thompson"])
    parser.add_argument("--folder", type=Path, help="keep the bundles there, and use those that exist")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = args.folder or Path(text)
        folder.mkdir(parents=True, exist_ok=True)
        data = write_log(folder)
        explore = {"name": "age", "uncertainty": args.uncertainty}
        for name in ("popularity", *args.models):
            if not (folder / f"{name}.bundle").exists():
                seconds = export(folder, data, name, None if name == "popularity" else explore)
                print(f"{name}: exported in {seconds:.1f} CPU s", flush=True)
        for name in args.models:
            own = measure(folder, name, args.rounds)
            print(name, own, flush=True)
            cells = [f"{own['0']:.2f}"]
            for candidates in CANDIDATES:
                total = own[str(candidates)]
                cells += [f"{total:.2f}", f"{own[f'stage {candidates}']:.2f}", f"{total / own['0']:.1f}"]
            rows.append([name, *cells])
    head = ["ranker", "plain, ms"]
    for candidates in CANDIDATES:
        head += [f"{candidates} explored, ms", "of it the stage, ms", "ratio"]
    about = (
        "CPU milliseconds of one request in process, with and without exploration by AGE "
        f"({args.uncertainty}, projected gradient of 5 steps, with a gate), default settings of the rankers, histories "
        f"of {EVENTS} events, {SOURCED} ranked candidates of {ITEMS:,} items, one thread. Medians of {args.rounds} "
        "interleaved rounds of 10 requests. `20` and `100` are the candidates with an exploration score. Without a log "
        "only the share of pages that explore pays this; with one, all pages outside of the control bucket do."
    )
    table = machine.format_table(head, rows)
    machine.write("exploration_requests", f"# Requests with exploration\n\n{about}\n\n{table}")


if __name__ == "__main__":
    main()
