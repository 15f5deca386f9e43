"""Runner of RecTools' SASRecModel with its own data preparation and its Lightning trainer.

Fixed differences: every sequence is padded to 50 positions; each position draws negatives of its own; Adam over the
whole table of items. ``--loss`` is BCE with one negative, its cheapest, or softmax over all items, its default.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clock

BATCH = 128


def read_dataset(path):
    """Return the training events of leave-one-out: all but the last two of each user."""
    import pandas as pd
    from rectools.dataset import Dataset

    frame = pd.read_csv(path)
    frame = frame[frame.position < frame.groupby("user_id").position.transform("max") - 1]
    frame["datetime"] = pd.Timestamp("2000-01-01") + pd.to_timedelta(frame.position, unit="D")
    frame["weight"] = 1.0
    return Dataset.construct(frame.drop(columns="position"))


def main() -> None:
    options = clock.parse_arguments()
    if options.prepare:  # it prepares in the training process, before the first step
        return
    steps = clock.StepClock(options.steps, options.threads)
    import torch
    from rectools.models import SASRecModel
    from rectools.models.nn.item_net import IdEmbeddingsItemNet

    torch.manual_seed(options.seed)
    model = SASRecModel(
        n_blocks=1,
        n_heads=1,
        n_factors=64,
        dropout_rate=0.5,
        session_max_len=options.meta["cap"],
        loss=options.loss,
        n_negatives=options.negatives,
        lr=1e-3,
        batch_size=BATCH,
        epochs=100,
        item_net_block_types=(IdEmbeddingsItemNet,),
    )
    try:
        model.fit(read_dataset(options.data / "events.csv"))
    except clock.StepLimitReached:
        print("enough")
    result = steps.result(BATCH)
    names = {"softmax": "softmax over all items", "BCE": "BCE, 1 negative"}
    clock.emit(
        {
            "name": "RecTools, " + names.get(options.loss, f"{options.loss}, {options.negatives} negatives"),
            "sequences_per_cpu_second": result["rows_per_cpu_second"],
            "targets_per_cpu_second": round(
                result["rows_per_cpu_second"] * options.meta["targets"] / options.meta["users"]
            ),
            "sequences_per_second": result["rows_per_second"],
            "peak_mb": result["peak_mb"],
            "measured": f"steps {clock.WARM} to {options.steps} of {BATCH} users",
        }
    )


if __name__ == "__main__":
    main()
