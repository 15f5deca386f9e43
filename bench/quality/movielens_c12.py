"""Cross-check on MovieLens-1M: the CTR protocol of the ReChorus notebook (line C12), with our features.

    python bench/quality/movielens_c12.py [--seeds 3]

Label rating >= 4; users and items with five positive ratings or more; train up to 80 % of the calendar days (UTC+8),
valid up to 90 %, test after; rows of valid and test with a user or item unseen in training are dropped.
Published, without past labels: DeepFM .7736, DIN .7904. The noise of a test AUC is .006 over rows and .018 over users.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from marks import mark_table, paired_table, report, seeds_table

import longrec
from longrec.data.public_datasets import fetch_movielens_1m
from longrec.demo import examples
from longrec.interop import atomic

COUNTS = {"train": 983_836, "valid": 5_190, "test": 5_176}


def write_log(source: Path, target: Path) -> None:
    """Write the rows of the protocol, with the column ``split``.

    Raises:
        SystemExit: the counts differ from the published ones.
    """
    ratings = pq.read_table(source / "ratings.parquet")
    user = ratings["user_id"].to_numpy()
    item = ratings["movie"].combine_chunks().dictionary_encode().indices.to_numpy()
    positive = ratings["rating"].to_numpy() >= 4
    keep = np.ones(len(user), bool)
    while True:
        users, items = (np.bincount(column[keep & positive], minlength=column.max() + 1) for column in (user, item))
        kept = keep & (users[user] >= 5) & (items[item] >= 5)
        if kept.sum() == keep.sum():
            break
        keep = kept
    day = (ratings["timestamp"].to_numpy() + 8 * 3600) // 86_400
    day = day - day[keep].min()
    last = day[keep].max()
    split_code = np.where(day <= 0.8 * last, 0, np.where(day <= 0.9 * last, 1, 2))
    train = keep & (split_code == 0)
    seen = np.isin(user, user[train]) & np.isin(item, item[train])
    keep &= (split_code == 0) | seen
    names = np.array(["train", "valid", "test"])
    counts = {str(name): int((keep & (split_code == code)).sum()) for code, name in enumerate(names)}
    if counts != COUNTS:
        raise SystemExit(f"counts {counts}, published {COUNTS}")
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(ratings.append_column("split", pa.array(names[split_code])).filter(pa.array(keep)), target)


def main() -> None:
    """Train both models over seeds, pair them, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/quality/c12"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    source = fetch_movielens_1m(atomic.read)
    log_file = (args.work / "ratings.parquet").resolve()
    write_log(source, log_file)
    runs: dict[str, list[longrec.open_run]] = {"deepfm": [], "din": []}
    for model, several in runs.items():
        for seed in range(args.seeds):
            folder = args.work / "runs" / f"{model}-{seed}"
            files = [
                f"data.log={log_file}",
                f"data.users={source}/users.parquet",
                f"data.items={source}/movies.parquet",
            ]
            files += ["data.split={by: column, column: split}", f"data.folder={args.work}/prepared"]
            settings = [f"fit.runs={args.work}/runs", f"name={model}-{seed}", f"fit.seed={seed}"]
            done = (folder / "results.json").exists()
            config = examples() / "movielens" / f"{model}.yaml"
            several.append(longrec.open_run(folder) if done else longrec.train(config, [*files, *settings], quiet=True))
            print(folder.name, several[-1].metrics["auc"], flush=True)
    log = runs["din"][0].log()
    tables = [mark_table(log), seeds_table(runs), paired_table(runs, [("deepfm", "counting"), ("din", "deepfm")], log)]
    report(args.work / "c12.md", "MovieLens-1M, protocol C12", tables)


if __name__ == "__main__":
    main()
