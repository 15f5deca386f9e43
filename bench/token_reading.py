"""Benchmark of training with instance tokens: a ranker alone against the same ranker with a token branch.

    python bench/token_reading.py [--batch 512 --steps 12 --rounds 3]

Tokens have 64 numbers, with a label and the elapsed time as side information. Lengths are either full (256 tokens per
user) or as in a log (log-normal, cut at 256). The rankers are DeepFM over 12 id fields, and DIN over the same fields
with a history of 50 events. A step is forward, backward and the optimizers, on batches in memory. All arms take turns
in every round, so that a busy machine affects all of them. Times are CPU-seconds of one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import machine
import torch
from torch import Tensor

from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import TIME_GAP, TIME_GAP_ROWS, Field, Fields
from longrec.models.core.registry import build
from longrec.nn import gemm
from longrec.training.loop import update
from longrec.training.optimizers import build_optimizers
from longrec.training.running_loss import RunningLoss
from longrec.training.settings import FitConfig

TOKENS, WIDTH, EVENTS = 256, 64, 50
ITEM = Field("item", "id", 20_000, side="item")
FEATURES = (
    Field("user", "id", 20_000, side="user"),
    ITEM,
    *(Field(f"field_{k}", "id", 100, side="item" if k % 2 else "event") for k in range(10)),
)
GAP = Field(TIME_GAP, "id", TIME_GAP_ROWS)
HISTORY = (ITEM, FEATURES[3], GAP)
TOKEN = (Field("tokens.token", "embedding", 0, width=WIDTH), Field("tokens.label", "id", 4, feedback=True), GAP)
RANKERS = {"deepfm": ("DeepFM over 12 fields", {}), "din": ("DIN, a history of 50 events", {"past": HISTORY})}
READS = ("attention", "din", "transformer", "longer")
LENGTHS = ("full", "as in a log")


def lengths(how: str, rows: int, generator: torch.Generator) -> Tensor:
    """Return the number of tokens per row."""
    if how == "full":
        return torch.full((rows,), TOKENS)
    return (3.8 + 1.2 * torch.randn(rows, generator=generator)).exp().long().clamp(max=TOKENS)


def batch(fields: Fields, how: str, rows: int, seed: int) -> Batch:
    """Return a random batch."""
    generator = torch.Generator().manual_seed(seed)

    def values(field: Field, count: int) -> Tensor:
        if field.kind == "embedding":
            return torch.randn(count, field.width, generator=generator)
        return torch.randint(2, field.rows, (count,), generator=generator, dtype=torch.int32)

    histories = {}
    for name, columns in fields.histories.items():
        own = torch.full((rows,), EVENTS) if name == "past" else lengths(how, rows, generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), own.cumsum(0)])
        histories[name] = HistoryBatch({field.name: values(field, int(offsets[-1])) for field in columns}, offsets)
    features = {field.name: values(field, rows) for field in fields.features}
    label = torch.randint(0, 2, (rows,), generator=generator).float()
    return Batch.single(rows, features, histories, label=label)


class Arm:
    """A model that trains on three batches in turn."""

    def __init__(self, ranker: str, read: str | None, how: str, rows: int) -> None:
        histories = {**RANKERS[ranker][1], **({"tokens": TOKEN} if read else {})}
        fields = Fields(FEATURES, histories)
        section = {"name": ranker}
        torch.manual_seed(0)
        self.model = build({"name": "iat_reader", "base": section, "read": read} if read else section, fields)
        self.config = FitConfig()
        self.optimizers = build_optimizers(self.model, self.config)
        self.batches = [batch(fields, how, rows, seed) for seed in range(3)]
        self.step = 0
        self.rates: list[float] = []

    def run(self, steps: int) -> None:
        """Run some steps and record the rate of the median step."""
        spent = []
        for _ in range(steps):
            current, began = self.batches[self.step % 3], time.process_time()
            update(self.model, self.optimizers, self.config, self.step, current, RunningLoss("bench", self.config.bf16))
            spent.append(time.process_time() - began)
            self.step += 1
        self.rates.append(current.size / median(spent))


def products(rows: int) -> float:
    """Return CPU-seconds per row of the two matrix products of any adaptation: forward and weight gradient."""
    x, w, b = torch.randn(rows * TOKENS, WIDTH), torch.randn(WIDTH, WIDTH), torch.randn(WIDTH)
    piece, spent = 8_192, []
    for _ in range(7):
        began, total = time.process_time(), torch.zeros(WIDTH, WIDTH)
        for chunk in x.split(piece):
            total.addmm_(gemm.affine(chunk, w, b, relu=True).t(), chunk)
        spent.append(time.process_time() - began)
    return median(spent) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12, help="steps per arm and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(RANKERS), help="rankers, comma separated")
    parser.add_argument("--reads", default="attention", help=f"how tokens are read, of {', '.join(READS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    sections = [
        "# Training a ranker that reads instance tokens",
        f"Rows per CPU-second of one thread, batches of {arguments.batch} in memory, optimizers included: median over "
        f"the rounds (all in brackets). Tokens of {WIDTH} numbers, a label and the time passed beside each. Full: "
        f"{TOKENS} tokens per row. As in a log: log-normal, cut at {TOKENS}.",
    ]
    floor = 1 / products(arguments.batch)
    for ranker in arguments.only.split(","):
        kinds = [(None, "full"), *((read, how) for read in arguments.reads.split(",") for how in LENGTHS)]
        arms = {kind: Arm(ranker, *kind, arguments.batch) for kind in kinds}
        for arm in arms.values():
            arm.run(3)
            arm.rates.clear()
        for number in range(arguments.rounds):
            for (read, how), arm in arms.items():
                arm.run(arguments.steps)
                rate_text = f"{arm.rates[-1]:,.0f} rows per CPU-second"
                print(f"{ranker}, round {number + 1}, {read or 'alone'}, {how}: {rate_text}", flush=True)
        sections.append(_section(ranker, arms))
    sections.append(
        f"The two products of the adaptation alone, of {TOKENS} tokens per row ({WIDTH} x {WIDTH}, forward and the "
        f"gradient of its weights), run at {floor:,.0f} rows per CPU-second here: no reader that trains one is faster."
    )
    machine.write("token_reading", "\n\n".join(sections))


def _section(ranker: str, arms: dict[tuple[str | None, str], Arm]) -> str:
    alone = median(arms[None, "full"].rates)
    rows = []
    for (read, how), arm in arms.items():
        rate, each = median(arm.rates), " ".join(f"{value:,.0f}" for value in arm.rates)
        tokens = arm.batches[0].histories.get("tokens")
        mean = f"{int(tokens.offsets[-1]) / arm.batches[0].size:.0f}" if tokens else ""
        name = f"with tokens, read by {read}, {how}" if read else "alone"
        rows.append([name, mean, f"{rate:,.0f} ({each})", f"{rate / alone:.2f}"])
    head = ["", "tokens per row", "rows per CPU-second", "against the ranker alone"]
    return f"## {RANKERS[ranker][0]}\n\n{machine.format_table(head, rows)}"


if __name__ == "__main__":
    main()
