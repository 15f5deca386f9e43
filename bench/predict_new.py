"""Scores of a million rows of a new log beside those of a split of as many rows: time, memory, and served scores.

    python bench/predict_new.py [--rows 1000000 --old 4 --models din deepfm]

The raw log is generated once and kept in the cache. Its last rows are the new log. The run is trained for some steps on
the rows before, ``--old`` times as many, whose last ones are its test split. Each call runs in a process of its own,
in turn; the time is that of the call. A sample of the new rows is also scored by a client of the exported bundle: rows
of users and items of the run that are the first new event of their user, whose history the bundle has.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prepare_20m import raw_log

import longrec

CALL = """
import json, sys, time
from pathlib import Path
import longrec
settings = json.loads(sys.argv[1])
run = longrec.open_run(settings.pop("run"))
run.model()  # imports and the first call of torch are not measured
wall, cpu = time.perf_counter(), time.process_time()
longrec.predict(run, **settings)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
# The peak that the operating system reports of a child is at least the memory of its parent.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"wall": wall, "cpu": cpu, "peak": int(status["VmHWM"].split()[0]) / 1024}))
"""
SERVED = 300


def build_job(log: Path, model: str, work: Path, rows: int, old: int) -> dict[str, Any]:
    """Return the config of a run whose last rows are its test split."""
    schema = {
        "user": "user_id",
        "item": "item_id",
        "time": {"column": "time", "unit": "s"},
        "label": "label",
        "features": {
            "user_id": {"kind": "id"},
            "item_id": {"kind": "id"},
            "category": {"kind": "id", "side": "item"},
            "label": {"kind": "id", "feedback": True},
        },
        "histories": {"shown": {"features": ["item_id", "category", "label", "time_gap"], "max_length": 50}},
    }
    split = {"by": "time", "valid": 0.01, "test": 1 / old}
    own = {"din": {"attention": [80, 40], "mlp": [200, 80]}}.get(model, {})
    return {
        "name": f"{model}-{rows}-{old}",
        "data": {"log": str(log), "schema": schema, "split": split, "folder": str(work / "prepared")},
        "model": {"name": model, "embedding_dim": 16, **own},
        "fit": {"epochs": 1, "max_steps": 60, "batch_size": 512, "runs": str(work / "runs")},
    }


def call(run: Path, into: Path, **settings: Any) -> dict[str, float]:
    """Run one call in a process of its own, and return its seconds, its CPU seconds and its peak memory in MiB."""
    arguments = {"run": str(run), "into": str(into), **settings}
    usage = machine.measure([sys.executable, "-c", CALL, json.dumps(arguments)])
    result: dict[str, float] = json.loads(usage.output.strip().splitlines()[-1])
    return result


def compare_served(run: Path, new: Path, scores: Path, folder: Path) -> float:
    """Return the largest difference between scores and those of a client of the run's bundle, on a sample."""
    bundle = folder / "run.bundle"
    longrec.export(run, bundle)
    table, rows = pq.read_table(scores), pq.read_table(new)
    order = np.argsort(rows["time"].to_numpy(), kind="stable")
    users, first = np.unique(rows["user_id"].to_numpy()[order], return_index=True)
    log, items = longrec.open_run(run).log(), rows["item_id"].to_numpy()
    own = [set(entities.keys.values.to_pylist()) for entities in (log.users, log.items)]
    pairs = zip(users.tolist(), order[first].tolist())
    at = [index for user, index in pairs if user in own[0] and items[index] in own[1]][:SERVED]
    worst = 0.0
    with longrec.client(bundle) as shop:
        for one in table.take(pa.array(at)).to_pylist():
            time = one["time"].isoformat()
            served = shop.rank(user=one["user"], candidates=[one["item"]], at=time, allow_unknown=True)
            worst = max(worst, abs(served.items[0].score - one["score"]))
    return worst


def main() -> None:
    """Generate, train, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--old", type=int, default=4, help="rows of the run's log, in new rows")
    parser.add_argument("--models", nargs="+", default=["din", "deepfm"])
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    work = machine.CACHE / "predict_new"
    work.mkdir(parents=True, exist_ok=True)
    events = args.rows * (args.old + 1)
    old, new = work / f"old-{events}.parquet", work / f"new-{events}.parquet"
    if not new.exists():
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            raw = Path(scratch) / "raw.parquet"
            raw_log(raw, events, 50_000, 100_000, 1)
            table = pq.read_table(raw)
        pq.write_table(table.slice(0, args.rows * args.old), old)
        pq.write_table(table.slice(args.rows * args.old), new)
    lines = []
    for model in args.models:
        job = build_job(old, model, work, args.rows, args.old)
        folder = Path(job["fit"]["runs"]) / job["name"]
        if not (folder / "results.json").exists():
            longrec.train(job, quiet=True)
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            into = Path(scratch) / "scores.parquet"
            pairs = []
            for _ in range(args.rounds):
                split = call(folder, Path(scratch) / "split.parquet", split="test")
                pairs.append((split, call(folder, into, log=str(new))))
            worst = compare_served(folder, new, into, Path(scratch))
        split, fresh = (
            {key: float(np.median([pair[side][key] for pair in pairs])) for key in ("wall", "cpu", "peak")}
            for side in (0, 1)
        )
        count = pq.read_metadata(new).num_rows
        speeds = [f"{count / side['cpu']:,.0f}" for side in (split, fresh)]
        others = [f"{side[key]:,.{digits}f}" for key, digits in (("wall", 1), ("peak", 0)) for side in (split, fresh)]
        lines.append([model, *speeds, f"{split['cpu'] / fresh['cpu']:.2f}", *others, f"{worst:.1e}"])
        print(lines[-1], flush=True)
    head = ["model", "split, rows per CPU-s", "new, rows per CPU-s", "new over split", "split, wall s", "new, wall s"]
    head += ["split, peak MiB", "new, peak MiB", "largest difference to a served score"]
    about = (
        f"{args.rows:,} new rows of a log, after {args.rows * args.old:,} rows of the run, of 50,000 users and 100,000 "
        "items. The split has as many rows. Histories of 50 events. The time of the new rows includes reading them "
        "from Parquet, sorting, encoding, and merging them with the events of their users. "
        f"{SERVED} new rows were also scored by a client of the bundle."
    )
    table = machine.format_table(head, lines)
    machine.write("predict_new", f"# Scores of new rows beside those of a split\n\n{about}\n\n{table}")


if __name__ == "__main__":
    main()
