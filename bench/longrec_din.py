"""LongRec's DIN through its public commands: ``prepare`` once, then ``train`` with its own loop and optimizers."""

from __future__ import annotations

import shutil

import clock

from longrec import commands

MODEL = {"name": "din", "embedding_dim": 16, "attention": [80, 40], "mlp": [200, 80], "batch_norm": False}


def job(given, model: dict) -> dict:
    """The job as one mapping, as a YAML file would hold it."""
    path = str(given.data.resolve())
    return {
        "name": model["name"],
        "data": {
            "log": [f"{path}/train.parquet", f"{path}/test.parquet"],
            "items": f"{path}/items.parquet",
            "folder": str(given.work / "prepared"),
            "split": {"by": "column", "column": "part"},
            "schema": {
                "user": "user_id",
                "item": "item_id",
                "label": "label",
                "features": {
                    "user_id": {"kind": "id"},
                    "hour": {"kind": "id"},
                    "item_id": {"kind": "id", "vocab": f"{path}/items.parquet"},
                    "cate_id": {"kind": "id", "side": "item"},
                },
                "histories": {
                    "past": {
                        "features": ["item_id", "cate_id"],
                        "columns": {"item_id": "hist_item", "cate_id": "hist_cate"},
                        "max_length": given.meta["cap"],
                    }
                },
            },
        },
        "model": model,
        "fit": {
            "epochs": 1,
            "batch_size": given.batch,
            "lr": 1e-3,
            "l2": 0.0,
            "val_checks_per_epoch": 1,
            "seed": given.seed,
            "threads": given.threads,
            "runs": str(given.work / "runs"),
        },
    }


def main(model: dict) -> None:
    given = clock.parse_arguments()
    if given.prepare:
        commands.prepare(job(given, model))
        return
    shutil.rmtree(given.work / "runs", ignore_errors=True)
    steps = clock.StepClock(given.steps, given.threads, kinds=("AdamW",))
    try:
        run = commands.train(job(given, model), quiet=True)
    except clock.StepLimitReached:
        clock.emit(steps.result(given.batch, name="LongRec"))
        return
    result = steps.result(given.batch, name="LongRec")
    import numpy as np
    import pyarrow.parquet as pq

    parts = [pq.read_table(run.folder / "predictions" / f"{part}.parquet") for part in ("valid", "test")]
    label, score = (np.concatenate([part[name].to_numpy() for part in parts]) for name in ("label", "score"))
    clock.emit({**result, "auc": clock.auc(label, score)})


if __name__ == "__main__":
    main(MODEL)
