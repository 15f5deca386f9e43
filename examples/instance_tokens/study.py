"""Study of instance tokens: every arm with its controls, on two public logs.

    python examples/instance_tokens/study.py kuairand --data FOLDER [--seeds 5]
    python examples/instance_tokens/study.py movielens [--seeds 5]

Finished runs are kept below ``--work`` and not run again. README.md in this folder has the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arms import STORES, Arm, build_ablations, build_main_arms
from logs import build_kuairand, build_movielens
from runner import Study
from tables import format_arms, write_tables

from longrec.data.public_datasets import fetch_movielens_1m
from longrec.interop import atomic

HISTORY = {
    "kuairand": ("video_id", "author_id", "tags", "is_click", "long_view", "is_like", "time_gap"),
    "movielens": ("movie", "genres", "rating", "time_gap"),
}
LABELS = {"kuairand": ("is_click", "long_view", "is_like"), "movielens": ("rating",)}
TOKEN_COLUMNS = {
    "kuairand": ("token", "label", "long_view", "is_like", "time_gap"),
    "movielens": ("token", "label", "rating", "time_gap"),
}


def build_study(name: str, data: Path | None, work: Path) -> Study:
    """Build the study of a log by its name."""
    if name == "kuairand":
        assert data is not None, "set --data, the folder of the Parquet files"
        section, compress = build_kuairand(data.resolve()), {"every": "2d"}
        split = "{by: column, column: leaky_split}"
    else:
        section, compress = build_movielens(fetch_movielens_1m(atomic.read)), {"blocks": 10}
        split = "{by: time, valid: 0.001, test: 0.1}"
    return Study(section, work / name, TOKEN_COLUMNS[name], 30, STORES, compress, split)


def run_arms(study: Study, arms: dict[str, Arm], seeds: int) -> dict[str, list[Any]]:
    """Run all arms, seed by seed, so that early tables contain all arms."""
    runs: dict[str, list[Any]] = {name: [] for name in arms}
    for seed in range(seeds):
        for name, arm in arms.items():
            runs[name].append(study.run(name, arm, seed))
    return runs


def main() -> None:
    """Run the arms and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["kuairand", "movielens"])
    parser.add_argument("--data", type=Path, help="folder of KuaiRand's Parquet files")
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablation-seeds", type=int, default=0, help="seeds of the ablations; default 0, no ablations")
    parser.add_argument("--arms", nargs="*", help="run only these arms")
    args = parser.parse_args()
    study = build_study(args.log, args.data, args.work)
    arms = build_main_arms(HISTORY[args.log], LABELS[args.log])
    more = build_ablations(HISTORY[args.log], TOKEN_COLUMNS[args.log][2:-1]) if args.ablation_seeds else {}
    if args.arms:
        arms, more = ({name: arm for name, arm in some.items() if name in args.arms} for some in (arms, more))
    runs = run_arms(study, arms, args.seeds)
    references = tuple(name for name in ("base", "side-only", "history") if name in runs)
    blocks = [format_arms(runs, references), "## Valid\n", format_arms(runs, references[:1], "valid")]
    write_tables(args.work / f"{args.log}.md", f"Instance tokens on {args.log}", blocks)
    if more:
        ablation_runs = run_arms(study, more, args.ablation_seeds)
        kept = {name: several[: args.ablation_seeds] for name, several in runs.items()}
        blocks = [
            format_arms({**kept, **ablation_runs}, tuple(n for n in ("T-IAT", "U-IAT", "side-only") if n in kept))
        ]
        write_tables(args.work / f"{args.log}_ablations.md", f"Ablations on {args.log}", blocks)


if __name__ == "__main__":
    main()
