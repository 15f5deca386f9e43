"""Paired comparison of this version with another checkout of LongRec: DIN training, preparation, serving.

    python bench/paired.py --before ../longrec-before [--rounds 5] [--only training preparation serving]

Both run in this environment with these scripts, and differ in ``PYTHONPATH`` alone. Each round runs both, in
alternating order. The result is the median over the rounds of the ratio before / after: above 1 is faster.
"""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import statistics
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
inside, cpu = bench.measure_requests(bundle, 2000, 200, rng)
with run_server(Path(bundle)) as url:
    http, _ = bench.measure_requests(url, 2000, 200, rng)
print("RESULT", json.dumps({
    "serving, HTTP p50, ms": float(np.median(http)),
    "serving, in process p50, ms": float(np.median(inside)),
    "serving, in process CPU, ms": cpu,
}))
"""


def build_environment(source: Path) -> dict[str, str]:
    """Return the environment of a process that imports LongRec from a checkout."""
    return {**din_training.THREADS, "PYTHONPATH": f"{source / 'src'}:{HERE}"}


def parse_figures(used: machine.Usage) -> dict[str, float]:
    """Parse the figures that a process printed."""
    lines = [line for line in used.output.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT "))


def measure_training(source: Path, before: Path) -> dict[str, float]:
    """Measure CPU microseconds per training row of DIN on the generated log."""
    din_training.log("base")
    work = machine.CACHE / "work" / f"paired-{source.name}"
    command = [sys.executable, str(HERE / "longrec_din.py"), "--data", str(machine.CACHE / "log-base")]
    command += ["--work", str(work), "--steps"]
    machine.measure([*command, "0", "--prepare"], **build_environment(source))
    figures = parse_figures(machine.measure([*command, "150"], **build_environment(source)))
    return {"DIN training, CPU us per row": 1e6 / figures["rows_per_cpu_second"]}


def measure_preparation(source: Path, before: Path) -> dict[str, float]:
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


def measure_serving(source: Path, before: Path) -> dict[str, float]:
    """Measure milliseconds per request without load. Both arms serve one bundle, written by the other version."""
    bundle = _export_bundle(before)
    return parse_figures(machine.measure([sys.executable, "-c", SERVING, str(bundle)], **build_environment(source)))


@cache
def _export_bundle(before: Path) -> Path:
    """Export a bundle of the generated shop, which is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="paired-"))
    atexit.register(shutil.rmtree, folder)
    machine.measure([sys.executable, "-c", EXPORT, str(folder)], **build_environment(before))
    return folder / "shop.bundle"


CASES: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "training": measure_training,
    "preparation": measure_preparation,
    "serving": measure_serving,
}


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=CASES)
    arguments = parser.parse_args()
    sources = {"before": arguments.before.resolve(), "after": HERE.parent}
    figures: dict[str, dict[str, list[float]]] = {}
    for case in arguments.only:
        for number in range(arguments.rounds):
            for arm in list(sources)[:: -1 if number % 2 else 1]:
                for name, value in CASES[case](sources[arm], sources["before"]).items():
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
