"""Knowledge in a ranker (KEEP): an extractor on all pages of KuaiRand's app, a ranker on one page.

    python examples/instance_tokens/keep.py --data FOLDER [--tab 1] [--seeds 5]

The super-domain is every impression of every page (``tab``). The served model reads one page only. Knowledge is
written block by block, each version by an extractor trained on earlier days only. Then follows the incremental
protocol: train on a day, test on the next, add knowledge on a day in the middle.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from arms import BASE
from incremental import run_incremental
from logs import build_kuairand
from runner import FIT
from tables import format_arms, write_tables

import longrec
from longrec.reporting.tables import table

HISTORY = {"shown": {"features": ["video_id", "author_id", "is_click", "long_view", "time_gap"], "max_length": 30}}
VECTORS = ("about_user", "about_item")


def write_knowledge(data: Path, work: Path, seed: int) -> Path:
    """Return the knowledge folder of a seed, and write it if it is missing."""
    into = work / "knowledge" / f"k-{seed}"
    if not (into / "source" / "source.json").exists():
        section = build_kuairand(data)
        section["schema"]["histories"] = HISTORY
        model = {"name": "keep", "tasks": {"long_view": 1.0, "is_like": 1.0}}
        fit = {**FIT, "seed": seed, "runs": str(work / "runs")}
        job = {"name": f"extractor-{seed}", "data": {**section, "folder": str(work / "prepared")}, "model": model}
        began = time.perf_counter()
        written = longrec.encode({**job, "fit": fit}, into, ["every=2d", "learn=all"], quiet=True)
        aucs = " ".join(f"{one['auc']:.3f}" for one in written.versions if one["auc"])
        print(f"{into.name}: {written.tokens:,} vectors in {time.perf_counter() - began:.0f} s, AUC {aucs}", flush=True)
    return into


def build_job(data: Path, work: Path, tab: int, seed: int, plugged: Path | None) -> dict[str, Any]:
    """Build the config of a model of one page, with or without knowledge."""
    section = build_kuairand(data, where=f"tab = {tab}")
    model: dict[str, Any] = dict(BASE)
    if plugged is not None:
        for name in VECTORS:
            side = name.removeprefix("about_")
            section["schema"]["features"][name] = {"kind": "embedding", "from": str(plugged), "side": side}
        model = {"name": "keep_plug", "base": model}
    return {
        "data": {**section, "folder": str(work / "prepared")},
        "model": model,
        "fit": {**FIT, "seed": seed, "runs": str(work / "runs")},
    }


def main() -> None:
    """Run the arms and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens/keep"))
    parser.add_argument("--tab", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    runs: dict[str, list[Any]] = {"base": [], "KEEP": []}
    for seed in range(args.seeds):
        knowledge = write_knowledge(args.data.resolve(), args.work, seed)
        for name, plugged in (("base", None), ("KEEP", knowledge)):
            folder = args.work / "runs" / f"{name}-tab{args.tab}-{seed}"
            if not (folder / "results.json").exists():
                job = build_job(args.data.resolve(), args.work, args.tab, seed, plugged)
                longrec.train({"name": folder.name, **job}, quiet=True)
            runs[name].append(longrec.open_run(folder))
            print(folder.name, runs[name][-1].metrics["auc"], flush=True)
    curve = run_incremental(
        build_job(args.data.resolve(), args.work, args.tab, 0, args.work / "knowledge" / "k-0"),
        plug_on=7,
        every="1d",
        arms=("base", "keep", "shuffled", "random"),
        quiet=True,
    )
    head, *lines = curve.lines()
    section = f"## Day by day (seed 0, plugged in on day 7, mean gain after it {curve.gain():+.4f} AUC per day)\n"
    blocks = [format_arms(runs, ("base",)), section, table(head, lines)]
    write_tables(args.work / f"keep_tab{args.tab}.md", f"KEEP on KuaiRand: all pages teach page {args.tab}", blocks)


if __name__ == "__main__":
    main()
