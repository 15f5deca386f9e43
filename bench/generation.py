"""Speed and correctness of generation: exported programs one user at a time, and torch one by one or in batches.

    OMP_NUM_THREADS=1 python bench/generation.py [--items 12000] [--width 50] [--lists 10000] [--write]

A model of 64 units with random weights generates two attributes and three codes of 256 values, for users with histories
of 50 events. The exported programs run behind the beam search of the server, without its HTTP. All ways take turns, and
numbers are medians of CPU milliseconds per user over the rounds, on one thread.

With ``--lists``, so many lists of the server are checked: each item is servable, none comes twice, and scores are the
log-probabilities of teacher forcing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.exporting.bundle import Bundle
from longrec.exports import export_run
from longrec.features.batch import Batch, HistoryBatch, Layout, Targets
from longrec.generation.trie import Trie
from longrec.models.unirec import UniRec
from longrec.serve.generate import ItemGenerator
from longrec.serve.open_model import OpenModel
from longrec.training.job import read_job

sys.path.insert(1, str(Path(__file__).resolve().parent))
import machine

ATTRIBUTES, CODES, EVENTS, K, TOGETHER = {"department": 24, "category": 200}, 256, 50, 20, 64
NAMES = (*ATTRIBUTES, "code_1", "code_2", "code_3")


def write_log(folder: Path, items: int) -> dict[str, Any]:
    """Write a log and an item table, and return the data section of a job."""
    random = np.random.default_rng(0)
    category = random.integers(0, ATTRIBUTES["category"], items)
    columns = {"department": category % ATTRIBUTES["department"], "category": category}
    columns |= {name: random.integers(0, CODES, items) for name in NAMES[2:]}
    pq.write_table(pa.table({"item": np.arange(items), **columns}), folder / "items.parquet")
    user, count = np.repeat(np.arange(400), EVENTS + 2), 400 * (EVENTS + 2)
    log = {"user": user, "item": random.integers(0, items, count), "time": np.tile(np.arange(EVENTS + 2), 400)}
    pq.write_table(pa.table(log), folder / "log.parquet")
    ids = {name: {"kind": "id", "side": "item"} for name in NAMES}
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "step"},
        "features": {"item": {"kind": "id"}, **ids},
        "histories": {"seen": {"features": ["item", *NAMES], "max_length": EVENTS}},
    }
    paths = {"log": str(folder / "log.parquet"), "items": str(folder / "items.parquet")}
    return {**paths, "schema": schema, "split": {"by": "leave_one_out"}, "folder": str(folder / "prepared")}


def export_model(folder: Path, items: int, width: int) -> tuple[UniRec, Path, Log]:
    """Export a model with random weights."""
    settings = {"attributes": list(ATTRIBUTES), "beam_width": width}
    job = read_job({"name": "x", "data": write_log(folder, items), "model": {"name": "unirec", **settings}})
    log = Log.open(prepare(job.data, job.schema), job.schema)
    torch.manual_seed(0)
    model = UniRec(UniRec.Config(**settings), log.fields()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embeddings" in name:
                parameter.mul_(20)  # logits that differ, as those of a trained model
    config = SimpleNamespace(to_yaml=lambda: "", model=job.model, data=job.data)
    own = {"log": lambda: log, "model": lambda: model, "name": "x", "folder": folder / "runs/x", "config": config}
    export_run(SimpleNamespace(**own), folder / "x.bundle", False)  # type: ignore[arg-type]
    return model, folder / "x.bundle", log


def draw_batch(columns: dict[str, torch.Tensor], users: int, seed: int) -> Batch:
    """Return users with random histories of ``EVENTS`` events."""
    rows = torch.randint(0, len(columns["item"]), (users * EVENTS,), generator=torch.Generator().manual_seed(seed))
    history = {name: column[rows] for name, column in columns.items()}
    offsets = torch.arange(users + 1) * EVENTS
    return Batch(Layout.catalog(users, 0), {}, {}, {"seen": HistoryBatch(history, offsets)})


def select(batch: Batch, user: int) -> dict[str, np.ndarray]:
    """Return the inputs of the exported programs for one user."""
    own = slice(user * EVENTS, (user + 1) * EVENTS)
    return {f"h.seen.{name}": column[own].numpy() for name, column in batch.histories["seen"].columns.items()}  # type: ignore[index]


def measure(call: Callable[[], Any], users: int) -> float:
    """Return the CPU milliseconds per user of a call."""
    began = time.process_time()
    call()
    return 1e3 * (time.process_time() - began) / users


def check_lists(
    model: UniRec, generator: ItemGenerator, trie: Trie, columns: dict[str, torch.Tensor], lists: int
) -> float:
    """Check lists of the server, and return the largest difference of a score from teacher forcing."""
    worst, servable = 0.0, set(trie.items.tolist())
    for seed in range(0, lists, 500):
        users = min(500, lists - seed)
        batch = draw_batch(columns, users, 1_000 + seed)
        served = [generator.search(select(batch, user), K, None, None, lambda: None) for user in range(users)]
        for item, _ in served:
            assert len(set(item.tolist())) == len(item) == K
            assert set(item.tolist()) <= servable
        item_T = torch.from_numpy(np.concatenate([item for item, _ in served]))
        state_T = torch.arange(users).repeat_interleave(K)
        one = Targets(state_T, torch.arange(len(item_T)), item_T + 1, 0, len(columns["item"]), per_position=False)
        candidates = {name: column[item_T] for name, column in columns.items()}
        layout = Layout.catalog(users, len(item_T))
        with torch.no_grad():
            own = model.log_probabilities(replace(batch, layout=layout, candidates=candidates, targets=one)).sum(1)
        score = np.concatenate([score for _, score in served])
        worst = max(worst, float(np.abs(own.numpy() - score).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--width", type=int, default=50, help="beams")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lists", type=int, default=0, help="number of lists to check")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, bundle, log = export_model(Path(folder), arguments.items, arguments.width)
        opened = OpenModel(Bundle.open(bundle))
        trie, generator = opened.catalog.trie, ItemGenerator(opened)
        assert trie is not None
        own = [field.name for field in log.fields().features if field.side == "item"]
        columns = {name: torch.from_numpy(opened.catalog.tensors[f"f.{name}"]) for name in own}
        width = arguments.width

        def search(batch: Batch, users: int) -> None:
            for user in range(users):
                generator.search(select(batch, user), K, None, None, lambda: None)

        def generate(batch: Batch) -> None:
            with torch.no_grad():
                model.generate(batch, trie, K, width)

        batch = draw_batch(columns, TOGETHER, 1)
        singles = [draw_batch(columns, 1, seed) for seed in range(8)]
        ways: dict[str, tuple[Callable[[], Any], int]] = {
            "exported, one by one": (lambda: search(batch, 16), 16),
            "torch, one by one": (lambda: [generate(one) for one in singles], len(singles)),
            f"torch, {TOGETHER} together": (lambda: generate(batch), TOGETHER),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds + 1):
            for name, (call, users) in ways.items():
                spent = measure(call, users)
                if number:  # the first round warms up
                    taken[name].append(spent)
        with torch.no_grad():
            torch_list = model.generate(draw_batch(columns, 1, 5), trie, K, width)
        item, score = generator.search(select(draw_batch(columns, 1, 5), 0), K, None, None, lambda: None)
        assert item.tolist() == torch_list.items[0].tolist()
        assert np.abs(score - torch_list.scores[0]).max() < 1e-5
        lists = "" if not arguments.lists else (
            f"\n\n{arguments.lists:,} lists of {K} items: all servable, none twice; scores differ from teacher forcing "
            f"by at most {check_lists(model, generator, trie, columns, arguments.lists):.1g}."
        )  # fmt: skip
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    one = medians["torch, one by one"]
    rows = [[name, f"{own:.2f}", f"{one / own:.1f}"] for name, own in medians.items()]
    table = machine.format_table(["search", "CPU milliseconds per user", "users per second, times torch"], rows)
    what = f"{arguments.items:,} items, {len(NAMES)} steps, width {width}, 64 units, histories of {EVENTS} events"
    text = f"# Generation by beam search\n\n{what}; medians of {arguments.rounds} rounds.\n\n{table}{lists}"
    if arguments.write:
        machine.write("generation", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
