"""Quality of the shipped settings on MovieLens-1M, by rows along the global time line.

    python bench/quality/movielens.py [--seeds 3]

Arms: deepfm; din without and with the past ratings; din whose past ratings are shuffled among all events of the
user, or among all events of everybody; din under ``label_delay: 1h``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from marks import mark_table, paired_table, report, seeds_table

import longrec
from longrec.data.public_datasets import fetch_movielens_1m
from longrec.demo import examples
from longrec.interop import atomic

ARMS = {
    "deepfm": ("deepfm", []),
    "din without ratings": ("din", ["data.schema.histories.rated.of=[movie, genres]"]),
    "din": ("din", []),
    "din, shuffled within user": ("din", ["data.schema.features.rating.column=rating_within"]),
    "din, shuffled over users": ("din", ["data.schema.features.rating.column=rating_across"]),
    "din, known after 1 h": ("din", ["data.schema.label_delay=1h"]),
}


def write_log(source: Path, target: Path) -> None:
    """Write the ratings with two shuffled copies of the rating column."""
    ratings = pq.read_table(source / "ratings.parquet")
    random = np.random.default_rng(0)
    user, rating = ratings["user_id"].to_numpy(), ratings["rating"].to_numpy()
    order = np.argsort(user, kind="stable")
    shuffled = np.lexsort((random.random(len(user)), user))
    within = np.empty_like(rating)
    within[order] = rating[shuffled]
    target.parent.mkdir(parents=True, exist_ok=True)
    table = ratings.append_column("rating_within", [within]).append_column(
        "rating_across", [random.permutation(rating)]
    )
    pq.write_table(table, target)


def main() -> None:
    """Train all arms, pair them, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/quality/movielens"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    args = parser.parse_args()
    source = fetch_movielens_1m(atomic.read)
    log_file = (args.work / "ratings.parquet").resolve()
    write_log(source, log_file)
    runs: dict[str, list[longrec.open_run]] = {}
    for arm in args.arms:
        model, overrides = ARMS[arm]
        config = examples() / "movielens" / f"{model}.yaml"
        for seed in range(args.seeds):
            name = f"{arm.replace(',', '').replace(' ', '-')}-{seed}"
            files = [
                f"data.log={log_file}",
                f"data.users={source}/users.parquet",
                f"data.items={source}/movies.parquet",
            ]
            folders = [
                f"data.folder={args.work}/prepared",
                f"fit.runs={args.work}/runs",
                f"name={name}",
                f"fit.seed={seed}",
            ]
            folder = args.work / "runs" / name
            done = (folder / "results.json").exists()
            run = (
                longrec.open_run(folder) if done else longrec.train(config, [*overrides, *files, *folders], quiet=True)
            )
            runs.setdefault(arm, []).append(run)
            print(name, run.metrics["auc"], flush=True)
    log = runs[args.arms[0]][0].log()
    pairs = [("deepfm", "counting"), ("din", "din without ratings"), ("din", "deepfm")]
    pairs += [(arm, "din without ratings") for arm in args.arms if arm.startswith("din, ")]
    pairs = [pair for pair in pairs if pair[0] in runs and (pair[1] in runs or pair[1] == "counting")]
    report(
        args.work / "movielens.md",
        "MovieLens-1M by rows",
        [mark_table(log), seeds_table(runs), paired_table(runs, pairs, log)],
    )


if __name__ == "__main__":
    main()
