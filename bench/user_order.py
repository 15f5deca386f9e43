"""Training a source of instance tokens in user order: one causal pass a user against each impression by itself.

    python bench/user_order.py [--users 400 --batch 1024 --rounds 3]

In one pass every row of a user goes once through the base ranker and the compressor, and the source transformer runs
over all of them under a causal mask. The slow way, impression by impression, puts a copy of all earlier rows of the
user before each impression and takes the loss at the last. Model, settings, look-back and optimizer are the same, and
so are the losses: that is checked on one batch first. In a stream, rows come in any order and the last tokens of their
users from a store (here: from memory). CPU-seconds of one thread, loading of batches and optimizers included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from longrec.config import parse
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.data.user_loader import UserLoader
from longrec.features.batch import Batch
from longrec.features.schema import Schema
from longrec.models.core.base import ContextInstances
from longrec.models.core.kinds import Encoder
from longrec.models.core.registry import build
from longrec.nn.timeline import Timeline
from longrec.training.loop import update
from longrec.training.optimizers import build_optimizers
from longrec.training.running_loss import RunningLoss
from longrec.training.settings import FitConfig

FIELDS = 12
LONGEST = 256


def raw_log(path: Path, users: int, seed: int) -> None:
    """Users of 50 to 250 impressions in random order, each of an item and ``FIELDS`` more ids."""
    rng = np.random.default_rng(seed)
    user = rng.permutation(np.repeat(np.arange(users), rng.integers(50, 251, users)))
    n = len(user)
    columns = {f"field_{k}": rng.integers(0, 50, n).astype(np.int32) for k in range(FIELDS)}
    item = rng.integers(0, 5_000, n)
    score = (columns["field_0"] % 2) + (item % 3) + (user % 2) - 2
    label = (rng.random(n) < 1 / (1 + np.exp(-score))).astype(np.int8)
    timestamps = np.sort(rng.integers(1_700_000_000, 1_700_000_000 + 14 * 86_400, n))
    pq.write_table(pa.table({"user": user, "item": item, "time": timestamps, "label": label, **columns}), path)


def prepared(folder: Path, users: int, seed: int) -> Log:
    """The log, every row in train but the last percent."""
    raw_log(folder / "log.parquet", users, seed)
    names = ["user", "item", *(f"field_{k}" for k in range(FIELDS))]
    schema = parse(
        Schema,
        {
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "label": "label",
            "features": {name: {"kind": "id"} for name in names},
        },
        "bench",
    )
    data = {"log": str(folder / "log.parquet"), "folder": str(folder / "prepared"), "split": {"valid": 0, "test": 0.01}}
    return Log.open(prepare(parse(DataConfig, data, "bench"), schema))


def model_of(log: Log, order: str) -> Encoder:
    """The source: DeepFM, tokens of 64 numbers, two layers. Nothing in it depends on the rest of a batch."""
    torch.manual_seed(0)
    base = {"name": "deepfm", "batch_norm": False, "dropout": 0.0}
    model = build({"name": "iat", "order": order, "base": base, "rows_per_user": LONGEST}, log.fields())
    assert isinstance(model, Encoder)
    return model


def each_by_itself(log: Log, rows: np.ndarray, allowed: np.ndarray) -> Batch:
    """A batch of impressions, each a user of its own with copies of its earlier rows among ``allowed`` before it."""
    owner, now_of_row = log.user(rows), log.timestamps.take(rows)
    users, timestamps = log.user(allowed), log.timestamps.take(allowed)
    low, high = np.searchsorted(users, owner), np.searchsorted(users, owner, side="right")
    chunks = []
    for row, now, start, stop in zip(rows, now_of_row, low, high):
        chunks.append(np.append(allowed[start:stop][timestamps[start:stop] < now], row))
    lengths = np.array([len(chunk) for chunk in chunks])
    batch = gather(log, np.concatenate(chunks))
    counts = np.zeros(int(lengths.sum()), bool)
    counts[np.cumsum(lengths) - 1] = True
    users_of = torch.from_numpy(np.repeat(np.arange(len(rows)), lengths))
    return replace(batch, users=users_of, loss_mask=torch.from_numpy(counts))


def same_losses(log: Log, batch: Batch, few: int) -> float:
    """Largest difference of an impression's loss between both ways, over some impressions of one batch."""
    model = model_of(log, "user").eval()
    with torch.no_grad():  # from where it starts, the transformer is the identity: move it
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        assert batch.rows is not None
        rows = batch.rows.numpy()
        some = np.sort(np.random.default_rng(0).choice(len(rows), few, replace=False))
        by_itself = each_by_itself(log, rows[some], rows)
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        assert batch.label is not None
        assert by_itself.label is not None
        together = loss(model(batch)[some], batch.label[some], reduction="none")
        alone = loss(model(by_itself)[by_itself.loss_mask], by_itself.label[by_itself.loss_mask], reduction="none")
    return float((together - alone).abs().max())


ContextReader = Callable[[Batch], ContextInstances]


def rate(
    log: Log, order: str, batches: Callable[[], Iterator[Batch]], read_context: ContextReader | None = None
) -> float:
    """Impressions (rows whose loss counts) per CPU-second of training, the first two batches left out."""
    model, config = model_of(log, order).train(), FitConfig(lr=1e-3)
    optimizers, began, rows = build_optimizers(model, config), 0.0, 0
    loss = None if read_context is None else lambda batch: model.loss_with_context(batch, read_context(batch))
    for step, batch in enumerate(batches()):
        if step == 2:
            began, rows = time.process_time(), 0
        update(model, optimizers, config, step, batch, RunningLoss("bench", config.bf16), loss)
        rows += batch.loss_rows
    return rows / (time.process_time() - began)


def from_memory(log: Log, last: int) -> ContextReader:
    """Reads the ``last`` tokens before each row out of an array that holds one for every row of the log."""
    tokens = torch.randn(len(log), model_of(log, "user").width)

    def read_context(batch: Batch) -> ContextInstances:
        assert batch.rows is not None
        rows = batch.rows.numpy()
        first = np.maximum(rows - last, log.events.offsets[log.user(rows)])
        offsets = np.concatenate([[0], np.cumsum(rows - first)])
        at = torch.from_numpy(np.repeat(first - offsets[:-1], rows - first) + np.arange(offsets[-1]))
        return ContextInstances(
            tokens[at], torch.from_numpy(offsets), torch.from_numpy(log.timestamps.take(at.numpy()))
        )

    return read_context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("users", 400), ("batch", 1_024), ("few", 64), ("context", 63), ("rounds", 3), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="longrec-bench-"))
    try:
        log = prepared(folder, args.users, args.seed)
        train = log.rows_of("train")
        lengths = np.bincount(log.user(train))
        lengths = lengths[lengths > 0]

        def in_user_order(size: int) -> Iterator[Batch]:
            return UserLoader(log, train, size, rows_per_user=LONGEST).epoch(0)

        def by_itself() -> Iterator[Batch]:
            order = np.random.default_rng(0).permutation(train)
            return (each_by_itself(log, order[at * args.few : (at + 1) * args.few], train) for at in range(12))

        def at_random() -> Iterator[Batch]:
            order = np.random.default_rng(0).permutation(train)
            return (gather(log, chunk) for chunk in np.array_split(order, len(order) // args.batch)[:24])

        first = next(in_user_order(args.batch))
        apart = same_losses(log, first, args.few)
        assert apart < 1e-5, f"the losses differ by {apart}"
        assert first.users is not None
        assert first.timestamps is not None
        waste = Timeline(first.users, first.timestamps).pairs / int((torch.bincount(first.users) ** 2).sum()) - 1
        ways: dict[str, Callable[[], float]] = {
            "each impression by itself": lambda: rate(log, "user", by_itself),
            "user order, one causal pass": lambda: rate(log, "user", lambda: in_user_order(args.batch)),
            "user order, batches four times as large": lambda: rate(log, "user", lambda: in_user_order(4 * args.batch)),
            f"in a stream, last {args.context} tokens": lambda: rate(
                log, "user", at_random, from_memory(log, args.context)
            ),
            "temporal order (no look-back)": lambda: rate(log, "temporal", at_random),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                rates[name].append(way())
                print(f"{name}: {rates[name][-1]:,.0f}", flush=True)
    finally:
        shutil.rmtree(folder)
    slow = median(rates["each impression by itself"])
    rows = [
        [name, f"{median(all_):,.0f} ({' '.join(f'{one:,.0f}' for one in all_)})", f"{median(all_) / slow:.1f}"]
        for name, all_ in rates.items()
    ]
    head = ["way", "impressions per CPU-second", "against each by itself"]
    machine.write(
        "user_order",
        "# Training a source of instance tokens in user order\n\n"
        f"{len(train):,} impressions of {len(lengths)} users, {lengths.min()} to {lengths.max()} a user (mean "
        f"{lengths.mean():.0f}); DeepFM over {FIELDS + 2} id fields, tokens of 64 numbers, two layers of two heads. "
        f"Batches of about {args.batch:,} rows, users whole; by itself, {args.few} impressions a batch, each with "
        "copies of all its user's earlier rows. Median over the rounds (all in brackets); one thread, loading and "
        f"optimizers included.\n\n{machine.format_table(head, rows)}\n\n"
        f"Losses of {args.few} impressions of one batch differ by {apart:.1e} at most between the first two ways. "
        f"Pairs of rows computed in vain in that batch (buckets of users of like length): {100 * waste:.0f} %.",
    )


if __name__ == "__main__":
    main()
