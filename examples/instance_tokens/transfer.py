"""Transfer of tokens: written on one page of the app and read on another, and trained on clicks for other labels.

python examples/instance_tokens/transfer.py --data FOLDER [--seeds 5]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arms import STORES, Arm
from logs import build_kuairand
from runner import Study
from study import HISTORY, TOKEN_COLUMNS, run_arms
from tables import format_arms, write_tables

SPLIT = "{by: column, column: leaky_split}"
SIDE = {"tokens": "zeroed"}
ARMS = {
    "base": Arm(),
    "history": Arm(history=HISTORY["kuairand"]),
    "side-only": Arm("t", reader=SIDE),
    "T-IAT": Arm("t"),
    "U-IAT": Arm("u"),
}


def build_study(
    data: Path, work: Path, store_folder: Path | None = None, source: dict[str, Any] | None = None, **log: Any
) -> Study:
    """Build a study of one page of KuaiRand, or of another label."""
    section = build_kuairand(data, **log)
    return Study(
        section,
        work,
        TOKEN_COLUMNS["kuairand"],
        30,
        STORES,
        {"every": "2d"},
        SPLIT,
        source=source,
        store_folder=store_folder,
    )


def main() -> None:
    """Run the arms and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    data, blocks = args.data.resolve(), []
    store_folder = args.work / "transfer"
    for tab in (4, 0):
        study = build_study(
            data, store_folder / f"tab{tab}", store_folder, build_kuairand(data, where="tab = 1"), where=f"tab = {tab}"
        )
        runs = run_arms(study, ARMS, args.seeds)
        blocks += [f"## Tokens of page 1, read on page {tab}\n", format_arms(runs, ("base", "side-only", "history"))]
    for label in ("long_view", "is_like"):
        study = build_study(data, store_folder / label, args.work / "kuairand", label=label)
        runs = run_arms(study, ARMS, args.seeds)
        blocks += [
            f"## Tokens trained on clicks, read for {label}\n",
            format_arms(runs, ("base", "side-only", "history")),
        ]
    write_tables(args.work / "transfer.md", "Tokens carried over", blocks)


if __name__ == "__main__":
    main()
