"""Training speed of retrievers: CPU time per target of a step on Amazon Beauty, loader included, in turns.

    python bench/retrievers_speed.py --data FOLDER [--models sasrec youtube_dnn dssm] [--rounds 5] [--steps 40]

One round runs some steps of each model, so that the load of the machine is the same for all of them. Batches have
about 900 targets. The figure of a model is the median of its rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

sys.path.insert(1, str(Path(__file__).resolve().parent / "quality"))
import next_item
import next_item_logs

from longrec.models.core.registry import build
from longrec.training.finished_run import read_log
from longrec.training.job import read_job
from longrec.training.loop import update
from longrec.training.objectives import objective_of
from longrec.training.optimizers import build_optimizers
from longrec.training.running_loss import RunningLoss


class Trainer:
    """Steps of one model with its defaults, as ``longrec train`` makes them."""

    def __init__(self, name: str, data: Path) -> None:
        task = next_item_logs.build_task("beauty_n1", data, next_item.WORK)
        config = {**task.data, "folder": str(next_item.WORK / "prepared")}
        self.job = read_job({"data": config, "model": name, "fit": next_item.FIT, "evaluate": task.evaluate})
        log = read_log(self.job)
        self.model = build(self.job.model, log.fields()).train()
        self.loader: Any = objective_of(type(self.model)).build_loader(self.model, log, self.job.fit)
        self.optimizers = build_optimizers(self.model, self.job.fit)
        self.losses, self.step = RunningLoss("benchmark", self.job.fit.bf16), 0

    def run(self, number: int, steps: int) -> float:
        """Return the CPU time per target, in microseconds, of the first steps of an epoch."""
        began, targets = time.process_time(), 0
        for batch in islice(self.loader.epoch(number), steps):
            targets += batch.loss_rows
            update(self.model, self.optimizers, self.job.fit, self.step, batch, self.losses)
            self.step += 1
        return (time.process_time() - began) / targets * 1e6


def main() -> None:
    """Measure the models in turns, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["sasrec", "youtube_dnn", "dssm"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--data", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trainers = {name: Trainer(name, arguments.data) for name in arguments.models}
    for trainer in trainers.values():
        trainer.run(0, 10)
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(1, arguments.rounds + 1):
        for name, trainer in trainers.items():
            times[name].append(trainer.run(number, arguments.steps))
    first = np.array(times[arguments.models[0]])
    rows = [
        [f"`{name}`", f"{np.median(own):.1f}", f"{np.median(np.array(own) / first):.2f}"] for name, own in times.items()
    ]
    table = machine.format_table(["model", "microseconds per target", f"times {arguments.models[0]}"], rows)
    count = f"{arguments.rounds} rounds of {arguments.steps} steps each, medians"
    machine.write("retrievers_speed", f"# Training of retrievers, Amazon Beauty\n\nOne thread, {count}.\n\n{table}")


if __name__ == "__main__":
    main()
