"""DIN training side by side: LongRec, torch-rechub and FuxiCTR, each in its own environment, one round after the other.

    python bench/din_training.py [--rounds 3] [--only base,large,long] [--no-auc]

The same generated log, the same model as near as each allows (embedding 16, attention 80-40 with ReLU and raw
weights, top 200-80, Adam 1e-3, batch 1,024), one thread. What is read is rows per CPU-second from the fifth step on,
the median over the rounds: every round runs all arms back to back, so that a busy machine hits all. Environments,
logs and prepared data stay in the cache folder, outside the repository.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import gen_log
import machine

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
THREADS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True)
class Scenario:
    """One log and how many steps to time on it."""

    title: str
    steps: int
    log: dict[str, int] = field(default_factory=dict)


SCENARIOS = {
    "base": Scenario("200 thousand items, histories cut at 50", 100, {"cap": 50}),
    "large": Scenario("2 million items, histories cut at 50", 60, {"cap": 50, "items": 2_000_000}),
    "long": Scenario("200 thousand items, histories cut at 500 (mean 30)", 30, {"cap": 500}),
}


@dataclass(frozen=True)
class Arm:
    """One framework: what to install besides torch (None: this environment) and its runner."""

    name: str
    packages: tuple[str, ...] | None
    runner: Path

    def python(self) -> str:
        """The interpreter of its environment, made when it is missing or was made for other packages."""
        if self.packages is None:
            return sys.executable
        folder = machine.CACHE / self.name
        python, stamp = folder / "bin" / "python", folder / "packages.txt"
        wanted = "\n".join([TORCH, *self.packages])
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making the environment of {self.name} (about a minute)", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            for packages in ([TORCH], self.packages):  # torch first: asked for later, pip may choose another build
                subprocess.run([str(python), "-m", "pip", "install", "-qq", *packages], check=True)
            stamp.write_text(wanted)
        return str(python)

    def run(self, scenario: str, steps: int, *extra: str) -> dict[str, float | str] | None:
        """One run in a process of its own; None for a preparation."""
        data = machine.CACHE / f"log-{scenario}"
        work = machine.CACHE / "work" / f"{self.name}-{scenario}"
        command = [
            self.python(),
            str(self.runner),
            "--data",
            str(data),
            "--work",
            str(work),
            "--steps",
            str(steps),
            *extra,
        ]
        used = machine.measure(command, **THREADS)
        result_lines = [line for line in used.output.splitlines() if line.startswith("RESULT ")]
        return json.loads(result_lines[-1].removeprefix("RESULT ")) if result_lines else None


ARMS = (
    Arm("longrec", None, HERE / "longrec_din.py"),
    Arm("rechub", ("torch-rechub", "pyarrow", "pandas"), HERE / "peers" / "rechub.py"),
    Arm("fuxictr", ("fuxictr",), HERE / "peers" / "fuxictr.py"),
)


def log(scenario: str) -> dict[str, float]:
    """The generated log of a scenario, made once."""
    folder = machine.CACHE / f"log-{scenario}"
    if not (folder / "meta.json").exists():
        sizes = {
            "items": 200_000,
            "users": 100_000,
            "categories": 1_000,
            "train": 200_000,
            "test": 50_000,
            "cap": 100,
            "seed": 1,
        }
        gen_log.generate(folder, **{**sizes, **SCENARIOS[scenario].log}, mean=30.0, spread=0.9, zipf=1.05)
    return json.loads((folder / "meta.json").read_text())


FLOOR = """
import time, torch
torch.set_num_threads(1)
def seconds(work, n=30):
    work(); began = time.process_time()
    for _ in range(n): work()
    return (time.process_time() - began) / n
B, N = 1024, 1024 * 24
shapes = [(N, 32, 80), (N, 80, 40), (N, 40, 1), (B, 32, 80), (N, 32, 80), (B, 96, 200), (B, 200, 80), (B, 80, 1)]
total = 0.0
for n, i, o in shapes:  # forward, gradient of the input, gradient of the weight
    x, w, g = torch.randn(n, i), torch.randn(i, o), torch.randn(n, o)
    total += seconds(lambda: (x @ w, g @ w.T, x.T @ g))
a, b = torch.randn(N, 120), torch.randn(N, 120)
copy = seconds(lambda: b.copy_(a))  # activations of the attention once over: written, read, and so for their gradients
print("RESULT", B / (total + 8 * copy))
"""


def floor() -> float:
    """Rows a CPU-second if a step were its matrix products (ragged, first layer split) and its activations' traffic."""
    used = machine.measure([sys.executable, "-c", FLOOR], **THREADS)
    return float(used.output.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, comma separated")
    parser.add_argument("--arms", default=",".join(arm.name for arm in ARMS))
    parser.add_argument("--steps", type=int, default=0, help="steps a run (0: as the scenario says)")
    parser.add_argument("--no-auc", action="store_true", help="leave out the full epoch of the first scenario")
    args = parser.parse_args()
    arms = [arm for arm in ARMS if arm.name in args.arms.split(",")]
    sections = [
        "# DIN training side by side",
        "Rows per CPU-second of one thread from step 5 on: median over the rounds (all runs in brackets). Peak memory "
        "is resident, of the training process from its first step on; FuxiCTR's loader processes are counted neither "
        "in time nor in memory.",
    ]
    for name in args.only.split(","):
        scenario, meta = SCENARIOS[name], log(name)
        results: dict[str, list[dict]] = {arm.name: [] for arm in arms}
        for arm in arms:
            arm.run(name, 0, "--prepare")
        for number in range(args.rounds):
            for arm in arms:
                result = arm.run(name, args.steps or scenario.steps)
                assert result is not None, f"{arm.name} gave no result"
                results[arm.name].append(result)
                print(f"{name}, round {number + 1}: {result}", flush=True)
        full = {arm.name: arm.run(name, 0) for arm in arms} if name == "base" and not args.no_auc else {}
        sections.append(_section(scenario, meta, results, full))
    sections.append(
        "Estimated floor of this machine (matrix products of the ragged, split form and its activations' traffic, mean "
        f"length 24): {floor():,.0f} rows a CPU-second. AUC is of one seed after one epoch. torch-rechub attends once "
        "a field without a mask, always with batch normalization; FuxiCTR's table holds only the items that occur."
    )
    machine.write("din_training", "\n\n".join(sections))


def _section(scenario: Scenario, meta: dict, results: dict[str, list[dict]], full: dict) -> str:
    rate = {arm: statistics.median(r["rows_per_cpu_second"] for r in runs) for arm, runs in results.items()}
    best = max((value for arm, value in rate.items() if arm != "longrec"), default=0)
    rows = []
    for arm, runs in results.items():
        each = " ".join(f"{r['rows_per_cpu_second']:,}" for r in runs)
        ratio = f"{rate[arm] / best:.2f}" if best else ""
        memory = statistics.median(r["peak_mb"] for r in runs)
        auc = f"{full[arm]['auc']:.4f}" if full.get(arm) else ""
        rows.append([runs[0]["name"], f"{rate[arm]:,.0f} ({each})", ratio, f"{memory:,.0f}", auc])
    ceiling = f"; AUC of the true click probability {meta['ceiling_auc']:.3f}" if full else ""
    head = ["", "rows per CPU-second", "against the best peer", "peak memory, MB", "test AUC, one epoch"]
    return (
        f"## {scenario.title}\n\n{machine.format_table(head, rows)}\n\nMean length {meta['mean_length']:.1f}{ceiling}."
    )


if __name__ == "__main__":
    main()
