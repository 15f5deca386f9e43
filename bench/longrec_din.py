"""LongRec's DIN through its public commands: ``prepare`` once, then ``train`` with its own loop and optimizers."""

from __future__ import annotations

import argparse
import shutil

import clock

from longrec import commands

MODEL = {"name": "din", "embedding_dim": 16, "attention": [80, 40], "mlp": [200, 80], "batch_norm": False}


def job(args, model: dict) -> dict:
    """The job as one mapping, as a YAML file would hold it."""
    path = str(args.data.resolve())
    return {
        "name": model["name"],
        "data": {
            "log": [f"{path}/train.parquet", f"{path}/test.parquet"],
            "items": f"{path}/items.parquet",
            "folder": str(args.work / "prepared"),
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
                        "max_length": args.meta["cap"],
                    }
                },
            },
        },
        "model": model,
        "fit": {
            "epochs": 1,
            "batch_size": args.batch,
            "lr": 1e-3,
            "l2": 0.0,
            "val_checks_per_epoch": 1,
            "seed": args.seed,
            "threads": args.threads,
            "runs": str(args.work / "runs"),
        },
    }


def main(model: dict, args: argparse.Namespace | None = None) -> None:
    """Prepare or train. The arguments are those of the command line, unless they were parsed already."""
    args = args or clock.parse_arguments()
    if args.prepare:
        commands.prepare(job(args, model))
        return
    shutil.rmtree(args.work / "runs", ignore_errors=True)
    steps = clock.StepClock(args.steps, args.threads, kinds=("AdamW",), children=True)
    try:
        run = commands.train(job(args, model), quiet=True)
    except clock.StepLimitReached:
        clock.emit(steps.result(args.batch, name="LongRec"))
        return
    result = steps.result(args.batch, name="LongRec")
    import numpy as np
    import pyarrow.parquet as pq

    tables = [pq.read_table(run.folder / "predictions" / f"{split}.parquet") for split in ("valid", "test")]
    label, score = (np.concatenate([split[name].to_numpy() for split in tables]) for name in ("label", "score"))
    clock.emit({**result, "auc": clock.auc(label, score)})


if __name__ == "__main__":
    main(MODEL)
