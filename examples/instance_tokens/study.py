"""Do instance tokens help? Every arm with its controls, on two public logs.

    python examples/instance_tokens/study.py kuairand --data FOLDER [--seeds 5]
    python examples/instance_tokens/study.py movielens [--seeds 5]

What was run before is kept below ``--work`` and not run again. See README.md beside this file for what came out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arms import STORES, Arm, ablations, main_arms
from logs import kuairand, movielens
from runner import Study
from tables import arms_table, write

from longrec.data.public_datasets import fetch_movielens_1m
from longrec.interop import atomic

HISTORY = {
    "kuairand": ("video_id", "author_id", "tags", "is_click", "long_view", "is_like", "time_gap"),
    "movielens": ("movie", "genres", "rating", "time_gap"),
}
LABELS = {"kuairand": ("is_click", "long_view", "is_like"), "movielens": ("rating",)}
OF = {
    "kuairand": ("token", "label", "long_view", "is_like", "time_gap"),
    "movielens": ("token", "label", "rating", "time_gap"),
}


def study_of(name: str, data: Path | None, work: Path) -> Study:
    """The study of a log by its name."""
    if name == "kuairand":
        assert data is not None, "give --data, the folder of the Parquet files"
        section, compress = kuairand(data.resolve()), {"every": "2d"}
        split = "{by: column, column: leaky_split}"
    else:
        section, compress = movielens(fetch_movielens_1m(atomic.read)), {"blocks": 10}
        split = "{by: time, valid: 0.001, test: 0.1}"
    return Study(section, work / name, OF[name], 30, STORES, compress, split)


def run_arms(study: Study, arms: dict[str, Arm], seeds: int) -> dict[str, list[Any]]:
    """All arms, seed after seed, so that early tables hold all arms."""
    runs: dict[str, list[Any]] = {name: [] for name in arms}
    for seed in range(seeds):
        for name, arm in arms.items():
            runs[name].append(study.run(name, arm, seed))
    return runs


def main() -> None:
    """Run, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["kuairand", "movielens"])
    parser.add_argument("--data", type=Path, help="folder of KuaiRand's Parquet files")
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablation-seeds", type=int, default=0, help="0 leaves the ablations out")
    parser.add_argument("--arms", nargs="*", help="only these")
    args = parser.parse_args()
    study = study_of(args.log, args.data, args.work)
    arms = main_arms(HISTORY[args.log], LABELS[args.log])
    more = ablations(HISTORY[args.log], OF[args.log][2:-1]) if args.ablation_seeds else {}
    if args.arms:
        arms, more = ({name: arm for name, arm in some.items() if name in args.arms} for some in (arms, more))
    runs = run_arms(study, arms, args.seeds)
    references = tuple(name for name in ("base", "side-only", "history") if name in runs)
    parts = [arms_table(runs, references), "## Valid\n", arms_table(runs, references[:1], "valid")]
    write(args.work / f"{args.log}.md", f"Instance tokens on {args.log}", parts)
    if more:
        found = run_arms(study, more, args.ablation_seeds)
        kept = {name: several[: args.ablation_seeds] for name, several in runs.items()}
        parts = [arms_table({**kept, **found}, tuple(n for n in ("T-IAT", "U-IAT", "side-only") if n in kept))]
        write(args.work / f"{args.log}_ablations.md", f"Ablations on {args.log}", parts)


if __name__ == "__main__":
    main()
