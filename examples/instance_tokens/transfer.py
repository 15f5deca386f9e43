"""Tokens of one page of the app read on another, and tokens trained on clicks read for other labels.

python examples/instance_tokens/transfer.py --data FOLDER [--seeds 5]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arms import STORES, Arm
from logs import kuairand
from runner import Study
from study import HISTORY, OF, run_arms
from tables import arms_table, write

SPLIT = "{by: column, column: leaky_split}"
SIDE = {"tokens": "zeroed"}
ARMS = {
    "base": Arm(),
    "history": Arm(history=HISTORY["kuairand"]),
    "side-only": Arm("t", reader=SIDE),
    "T-IAT": Arm("t"),
    "U-IAT": Arm("u"),
}


def study_of(
    data: Path, work: Path, shelf: Path | None = None, source: dict[str, Any] | None = None, **log: Any
) -> Study:
    """A study of a part of KuaiRand, or of another label."""
    section = kuairand(data, **log)
    return Study(section, work, OF["kuairand"], 30, STORES, {"every": "2d"}, SPLIT, source=source, shelf=shelf)


def main() -> None:
    """Run, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    data, parts = args.data.resolve(), []
    shelf = args.work / "transfer"
    for tab in (4, 0):
        study = study_of(data, shelf / f"tab{tab}", shelf, kuairand(data, where="tab = 1"), where=f"tab = {tab}")
        runs = run_arms(study, ARMS, args.seeds)
        parts += [f"## Tokens of page 1, read on page {tab}\n", arms_table(runs, ("base", "side-only", "history"))]
    for label in ("long_view", "is_like"):
        study = study_of(data, shelf / label, args.work / "kuairand", label=label)
        runs = run_arms(study, ARMS, args.seeds)
        parts += [
            f"## Tokens trained on clicks, read for {label}\n",
            arms_table(runs, ("base", "side-only", "history")),
        ]
    write(args.work / "transfer.md", "Tokens carried over", parts)


if __name__ == "__main__":
    main()
