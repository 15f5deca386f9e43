"""Training on histories of up to 1,000 events: LongRec's SIM, ETA, SDIM and TWIN beside those of FuxiCTR.

    python bench/long_training.py --zoo CHECKOUT [--rounds 2] [--only mean178,mean700] [--models sim,eta,sdim,twin]
                                  [--workers 3] [--write]

``--zoo`` is a checkout of https://github.com/reczoo/FuxiCTR: its long models are not in its wheel, which is installed
for all else. Generated logs of 200 thousand items, lengths log-normal and cut at 1,000, whose mean is 178 (most
histories are short, as in public logs) or 700 (four in ten are cut). Both get the same rows, the sizes of FuxiCTR's
published configurations (embeddings 16 wide, 2 heads of 32, top 64-32, 50 selected events, 32 bits, 2 hashes of 4
bits), Adam 1e-3, batch 1,024, one thread, and train with their own loaders and loops.

What is read is rows per CPU-second from the fifth step on, child processes included, and resident memory from the
first step on. In each round LongRec runs before and after FuxiCTR: the second run against the first is the noise.
FuxiCTR loads in its training process, which favors its figures. With ``--workers`` a further run of it on the first log
loads in as many processes, 3 in its configurations, of which the memory that they share with none is counted too.
``peers/fuxictr_long.py`` and ``longrec_long.py`` tell how the models differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import gen_log
import machine
from din_training import HERE, Arm

LENGTHS = {"mean178": 181.84, "mean700": 1159.34}
"""Mean of the log-normal distribution before it is cut."""
MODELS = ("sim", "eta", "sdim", "twin")
MARGIN = 5
"""Batches beyond the last step, so that no loader ends early."""
OURS, PEER, AGAIN = "LongRec", "FuxiCTR", "LongRec again"
ARMS = {
    OURS: Arm("longrec", None, HERE / "longrec_long.py"),
    PEER: Arm("fuxictr_long", ("fuxictr", "keras_preprocessing"), HERE / "peers" / "fuxictr_long.py"),
}
DIFFERENCES = (
    "SIM of LongRec runs DIEN's two recurrences over the newest 50 events, FuxiCTR an attention to 49. TWIN of LongRec "
    "has no short-term branch, FuxiCTR's attends to the newest 49 events. SDIM of LongRec normalizes the sums of "
    "buckets. FuxiCTR clips gradients and steps its whole tables, LongRec the rows of a batch."
)

Runs = dict[str, list[dict]]
"""Results of all rounds, by arm."""


def write_log(scenario: str, steps: int, batch: int) -> dict:
    """Generate the log of a scenario once, and return its content of meta.json."""
    folder = machine.CACHE / f"log-{scenario}"
    rows = (steps + MARGIN) * batch
    if (folder / "meta.json").exists():
        meta = json.loads((folder / "meta.json").read_text())
        assert meta["train"] >= rows, f"{folder} was made for fewer steps; remove it and the prepared data"
        return meta
    return gen_log.generate(
        folder, items=200_000, users=100_000, categories=1_000, train=rows, test=2_000, cap=1_000,
        mean=LENGTHS[scenario], spread=0.9, zipf=1.05, seed=1,
    )  # fmt: skip


def run(arm: Arm, scenario: str, model: str, options: argparse.Namespace, workers: int = 0) -> dict:
    """Run one arm once."""
    more = ["--zoo", str(options.zoo), "--workers", str(workers)]
    result = arm.run(scenario, options.steps, "--model", model, "--batch", str(options.batch), *more)
    assert result is not None, f"{arm.name} gave no result"
    print(f"{scenario}, {model}, {workers} workers: {result}", flush=True)
    return result


def run_rounds(scenario: str, model: str, options: argparse.Namespace) -> Runs:
    """Run both in turn, and LongRec twice a round."""
    results: Runs = {OURS: [], PEER: [], AGAIN: []}
    for _ in range(options.rounds):
        for name, runs in results.items():
            runs.append(run(ARMS[OURS if name == AGAIN else name], scenario, model, options))
    return results


def run_workers(scenario: str, options: argparse.Namespace) -> str:
    """Run the peer with loading processes, and return the section of the results."""
    rows = []
    for model in options.models.split(","):
        result = run(ARMS[PEER], scenario, model, options, options.workers)
        rows.append([model.upper(), f"{result['rows_per_cpu_second']:,}", f"{result['peak_mb']:,}"])
    table = machine.format_table(["", "rows per CPU-second", "memory, MB"], rows)
    return f"## FuxiCTR with {options.workers} loading processes, one run on the first log\n\n{table}"


def format_row(model: str, results: Runs) -> list[str]:
    """Return the cells of one model."""

    def rate(name: str) -> float:
        return statistics.median(run["rows_per_cpu_second"] for run in results[name])

    def memory(name: str) -> float:
        return statistics.median(run["peak_mb"] for run in results[name])

    each = {name: " ".join(f"{run['rows_per_cpu_second']:,}" for run in runs) for name, runs in results.items()}
    return [
        model.upper(),
        *(f"{rate(name):,.0f} ({each[name]})" for name in (OURS, PEER)),
        f"{rate(OURS) / rate(PEER):.1f}",
        f"{rate(AGAIN) / rate(OURS):.2f}",
        *(f"{memory(name):,.0f}" for name in (OURS, PEER)),
        f"{memory(OURS) / memory(PEER):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="checkout of FuxiCTR")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default=",".join(LENGTHS), help="logs, comma separated")
    parser.add_argument("--models", default=",".join(MODELS), help="models, comma separated")
    parser.add_argument("--steps", type=int, default=15, help="steps a run, the first 5 of which are not timed")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=0, help="loading processes of a further run of FuxiCTR")
    parser.add_argument("--write", action="store_true", help="write the result into bench/results")
    options = parser.parse_args()
    options.zoo = options.zoo.resolve()
    commit = subprocess.run(["git", "-C", str(options.zoo), "log", "-1", "--format=%h, %cs"], capture_output=True,
                            text=True, check=True).stdout.strip()  # fmt: skip
    sections = [
        "# Training on long histories beside FuxiCTR",
        f"Rows per CPU-second of one thread from step 5 to step {options.steps}, batches of {options.batch:,}, child "
        f"processes included: median of {options.rounds} round(s), all runs in brackets. Peak memory is resident, from "
        f"the first step on. LongRec again: its second run of a round against its first. FuxiCTR's models are those of "
        f"its repository ({commit}); it loads in its training process.",
    ]
    head = ["", OURS, PEER, "ratio", "LongRec again", "memory, MB", "FuxiCTR's", "ratio"]
    for scenario in options.only.split(","):
        meta = write_log(scenario, options.steps, options.batch)
        for arm in ARMS.values():
            arm.run(scenario, 0, "--prepare")
        rows = [format_row(model, run_rounds(scenario, model, options)) for model in options.models.split(",")]
        lengths = f"mean length {meta['mean_length']:.0f}, median {meta['median_length']:.0f}"
        sections.append(
            f"## Histories of up to {meta['cap']:,} events, {lengths}\n\n{machine.format_table(head, rows)}"
        )
    if options.workers:
        sections.append(run_workers(options.only.split(",")[0], options))
    sections.append(DIFFERENCES)
    text = "\n\n".join(sections)
    if options.write:
        machine.write("long_training", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
