"""Sanity checks on Amazon Beauty in DIEN's form, where no published number is comparable.

    python bench/quality/relations.py [--data FOLDER] [--models din dien]

Every model must beat the popularity of the item. With random labels its AUC must be one half. Trained twice with one
seed it must return the same scores to the last bit. Runs are those of ``rankers.py`` and are not repeated.
``ranking_tables.py`` reads ``relations.json``, which is written here. (Tests of the suite check that a DIN of constant
scores is a mean, and that padding changes nothing.)
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rankers
from ranking_logs import TASKS, Task

from longrec.metrics import auc
from longrec.reporting.run import read_predictions


def draw_labels(task: Task) -> Task:
    """Return the same rows with random labels."""
    query = task.data["log"]["query"]
    drawn = "CAST(hash(user_id, item_id) % 2 AS INTEGER) AS label"
    return replace(task, data={**task.data, "log": {"query": f"SELECT * REPLACE ({drawn}) FROM ({query})"}})


def popularity(run: Any) -> float:
    """Return the AUC on test of the item's count in training rows, whatever the label."""
    log = run.log()
    item, train, test = (log.events.columns["item"], log.rows_of("train"), log.rows_of("test"))
    count = np.bincount(item[train], minlength=int(item.max()) + 1)[item[test]]
    return float(auc(log.labels[test], count / max(1, count.max())))


def chance(run: Any) -> float:
    """Return half of the 95 % interval of the AUC of uninformed scores on as many rows (Mann and Whitney 1947)."""
    label = read_predictions(run.folder).label
    hits, misses = float((label > 0).sum()), float((label == 0).sum())
    return 1.96 * float(np.sqrt((hits + misses + 1) / (12 * hits * misses)))


def main() -> None:
    """Train the missing runs, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("build/quality/rankers"))
    parser.add_argument("--models", nargs="*", default=rankers.list_rankers())
    args = parser.parse_args()
    work = args.work / "beauty"
    task = TASKS["beauty"](args.data, work)
    path = work / "relations.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"models": {}}
    for model in args.models:
        first = rankers.run(task, model, "past", 0, work)
        twin = rankers.run(task, model, "past", 0, work, twin="-twin")
        lot = rankers.run(draw_labels(task), model, "past", 0, work / "shuffled")
        scores = [read_predictions(run.folder).score for run in (first, twin)]
        kept["popularity"], kept["chance"] = popularity(first), chance(lot)
        kept["models"][model] = {
            "shuffled": lot.metrics["auc"].value,
            "twin": bool(np.array_equal(*scores)),
        }
        print(model, kept["models"][model], flush=True)
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
