"""LongRec's SASRec: epochs of training with its loader and its update step, or full ranking of the test split."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import clock
import torch

sys.path.insert(1, str(Path(__file__).resolve().parent / "quality"))
import next_item
import next_item_logs

from longrec.models.core.registry import build
from longrec.training.device import CPU, prepare_torch
from longrec.training.finished_run import read_log
from longrec.training.full_ranking import rank_targets
from longrec.training.job import read_job
from longrec.training.loop import update
from longrec.training.objectives import objective_of
from longrec.training.optimizers import build_optimizers
from longrec.training.running_loss import RunningLoss

NAME = "LongRec, 512 shared negatives"


def read_task(args: Any) -> tuple[Any, Any]:
    """Return job and log, as ``quality/next_item.py`` trains on them."""
    task = next_item_logs.build_task("beauty_n1", args.data, args.data)
    job = read_job(
        {
            "data": {**task.data, "folder": str(args.work / "prepared")},
            "model": next_item.SASREC,
            "fit": {**next_item.FIT, "threads": args.threads, "seed": args.seed},
            "evaluate": task.evaluate,
        }
    )
    return job, read_log(job)


def time_training(job: Any, log: Any, epochs: int) -> dict[str, Any]:
    """Return sequences and targets per CPU-second of every epoch but the first, loader included."""
    model = build(job.model, log.fields())
    loader: Any = objective_of(type(model)).build_loader(model, log, job.fit)
    optimizers, losses = build_optimizers(model, job.fit), RunningLoss("benchmark", job.fit.bf16)
    model.train()
    cpu, wall, sequences, step = [], [], 0, 0
    for number in range(epochs):
        cpu.append(time.process_time())
        wall.append(time.perf_counter())
        sequences = 0
        for batch in loader.epoch(number):
            sequences += batch.layout.requests
            update(model, optimizers, job.fit, step, batch, losses)
            step += 1
        if not number:
            clock.forget_peak()
    losses.read()
    cpu_s, wall_s = time.process_time() - cpu[1], time.perf_counter() - wall[1]
    return {
        "name": NAME,
        "sequences_per_cpu_second": round((epochs - 1) * sequences / cpu_s),
        "targets_per_cpu_second": round((epochs - 1) * len(loader.rows) / cpu_s),
        "sequences_per_second": round((epochs - 1) * sequences / wall_s),
        "peak_mb": clock.peak_mb(),
        "measured": f"{epochs - 1} epochs of {len(loader)} batches after one",
    }


def time_ranking(job: Any, log: Any) -> dict[str, Any]:
    """Return what ranking all items for every test target takes, with a model of random weights."""
    model = build(job.model, log.fields())
    rows = objective_of(type(model)).rows_of(log, "test")
    clock.forget_peak()
    before, cpu, wall = _resident_mb(), time.process_time(), time.perf_counter()
    ranks = rank_targets(model, log, rows, job.evaluate)  # type: ignore[arg-type]
    return {
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
        "peak_mb": clock.peak_mb(),
        "more_mb": clock.peak_mb() - before,
        "whole_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "targets": len(ranks),
        "items": len(log.items) - 1,
    }


def _resident_mb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def main() -> None:
    args = clock.parse_arguments()
    job, log = read_task(args)
    if args.prepare:
        return
    torch.set_num_threads(args.threads)
    with prepare_torch(args.threads, args.seed, CPU):
        clock.emit(time_training(job, log, args.steps) if args.steps else time_ranking(job, log))


if __name__ == "__main__":
    main()
