"""Light nets: alone, distilled from a finished teacher, launched beside a booster, and the booster itself.

    python bench/quality/light_nets.py movielens [--data FOLDER] [--seeds 3] [--tune] [--table]

DIN is the light net and, with wider layers, the booster. ``--tune`` trains one seed for each weight of the hint and
prints the log loss on valid, by which the weight in ``HINT_WEIGHT`` was chosen. A finished run is not repeated. Test is
read once per run. ``--table`` writes the table of all logs, with the size and the latency of the exported bundles.
Intervals: users are resampled, the same ones for all arms, and the variance over seeds is included
(``ranking_tables.py``).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import ranking_tables
from ranking_logs import TASKS, Task

import longrec
from longrec.exporting import bundle
from longrec.exporting.inputs import list_inputs, make_random_tensors

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import machine

LIGHT: dict[str, Any] = {"name": "din", "embedding_dim": 16, "attention": [8], "mlp": [16]}
BOOSTER: dict[str, Any] = {
    "name": "din",
    "embedding_dim": 16,
    "attention": [80, 40],
    "mlp": [256, 128, 64],
    "dropout": 0.2,
}
HINT_WEIGHT = 0.03
ARMS: dict[str, dict[str, Any]] = {
    "light": LIGHT,
    "booster": BOOSTER,
    "distilled": {"name": "distillation", "student": LIGHT, "teacher": BOOSTER},
    "rocket": {"name": "rocket_launching", "light": LIGHT, "booster": BOOSTER, "hint_weight": HINT_WEIGHT},
}
WEIGHTS = (0.03, 0.1, 0.3, 1.0)


def run(task: Task, name: str, model: dict[str, Any], seed: int, work: Path, teacher: Path | None = None) -> Any:
    """Return the finished run of an arm."""
    folder = work / "runs" / name
    if not (folder / "results.json").exists():
        began = time.perf_counter()
        fit = {**task.fit, "seed": seed, "runs": str(work / "runs"), "tensorboard": "off", "mlflow": "off"}
        if teacher is not None:
            fit["init_from"] = str(teacher)
        data = {**task.section("past", [], False), "folder": str(work / "prepared")}
        config = {"name": name, "data": data, "model": model, "fit": fit, "evaluate": {"n_resamples": 20}}
        trained = longrec.train(config, quiet=True)
        print(f"{name}: test AUC {trained.metrics['auc']} in {time.perf_counter() - began:.0f} s", flush=True)
    return longrec.open_run(folder)


def tune(task: Task, work: Path) -> None:
    """Print the log loss on valid for each weight of the hint, seed 0."""
    for weight in WEIGHTS:
        model = {**ARMS["rocket"], "hint_weight": weight}
        results = run(task, f"tune-{weight}", model, 0, work).results
        print(
            f"hint_weight {weight}: valid log loss {results['valid']['metrics']['log_loss']['value']:.5f}", flush=True
        )


def measure_bundles(runs: dict[str, Any], work: Path) -> dict[str, tuple[int, float]]:
    """Export runs, and return for each the bytes of its program and the median milliseconds of 100 candidates.

    The programs run in turn, on one thread.
    """
    sessions, sizes = {}, {}
    for name, run in runs.items():
        folder = work / "bundles" / name
        if not folder.exists():
            longrec.export(run, folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = str(folder / bundle.PROGRAM)
        sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        sizes[name] = sum(file.stat().st_size for file in folder.glob("*.onnx*"))
    fields = next(iter(runs.values())).log().fields()
    tensors = make_random_tensors(list_inputs(fields, histories=True), 100, 20, seed=0)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(400):
        for name, session in sessions.items():
            feed = {entry.name: tensors[entry.name] for entry in session.get_inputs()}
            began = time.perf_counter()
            session.run(None, feed)
            times[name].append(1_000 * (time.perf_counter() - began))
    return {name: (sizes[name], float(np.median(times[name]))) for name in sessions}


def table(logs: list[str], data: Path, work: Path) -> str:
    """Return the tables of all logs."""
    tables = []
    for log in logs:
        results = ranking_tables.measure_log(work / log, 300)
        if results is None:
            continue
        runs = {arm: longrec.open_run(work / log / "runs" / f"{arm}-past-0") for arm in ARMS}
        served = measure_bundles(runs, work / log)
        rows = []
        for arm in ARMS:
            own = arm, "past"
            seeds = " ".join(f"{value:.4f}" for value in results.seeds[own])
            losses = [
                longrec.open_run(folder).results["metrics"]["log_loss"]["value"]
                for folder in ranking_tables.find_runs(work / log)[own]
            ]
            difference, half = results.difference(own, ("light", "past"))
            less = "" if arm == "light" else f"{difference:+.4f} [{difference - half:+.4f}, {difference + half:+.4f}]"
            size, latency = served[arm]
            auc = f"{results.mean(own):.4f}"
            rows.append([arm, auc, seeds, less, f"{np.mean(losses):.4f}", f"{size / 1e3:,.0f}", f"{latency:.3f}"])
        head = ["arm", "test AUC", "seeds", "less light [95 %]", "log loss", "program, kB", "ms of 100 candidates"]
        tables.append(f"## {ranking_tables.TITLES[log]}\n\n{machine.format_table(head, rows)}")
    return "\n\n".join(tables)


def main() -> None:
    """Train the missing runs, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", choices=TASKS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of kuairand_pure_14d")
    parser.add_argument("--work", type=Path, default=Path("build/quality/light_nets"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(args.logs, args.data, args.work))
        return
    for log in args.logs:
        work = args.work / log
        work.mkdir(parents=True, exist_ok=True)
        task = TASKS[log](args.data, work)
        if args.tune:
            tune(task, work)
            continue
        for seed in range(args.seeds):
            for arm, model in ARMS.items():
                teacher = work / "runs" / f"booster-past-{seed}" if arm == "distilled" else None
                run(task, f"{arm}-past-{seed}", model, seed, work, teacher)


if __name__ == "__main__":
    main()
