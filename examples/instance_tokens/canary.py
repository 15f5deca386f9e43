"""Does anything leak? One user in five gets coins for labels; whoever tells them has seen them.

python examples/instance_tokens/canary.py --data FOLDER [--seeds 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from arms import STORES, Arm
from logs import kuairand
from runner import Study
from study import OF
from tables import write

from longrec.metrics import summary
from longrec.report.tables import table

ARMS = {"base": Arm(), "T-IAT": Arm("t"), "U-IAT": Arm("u"), "leaky export": Arm("leaky")}


def main() -> None:
    """Run, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens"))
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    data, split = kuairand(args.data.resolve(), "coin_click"), "{by: column, column: leaky_split}"
    study = Study(data, args.work / "canary", OF["kuairand"], 30, STORES, {"every": "2d"}, split)
    rows = []
    for seed in range(args.seeds):
        for name, arm in ARMS.items():
            run = study.run(name, arm, seed)
            keys = run.log().users.keys.values.to_numpy()
            cells = [name, seed]
            for part in ("valid", "test"):
                found = run.predictions(part)
                user = found["user"].to_numpy()
                coins = keys[user - 1] % 5 == 0
                label, score = found["label"].to_numpy()[coins], found["score"].to_numpy()[coins]
                cells += [int(coins.sum()), str(summary(label, score, user[coins])["auc"])]
            rows.append(cells)
    heads = ["arm", "seed", "valid rows", "valid AUC of coins", "test rows", "test AUC of coins"]
    write(args.work / "canary.md", "A canary on KuaiRand: coins for labels of one user in five", [table(heads, rows)])


if __name__ == "__main__":
    main()
