"""Benchmark of BST and DSIN on ragged batches against padded ones (``padded_models.py``): the same weights, the same
batches with a history per row, the same optimizers, one thread. Both must return the same scores first.

    python bench/padded.py --data FOLDER [--logs movielens kuairand] [--last 100 1000] [--steps 12]

FOLDER holds kuairand_pure_14d. A step is forward, backward and optimizer. Padding is done before the measurement, so
its time does not count. CPU time, both in turns, median over the steps.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from padded_models import PaddedBST, PaddedDSIN, pad_events, pad_sessions
from torch import Tensor

sys.path.insert(1, str(Path(__file__).resolve().parent / "quality"))
import rankers
from ranking_logs import TASKS

from longrec import commands
from longrec.data.log import Log
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.models.core.losses import bce_loss
from longrec.models.core.registry import build
from longrec.training.job import read_job
from longrec.training.loaders import build_loader
from longrec.training.optimizers import build_optimizers

BATCH = 1024
MODELS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "BST": ("bst", {"embedding_dim": 16}, PaddedBST),
    "BST, mean of all outputs": ("bst", {"embedding_dim": 16, "pooling": "mean"}, PaddedBST),
    "DSIN": ("dsin", {"embedding_dim": 16}, PaddedDSIN),
}


def measure_pair(log: str, label: str, last: int, data: Path, work: Path, steps: int) -> list[str]:
    """Return a row of the table."""
    name, settings, kind = MODELS[label]
    task = TASKS[log](data, work)
    job = rankers.job(task, name, name, "past", 0, work)
    for history in job["data"]["schema"]["histories"].values():
        history["max_length"] = last
    job["data"]["folder"] += f"-{last}"
    job["model"] = {"name": name, **settings, "dropout": 0.0}
    opened = Log.open(Path(commands.prepare(job)["folder"]))
    torch.manual_seed(0)
    ours, theirs = (build(job["model"], opened.fitted.fields()) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, Ranker)
    assert isinstance(theirs, Ranker)
    (history,) = ours.fields.histories
    loader = build_loader(ours, opened, opened.rows_of("train"), BATCH, seed=1)
    batches = [batch.ungroup() for batch in itertools.islice(loader.epoch(0), steps + 2)]
    if kind is PaddedDSIN:
        config = ours.config
        padded_batches = [pad_sessions(batch, history, config.sessions, config.session_items) for batch in batches]
    else:
        padded_batches = [pad_events(batch, history) for batch in batches]
    wide = kind(theirs)
    with torch.no_grad():
        one_B, other_B = ours.eval()(batches[0]), wide.eval()(padded_batches[0])
    assert torch.allclose(one_B, other_B, rtol=1e-3, atol=1e-4), (one_B - other_B).abs().max()
    fit = read_job(job).fit
    step_one = make_step(ours, ours.train(), fit)
    step_other = make_step(theirs, wide.train(), fit)
    times: tuple[list[float], list[float]] = ([], [])
    for number, (batch, ready) in enumerate(zip(batches, padded_batches)):
        for spent, step, inputs in ((times[0], step_one, batch), (times[1], step_other, ready)):
            began = time.process_time()
            step(inputs, batch)
            if number > 1:
                spent.append(time.process_time() - began)
    fast, slow = (BATCH / statistics.median(spent) for spent in times)
    lengths = torch.cat([batch.histories[history].offsets.diff() for batch in batches]).float()
    longest = statistics.mean(float(batch.histories[history].offsets.diff().max()) for batch in batches)
    cells = [log, str(last), label, f"{float(lengths.mean()):.0f}", f"{longest:.0f}"]
    return [*cells, f"{fast:,.0f}", f"{slow:,.0f}", f"{fast / slow:.1f}"]


def make_step(model: Ranker, score: Any, fit: Any) -> Callable[[Any, Batch], None]:
    """Return a function that does one training step."""
    optimizers = build_optimizers(model, fit)

    def step(inputs: Any, batch: Batch) -> None:
        logit_B: Tensor = score(inputs)
        bce_loss(logit_B, batch).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()

    return step


def main() -> None:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--logs", nargs="*", default=["movielens", "kuairand"])
    parser.add_argument("--last", nargs="*", type=int, default=[100, 1000])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--work", type=Path, default=machine.CACHE / "padded")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for log in args.logs:
        work = args.work / log
        work.mkdir(parents=True, exist_ok=True)
        for last in args.last:
            for label in args.models:
                rows.append(measure_pair(log, label, last, args.data, work, args.steps))
                print(" ".join(rows[-1]), flush=True)
    head = ["log", "latest events kept", "model", "events of a row, mean", "longest of a batch, mean"]
    head += ["ragged, rows per CPU-second", "padded, rows per CPU-second", "ratio"]
    about = (
        f"Batches of {BATCH:,}, shuffled, embeddings 16 wide, one thread. The padded version pads a batch to its "
        "longest history (DSIN: to 5 sessions of 10 events, as its authors do). Padding is not measured."
    )
    machine.write("padded", f"# Ragged beside padded\n\n{about}\n\n{machine.format_table(head, rows)}")


if __name__ == "__main__":
    main()
