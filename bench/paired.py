"""Paired comparison of this version with another checkout of LongRec: training, preparation, serving, five rankers.

    python bench/paired.py --before ../longrec-before [--rounds 5] [--only training kuairand] [--data FOLDER]
    python bench/paired.py --before ../longrec-before --rounds 60 --only serving

Both run in this environment. ``kuairand`` and ``rankers`` use each checkout's own scripts of ``quality/`` and
``rankers_speed.py``, whose models and layouts follow the version; the others use these scripts, and differ in
``PYTHONPATH`` alone. Each round runs both, in alternating order. The result is the median over the rounds of the ratio
before / after: above 1 is faster.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import din_training
import machine
import prepare_20m

HERE = Path(__file__).resolve().parent
EXPORT = """
import sys
from pathlib import Path
import numpy as np
import serving_latency as bench
import longrec
folder = Path(sys.argv[1])
bench.write_log(folder, np.random.default_rng(1))
longrec.export(longrec.train(bench.build_job(folder), quiet=True), folder / "shop.bundle")
"""
SERVING = """
import json, sys
from pathlib import Path
import numpy as np
import serving_latency as bench
from longrec.serve.server import run_server
bundle, rng = sys.argv[1], np.random.default_rng(1)
with run_server(Path(bundle)) as url, bench.client(url) as there, bench.client(bundle) as here:
    for line in sys.stdin:
        http, _ = bench.time_requests(there, 100, 20, rng)
        inside, cpu = bench.time_requests(here, 100, 20, rng)
        print("RESULT", json.dumps({
            "serving, HTTP p50, ms": float(np.median(http)),
            "serving, in process p50, ms": float(np.median(inside)),
            "serving, in process CPU, ms": cpu,
        }), flush=True)
"""
KUAIRAND = """
import json, shutil, sys
from pathlib import Path
import clock, rankers
from longrec import commands
from ranking_logs import TASKS
data, work = Path(sys.argv[1]), Path(sys.argv[2])
work.mkdir(parents=True, exist_ok=True)
task = TASKS["kuairand"](data, work)
config = rankers.job(task, "din", "din", "past", 0, work)
commands.prepare(config)
shutil.rmtree(work / "runs", ignore_errors=True)
timer = clock.StepClock(300, kinds=("AdamW",))
try:
    commands.train(config, quiet=True)
except clock.StepLimitReached:
    print("RESULT", json.dumps(timer.result(task.fit["batch_size"])))
"""
RANKERS = ("bst", "dien", "dsin", "dupn", "dmt")
"""Rankers of each kind: a transformer, a recurrence, sessions, no view of the candidate, several histories."""


def build_environment(source: Path, scripts: Path = HERE) -> dict[str, str]:
    """Return the environment of a process that imports LongRec from a checkout, and scripts from a ``bench`` folder."""
    folders = source / "src", scripts, scripts / "quality"
    return {**din_training.THREADS, "PYTHONPATH": ":".join(str(folder) for folder in folders)}


def parse_figures(used: machine.Usage) -> dict[str, float]:
    """Parse the figures that a process printed."""
    lines = [line for line in used.output.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT "))


def measure_training(source: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure CPU microseconds per training row of DIN on the generated log."""
    din_training.log("base")
    work = machine.CACHE / "work" / f"paired-{source.name}"
    command = [sys.executable, str(HERE / "longrec_din.py"), "--data", str(machine.CACHE / "log-base")]
    command += ["--work", str(work), "--steps"]
    machine.measure([*command, "0", "--prepare"], **build_environment(source))
    figures = parse_figures(machine.measure([*command, "150"], **build_environment(source)))
    return {"DIN training, CPU us per row": 1e6 / figures["rows_per_cpu_second"]}


def measure_kuairand(source: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure CPU microseconds per training row of DIN on KuaiRand, 14 days."""
    work = machine.CACHE / "work" / f"paired-kuairand-{source.name}"
    command = [sys.executable, "-c", KUAIRAND, str(arguments.data), str(work)]
    figures = parse_figures(machine.measure(command, **build_environment(source, source / "bench")))
    return {"DIN training on KuaiRand, CPU us per row": 1e6 / figures["rows_per_cpu_second"]}


def measure_rankers(source: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure CPU microseconds per training row, and milliseconds per request, of five rankers on MovieLens-1M."""
    work, figures = machine.CACHE / "work" / f"paired-rankers-{source.name}", {}
    work.mkdir(parents=True, exist_ok=True)
    for name in RANKERS:
        script = str(source / "bench/rankers_speed.py")
        command = [sys.executable, script, "--one", name, "--steps", "40", "--work", str(work)]
        own = parse_figures(machine.measure(command, **build_environment(source, source / "bench")))
        figures[f"{name} training, CPU us per row"] = 1e6 / own["train_rows_per_s"]
        figures[f"{name}, program, ms of 100 candidates"] = own["inference_ms_100"]
    return figures


def measure_preparation(source: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure CPU and wall seconds of preparing 20 million events."""
    log = machine.CACHE / "events_20000000_50000_300000_1.parquet"
    if not log.exists():
        machine.CACHE.mkdir(parents=True, exist_ok=True)
        prepare_20m.raw_log(log, 20_000_000, 50_000, 300_000, 1)
    folder = Path(tempfile.mkdtemp(dir=machine.CACHE, prefix="prepared-"))
    try:
        command = [sys.executable, "-c", prepare_20m.PREPARE, prepare_20m.settings(log, folder, 100)]
        used = machine.measure(command, **build_environment(source))
    finally:
        shutil.rmtree(folder)
    return {"preparation of 20 M events, CPU s": used.cpu, "preparation of 20 M events, wall s": used.wall}


def measure_serving(source: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure milliseconds of 100 requests without load. Both arms serve one bundle, written by the other version.

    The server of each arm runs through all rounds, so that the arms take turns within a second.
    """
    process = _start_serving(source, _export_bundle(arguments.before))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("next\n")
    process.stdin.flush()
    line = process.stdout.readline()
    return json.loads(line.removeprefix("RESULT "))


@cache
def _start_serving(source: Path, bundle: Path) -> subprocess.Popen[str]:
    """Start the process that serves a bundle with one version until this process ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVING, str(bundle)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **build_environment(source)},
    )
    assert process.stdin is not None
    atexit.register(process.wait)
    atexit.register(process.stdin.close)
    return process


@cache
def _export_bundle(before: Path) -> Path:
    """Export a bundle of the generated shop, which is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="paired-"))
    atexit.register(shutil.rmtree, folder)
    machine.measure([sys.executable, "-c", EXPORT, str(folder)], **build_environment(before))
    return folder / "shop.bundle"


CASES: dict[str, Callable[[Path, argparse.Namespace], dict[str, float]]] = {
    "training": measure_training,
    "preparation": measure_preparation,
    "serving": measure_serving,
    "kuairand": measure_kuairand,
    "rankers": measure_rankers,
}


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of kuairand_pure_14d")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=CASES)
    arguments = parser.parse_args()
    arguments.before, arguments.data = arguments.before.resolve(), arguments.data.resolve()
    sources = {"before": arguments.before, "after": HERE.parent}
    figures: dict[str, dict[str, list[float]]] = {}
    for case in arguments.only:
        for number in range(arguments.rounds):
            for arm in list(sources)[:: -1 if number % 2 else 1]:
                for name, value in CASES[case](sources[arm], arguments).items():
                    figures.setdefault(name, {"before": [], "after": []})[arm].append(value)
                    print(f"round {number + 1}, {arm}: {name} {value:.3f}", flush=True)
    rows = []
    for name, arms in figures.items():
        ratios = sorted(before / after for before, after in zip(arms["before"], arms["after"]))
        middle = [f"{statistics.median(arms[arm]):.3f}" for arm in sources]
        rows.append([name, *middle, f"{statistics.median(ratios):.3f}", f"{ratios[0]:.3f} to {ratios[-1]:.3f}"])
    head = ["", "before", "after", "speed, after over before", "over the rounds"]
    machine.write(
        "paired",
        f"# This version beside the one before\n\n{arguments.rounds} rounds, both in turn in each; medians.\n\n"
        + machine.format_table(head, rows),
    )


if __name__ == "__main__":
    main()
