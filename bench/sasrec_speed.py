"""SASRec on Amazon Beauty side by side: LongRec, RecTools and RecBole, each in its own environment, in turn.

    python bench/sasrec_speed.py --data FOLDER [--rounds 3] [--arms longrec,rectools-bce]

FOLDER holds ``amazon_beauty/interactions.parquet``. All arms train on all but the last two events of each user, with
width 64, one block, one head, dropout 0.5, Adam 1e-3, the last 50 events, one thread. What is read is sequences (users)
per CPU-second, the median over the rounds. A sequence of RecBole has one target, so its users per CPU-second are
targets per CPU-second divided by the targets of a user. Full ranking of the test split follows, in its own process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import din_training
import machine
import pyarrow.csv
import pyarrow.parquet as pq

sys.path.insert(1, str(Path(__file__).resolve().parent / "quality"))
import next_item_logs

HERE = Path(__file__).resolve().parent
DATA = machine.CACHE / "log-beauty"
CAP = 50
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""LongRec makes glibc keep freed blocks in training; with these variables the peers' does too."""


@dataclass(frozen=True)
class Arm:
    """One framework with one loss, and how many steps (LongRec: epochs) to time."""

    runner: din_training.Arm
    steps: int
    options: tuple[str, ...] = ()


LONGREC = din_training.Arm("longrec", None, HERE / "longrec_sasrec.py")
RECTOOLS = din_training.Arm("rectools", ("rectools[torch]==0.19.0",), HERE / "peers" / "rectools_sasrec.py")
RECBOLE = din_training.Arm(
    "recbole",
    ("recbole==1.2.1", "numpy==1.26.4", "pandas==2.1.4", "scipy==1.11.4"),
    HERE / "peers" / "recbole_sasrec.py",
)
ARMS = {
    "longrec": Arm(LONGREC, 6),
    "rectools-bce": Arm(RECTOOLS, 180, ("--loss", "BCE")),
    "rectools-softmax": Arm(RECTOOLS, 13, ("--loss", "softmax")),
    "rectools-sampled": Arm(RECTOOLS, 9, ("--loss", "sampled_softmax", "--negatives", "512")),
    "recbole-bpr": Arm(RECBOLE, 25, ("--loss", "BPR")),
    "recbole-ce": Arm(RECBOLE, 13, ("--loss", "CE")),
}


def write_data(data: Path) -> None:
    """Write the log in the forms that the arms read, and its sizes."""
    next_item_logs.build_task("beauty_n1", data, DATA)
    table = pq.read_table(DATA / "beauty_n1.parquet", columns=["user_id", "item_id", "position"])
    pyarrow.csv.write_csv(table, DATA / "events.csv")
    lengths = table.group_by("user_id").aggregate([("item_id", "count")])["item_id_count"].to_numpy() - 2
    sizes = {
        "users": len(lengths),
        "items": len(table["item_id"].unique()),
        "targets": int((lengths - 1).clip(0, CAP).sum()),
        "cap": CAP,
    }
    (DATA / "meta.json").write_text(json.dumps(sizes))


def run(arm: Arm, steps: int, *extra: str) -> dict:
    """Return the result of one run in a process of its own."""
    result = _run(arm, steps, *extra)
    assert result is not None, f"{arm.runner.name} gave no result"
    return result


def _run(arm: Arm, steps: int, *extra: str) -> dict | None:
    work = machine.CACHE / "work" / f"{arm.runner.name}-beauty"
    command = [arm.runner.python(), str(arm.runner.runner), "--data", str(DATA), "--work", str(work)]
    command += ["--steps", str(steps), *arm.options, *extra]
    used = machine.measure(command, **din_training.THREADS, **MALLOC)
    lines = [line for line in used.output.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT ")) if lines else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Amazon data sets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS), help="arms, comma separated")
    args = parser.parse_args()
    write_data(args.data)
    arms = [name for name in ARMS if name in args.arms.split(",")]
    shutil.rmtree(machine.CACHE / "work" / "recbole-beauty", ignore_errors=True)
    for name in arms:
        _run(ARMS[name], 0, "--prepare")
    results: dict[str, list[dict]] = {name: [] for name in arms}
    loads, rankings = [machine.read_load()], []
    for number in range(args.rounds):
        for name in arms:
            results[name].append(run(ARMS[name], ARMS[name].steps))
            print(f"round {number + 1}: {results[name][-1]}", flush=True)
        if "longrec" in arms:
            rankings.append(run(ARMS["longrec"], 0))
            print(f"round {number + 1}: {rankings[-1]}", flush=True)
        loads.append(machine.read_load())
    machine.write("sasrec_speed", _format(results, rankings, loads))


def _format(results: dict[str, list[dict]], rankings: list[dict], loads: list[str]) -> str:
    rate = {name: statistics.median(run["sequences_per_cpu_second"] for run in runs) for name, runs in results.items()}
    rows = []
    for name, runs in results.items():
        each = " ".join(f"{run['sequences_per_cpu_second']:,}" for run in runs)
        targets = statistics.median(run["targets_per_cpu_second"] for run in runs)
        ratio = f"{rate['longrec'] / rate[name]:.1f}" if "longrec" in rate and name != "longrec" else ""
        memory = statistics.median(run["peak_mb"] for run in runs)
        cells = [runs[0]["name"], f"{rate[name]:,.0f} ({each})", f"{targets:,.0f}", ratio, f"{memory:,.0f}"]
        rows.append([*cells, runs[0]["measured"]])
    head = [
        "",
        "sequences per CPU-second",
        "targets per CPU-second",
        "LongRec against it",
        "peak memory, MB",
        "read over",
    ]
    sizes = json.loads((DATA / "meta.json").read_text())
    sections = [
        "# SASRec side by side, Amazon Beauty",
        f"{sizes['users']:,} users, {sizes['items']:,} items, {sizes['targets']:,} targets. Sequences (users) per "
        "CPU-second of one thread: median over the rounds (all runs in brackets). Every round ran all arms in turn. "
        f"Load before the rounds and after each: {', '.join(loads)}. Peers: RecTools 0.19.0, RecBole 1.2.1, "
        f"{din_training.TORCH}.",
        machine.format_table(head, rows),
        "LongRec runs the settings of `quality/next_item.py`, arm `softmax`: 900 targets and 512 shared negatives a "
        "batch, ragged. The peers pad every batch to 50 positions, so that all of their steps cost alike. RecBole "
        "makes each target a sequence of its own: its users per CPU-second are its targets per CPU-second divided by "
        "the targets of a user. The peers' glibc keeps freed blocks, as LongRec's does; loaders are counted, imports "
        "and preparation are not. The losses differ in what they learn: BCE and BPR with one negative are the "
        "cheapest.",
    ]
    if rankings:
        lines = [
            [f"{run[key]:,}" for key in ("targets", "items", "cpu_s", "wall_s", "more_mb", "whole_mb")]
            for run in rankings
        ]
        titles = ["targets", "items", "CPU s", "wall s", "memory more than before, MB", "peak of the process, MB"]
        sections += ["## Full ranking of the test split, one thread", machine.format_table(titles, lines)]
        sections.append("The peak of the process includes torch and the log, from its start on.")
    return "\n\n".join(sections)


if __name__ == "__main__":
    main()
