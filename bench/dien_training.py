"""Benchmark of DIEN training: LongRec and DeepCTR-Torch, histories cut at 100.

    python bench/dien_training.py [--rounds 3]

Log, clock and reading are those of ``din_training.py``. Differences between the two models are listed in
``peers/deepctr_dien.py``.
"""

from __future__ import annotations

import argparse
import statistics

import machine
from din_training import HERE, SCENARIOS, Arm, Scenario, log

ARMS = (
    Arm("longrec-dien", None, HERE / "longrec_dien.py"),
    Arm("deepctr", ("deepctr-torch", "requests", "pyarrow", "pandas"), HERE / "peers" / "deepctr_dien.py"),
)
SCENARIOS["hundred"] = Scenario("200 thousand items, histories cut at 100", 30, {"cap": 100})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    scenario, meta = SCENARIOS["hundred"], log("hundred")
    runs: dict[str, list[dict]] = {arm.name: [] for arm in ARMS}
    for arm in ARMS:
        arm.run("hundred", 0, "--prepare")
    for number in range(arguments.rounds):
        for arm in ARMS:
            result = arm.run("hundred", scenario.steps)
            assert result is not None, f"{arm.name} returned no result"
            runs[arm.name].append(result)
            print(f"round {number + 1}: {result}", flush=True)
    rate = {name: statistics.median(run["rows_per_cpu_second"] for run in own) for name, own in runs.items()}
    rows = []
    for name, own in runs.items():
        each = " ".join(f"{run['rows_per_cpu_second']:,}" for run in own)
        memory = statistics.median(run["peak_mb"] for run in own)
        rows.append(
            [own[0]["name"], f"{rate[name]:,.0f} ({each})", f"{rate[name] / rate['deepctr']:.1f}", f"{memory:,.0f}"]
        )
    head = ["", "rows per CPU-second", "against DeepCTR-Torch", "peak memory, MB"]
    about = "One thread, from step 5 on: median over the rounds (all runs in brackets). "
    about += f"Mean length {meta['mean_length']:.1f}."
    machine.write(
        "dien_training",
        f"# DIEN training side by side\n\n{about}\n\n## {scenario.title}\n\n{machine.format_table(head, rows)}",
    )


if __name__ == "__main__":
    main()
