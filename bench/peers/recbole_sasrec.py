"""Runner of RecBole's SASRec with its own data set, loader and Trainer.

Fixed differences: each target is a sequence of its own (RecBole augments a user into one sequence per position), padded
to 50 positions; Adam over the whole table of items. ``--loss`` is BPR with one negative or CE over all items, its
default. A batch has 2,048 targets, its default.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clock

BATCH = 2_048


def write_events(source, folder):
    """Write the events in the form of the package, once."""
    import pandas as pd

    path = folder / "beauty" / "beauty.inter"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = pd.read_csv(source)
        frame.columns = ["user_id:token", "item_id:token", "timestamp:float"]
        frame.to_csv(path, sep="\t", index=False)


def main() -> None:
    options = clock.parse_arguments()
    write_events(options.data / "events.csv", options.work)
    if options.prepare:
        return
    steps = clock.StepClock(options.steps, options.threads)
    os.chdir(options.work)  # it writes its logs into the current folder
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    config = Config(
        model="SASRec",
        dataset="beauty",
        config_dict={
            "data_path": ".",
            "checkpoint_dir": ".",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": options.meta["cap"],
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
            "n_layers": 1,
            "n_heads": 1,
            "hidden_size": 64,
            "inner_size": 64,
            "hidden_dropout_prob": 0.5,
            "attn_dropout_prob": 0.5,
            "loss_type": options.loss,
            "train_neg_sample_args": (
                None if options.loss == "CE" else {"distribution": "uniform", "sample_num": options.negatives}
            ),
            "train_batch_size": BATCH,
            "learning_rate": 1e-3,
            "epochs": 100,
            "seed": options.seed,
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
        },
    )
    init_seed(options.seed, True)
    dataset = create_dataset(config)
    batches, _, _ = data_preparation(config, dataset)
    trainer = Trainer(config, SASRec(config, batches.dataset).to("cpu"))
    try:
        trainer.fit(batches, saved=False, show_progress=False)
    except clock.StepLimitReached:
        print("enough")
    result = steps.result(BATCH)
    targets = result["rows_per_cpu_second"]
    share = options.meta["users"] / len(batches.dataset)
    clock.emit(
        {
            "name": "RecBole, " + ("CE over all items" if options.loss == "CE" else f"{options.loss}, 1 negative"),
            "sequences_per_cpu_second": round(targets * share),
            "targets_per_cpu_second": targets,
            "sequences_per_second": round(result["rows_per_second"] * share),
            "peak_mb": result["peak_mb"],
            "measured": f"steps {clock.WARM} to {options.steps} of {BATCH:,} targets",
        }
    )


if __name__ == "__main__":
    main()
