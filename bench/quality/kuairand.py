"""Quality on KuaiRand-Pure, 14 days: DIN with histories and feedback against the counting mark.

    python bench/quality/kuairand.py --data FOLDER_WITH_PARQUET_FILES [--seeds 3]

Repeated log lines are left out, and so are the month-wide video averages, which look into the test days.
Test is read once, after the settings below were fixed on validation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from marks import mark_table, paired_table, report, seeds_table

import longrec

RANGES = [f"{name}_range" for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")]
FLAGS = ["user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"]
USER = [*FLAGS, *RANGES, *(f"onehot_feat{number}" for number in (0, 1, 2, 5, 6, 7, 8, 9, 10, 11))]


def schema() -> dict[str, Any]:
    """Return the schema of impressions, with features available when they were shown."""
    user = {name: {"kind": "id", "side": "user"} for name in USER}
    item = {
        "author_id": {"kind": "id", "side": "item", "min_count": 2},
        "video_type": {"kind": "id", "side": "item"},
        "upload_type": {"kind": "id", "side": "item"},
        "tags": {"kind": "multi_id", "side": "item"},
        "video_duration": {"kind": "bucketized", "side": "item", "quantiles": 20},
        "music_id": {"kind": "id", "side": "item", "min_count": 2},
    }
    event = {
        "tab": {"kind": "id"},
        "hour": {"kind": "calendar", "component": "hour", "utc_offset": 8},
        "is_click": {"kind": "id", "feedback": True, "available_at": "known_ms"},
        "long_view": {"kind": "id", "feedback": True, "available_at": "known_ms"},
    }
    return {
        "user": "user_id",
        "item": "video_id",
        "time": {"column": "time_ms", "unit": "ms"},
        "label": "is_click",
        "features": {"user_id": {"kind": "id", "min_count": 2}, **user, "video_id": {"kind": "id"}, **item, **event},
        "histories": {
            "shown": {
                "features": ["video_id", "author_id", "tags", "is_click", "long_view", "time_gap"],
                "max_length": 30,
            }
        },
    }


def job(data: Path, work: Path, model: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the config of one run. A click is available when the play time of the impression is over."""
    log = f"read_parquet('{data}/impressions.parquet')"
    query = f"SELECT *, time_ms + play_time_ms AS known_ms FROM {log} WHERE NOT is_repeat"
    return {
        "name": f"{model['name']}-{seed}",
        "data": {
            "log": {"query": query},
            "users": f"{data}/users.parquet",
            "items": f"{data}/videos.parquet",
            "schema": schema(),
            "split": {"by": "column", "column": "split"},
            "folder": str(work / "prepared"),
        },
        "model": model,
        "fit": {"epochs": 1, "batch_size": 512, "seed": seed, "runs": str(work / "runs")},
    }


def main() -> None:
    """Train, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/quality/kuairand"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    runs: dict[str, list[longrec.open_run]] = {}
    for model in ("deepfm", "din"):
        for seed in range(args.seeds):
            folder = args.work / "runs" / f"{model}-{seed}"
            done = (folder / "results.json").exists()
            settings = job(args.data.resolve(), args.work, {"name": model}, seed)
            run = longrec.open_run(folder) if done else longrec.train(settings, quiet=True)
            runs.setdefault(model, []).append(run)
            print(folder.name, run.metrics["auc"], flush=True)
    log = runs["din"][0].log()
    tables = [mark_table(log, ("tab",)), seeds_table(runs)]
    tables.append(paired_table(runs, [("din", "counting"), ("din", "deepfm")], log, ("tab",)))
    report(args.work / "kuairand.md", "KuaiRand-Pure, 14 days", tables)


if __name__ == "__main__":
    main()
