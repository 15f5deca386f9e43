"""Leak test: one user in five gets random labels. A model that predicts them has read them.

python examples/instance_tokens/canary.py --data FOLDER [--seeds 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from arms import STORES, Arm
from logs import build_kuairand
from runner import Study
from study import TOKEN_COLUMNS
from tables import write_tables

from longrec.metrics import summary
from longrec.reporting.tables import table

ARMS = {"base": Arm(), "T-IAT": Arm("t"), "U-IAT": Arm("u"), "leaky export": Arm("leaky")}


def main() -> None:
    """Run the arms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens"))
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    data, split = build_kuairand(args.data.resolve(), "coin_click"), "{by: column, column: leaky_split}"
    study = Study(data, args.work / "canary", TOKEN_COLUMNS["kuairand"], 30, STORES, {"every": "2d"}, split)
    rows = []
    for seed in range(args.seeds):
        for name, arm in ARMS.items():
            run = study.run(name, arm, seed)
            keys = run.log().users.keys.values.to_numpy()
            cells = [name, seed]
            for split_name in ("valid", "test"):
                predictions = run.predictions(split_name)
                user = predictions["user"].to_numpy()
                coins = keys[user - 1] % 5 == 0
                label, score = predictions["label"].to_numpy()[coins], predictions["score"].to_numpy()[coins]
                cells += [int(coins.sum()), str(summary(label, score, user[coins])["auc"])]
            rows.append(cells)
    heads = ["arm", "seed", "valid rows", "valid AUC of coins", "test rows", "test AUC of coins"]
    write_tables(
        args.work / "canary.md", "A canary on KuaiRand: coins for labels of one user in five", [table(heads, rows)]
    )


if __name__ == "__main__":
    main()
