"""Speed and correctness of generation: exported programs one user at a time, and torch one by one or in batches.

    OMP_NUM_THREADS=1 python bench/generation.py [--items 12000] [--width 50] [--lists 10000] [--peer] [--write]

A model of 64 units with random weights generates two attributes and three codes of 256 values, for users with histories
of 50 events. The exported programs run behind the beam search of the server, without its HTTP. All ways take turns, and
numbers are medians of CPU milliseconds per user over the rounds, on one thread.

With ``--lists``, so many lists of the server are checked: each item is servable, none comes twice, and scores are the
log-probabilities of teacher forcing.

With ``--peer``, torch-rechub's TIGER takes turns with it in a process of its own, over the same paths of items and the
same histories, and so does the same kind of decoder of ours: ``unirec`` without its parts. ``peers/rechub_tiger.py``
tells how the peer is called. RecTokens has a constrained beam search too, whose import needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from din_training import HERE, THREADS, Arm

ATTRIBUTES, CODES, EVENTS, K, TOGETHER = {"department": 24, "category": 200}, 256, 50, 20, 64
NAMES = (*ATTRIBUTES, "code_1", "code_2", "code_3")
UNITS, LAYERS, HEADS = 64, 2, 4
PARTLESS = {
    **{"pairs": [], "head": "linear", "self_attention": True, "encoder_layers": LAYERS, "layers": LAYERS},
    **{"heads": HEADS, "experts": 1, "hidden": 4 * UNITS, "static": False},
}
"""Settings of a decoder like TIGER's, with the sizes of the peer."""
RECHUB = Arm("rechub_tiger", ("torch-rechub==0.9.0", "transformers==4.57.3"), HERE / "peers" / "rechub_tiger.py")
"""The version of transformers is that of torch-rechub's lock file. Version 5.24 renamed the cache that ``generate``
hands on, TIGERModel drops it, and scores are no log-probabilities. The runner checks that they are."""
PEER = "torch-rechub's TIGER"
PEER_WAYS = {
    "one": f"{PEER}, one by one",
    "together": f"{PEER}, {TOGETHER} together",
    "short": f"{PEER}, one by one, histories of 20 events",
    "short together": f"{PEER}, {TOGETHER} together, histories of 20 events",
    "encoder": f"{PEER}, its encoder alone",
}
DIFFERENCES = (
    f"torch-rechub's TIGER is the T5 of transformers with {LAYERS} layers of encoder and decoder, {UNITS} units, "
    f"{HEADS} heads and networks of {4 * UNITS}; `unirec` without its parts has these sizes. Both score all tokens of "
    "a step and leave out those that no item has. The peer reads each token of an event at a position of its own, "
    f"{EVENTS * len(NAMES) + 1} in all, `unirec` two positions an event, {2 * EVENTS} in all; with histories of 20 "
    f"events, the number in its example, the peer reads {20 * len(NAMES) + 1}. It writes an end token, a step more, "
    "and has one vocabulary for all steps, here without the 32,100 word pieces of its example. `unirec` reads items "
    "beside their paths and returns items, the peer paths. `unirec` with its parts has no encoder and no attention "
    "among tokens, but experts, content summaries and a deeper head. Scores of the peer differ from teacher forcing "
    "by at most {error:.1g}. Versions of the peer: {versions}."
)

Ways = dict[str, tuple[Callable[[], Any], int]]
"""What is measured, by name: a call and its number of users."""


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


@dataclass(frozen=True)
class Exported:
    """A model in torch, its exported programs and its catalog."""

    model: UniRec
    generator: ItemGenerator
    trie: Trie
    columns: dict[str, torch.Tensor]


def export_model(folder: Path, data: dict[str, Any], settings: dict[str, Any], name: str) -> Exported:
    """Export a model with random weights."""
    job = read_job({"name": name, "data": data, "model": {"name": "unirec", **settings}})
    log = Log.open(prepare(job.data, job.schema), job.schema)
    torch.manual_seed(0)
    model = UniRec(UniRec.Config(**settings), log.fields()).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embeddings" in key:
                parameter.mul_(20)  # logits that differ, as those of a trained model
    config = SimpleNamespace(to_yaml=lambda: "", model=job.model, data=job.data)
    own = {"log": lambda: log, "model": lambda: model, "name": name, "folder": folder / "runs" / name, "config": config}
    export_run(SimpleNamespace(**own), folder / f"{name}.bundle", False)  # type: ignore[arg-type]
    opened = OpenModel(Bundle.open(folder / f"{name}.bundle"))
    trie, fields = opened.catalog.trie, [field.name for field in log.fields().features if field.side == "item"]
    assert trie is not None
    columns = {field: torch.from_numpy(opened.catalog.tensors[f"f.{field}"]) for field in fields}
    return Exported(model, ItemGenerator(opened), trie, columns)


def draw_rows(items: int, users: int, seed: int) -> torch.Tensor:
    """Return random items of ``EVENTS`` events for each user."""
    return torch.randint(0, items, (users * EVENTS,), generator=torch.Generator().manual_seed(seed))


def draw_batch(columns: dict[str, torch.Tensor], users: int, seed: int) -> Batch:
    """Return users with random histories of ``EVENTS`` events."""
    rows = draw_rows(len(columns["item"]), users, seed)
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


def list_ways(name: str, side: Exported, width: int) -> Ways:
    """Return the ways to generate with a model, after a check that two of them agree."""

    def search(batch: Batch, users: int) -> None:
        for user in range(users):
            side.generator.search(select(batch, user), K, None, None, lambda: None)

    def generate(batch: Batch) -> Any:
        with torch.no_grad():
            return side.model.generate(batch, side.trie, K, width)

    batch, singles = draw_batch(side.columns, TOGETHER, 1), [draw_batch(side.columns, 1, seed) for seed in range(8)]
    own = generate(singles[5])
    item, score = side.generator.search(select(singles[5], 0), K, None, None, lambda: None)
    assert item.tolist() == own.items[0].tolist()
    assert np.abs(score - own.scores[0]).max() < 1e-5
    return {
        f"{name}exported, one by one": (lambda: search(batch, 16), 16),
        f"{name}torch, one by one": (lambda: [generate(one) for one in singles], len(singles)),
        f"{name}torch, {TOGETHER} together": (lambda: generate(batch), TOGETHER),
    }


class Peer:
    """The process of the peer, with a model of random weights over the same items and histories."""

    def __init__(self, folder: Path, side: Exported, width: int) -> None:
        items = len(side.columns["item"])
        paths = np.stack([side.columns[name].numpy() for name in NAMES], 1)
        singles = np.stack([draw_rows(items, 1, seed).numpy() for seed in range(8)])
        batch = draw_rows(items, TOGETHER, 1).numpy().reshape(TOGETHER, EVENTS)
        sizes = {"width": width, "count": K, "units": UNITS, "layers": LAYERS, "heads": HEADS}
        np.savez(
            folder / "peer.npz", paths=paths, sizes=np.array(side.trie.sizes), batch=batch, singles=singles, **sizes
        )
        command = [RECHUB.python(), str(RECHUB.runner), str(folder / "peer.npz")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **THREADS}, **pipes)  # type: ignore[call-overload]
        self.facts = self._read()

    def measure(self, way: str) -> float:
        """Return the CPU milliseconds per user of a way."""
        self.process.stdin.write(f"{way}\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> Any:
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise SystemExit("the process of the peer ended")


def measure_rounds(ways: Ways, peer: Peer | None, rounds: int) -> dict[str, list[float]]:
    """Return the CPU milliseconds per user of each way in each round. All take turns in a round."""
    peer_ways = PEER_WAYS if peer else {}
    taken: dict[str, list[float]] = {name: [] for name in (*ways, *peer_ways.values())}
    for number in range(rounds + 1):
        spent = {name: measure(call, users) for name, (call, users) in ways.items()}
        if peer:
            spent |= {name: peer.measure(way) for way, name in peer_ways.items()}
        for name, value in spent.items():
            if number:  # the first round warms up
                taken[name].append(value)
    return taken


def format_times(taken: dict[str, list[float]], reference: str) -> str:
    """Format medians, ranges and ratios."""
    one = float(np.median(taken[reference]))
    rows = [
        [name, f"{np.median(own):.2f} ({min(own):.2f} to {max(own):.2f})", f"{one / float(np.median(own)):.1f}"]
        for name, own in taken.items()
    ]
    return machine.format_table(["search", "CPU milliseconds per user", f"users per second, times {reference}"], rows)


def check_lists(side: Exported, lists: int) -> float:
    """Check lists of the server, and return the largest difference of a score from teacher forcing."""
    model, generator, trie, columns = side.model, side.generator, side.trie, side.columns
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
    parser.add_argument("--peer", action="store_true", help="torch-rechub's TIGER beside it")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, width = Path(name), arguments.width
        data, settings = write_log(folder, arguments.items), {"attributes": list(ATTRIBUTES), "beam_width": width}
        side = export_model(folder, data, settings, "whole")
        ways, peer, reference = list_ways("", side, width), None, "torch, one by one"
        if arguments.peer:
            partless, reference = export_model(folder, data, settings | PARTLESS, "partless"), PEER_WAYS["one"]
            ways = list_ways("`unirec`, ", side, width) | list_ways("`unirec` without its parts, ", partless, width)
            peer = Peer(folder, side, width)
        taken = measure_rounds(ways, peer, arguments.rounds)
        sections = [
            "# Generation by beam search",
            f"{arguments.items:,} items, {len(NAMES)} steps, width {width}, {UNITS} units, histories of {EVENTS} "
            f"events; medians of {arguments.rounds} rounds, and ranges.",
            format_times(taken, reference),
        ]
        if peer:
            peer.close()
            sections.append(DIFFERENCES.format(**peer.facts))
        if arguments.lists:
            sections.append(
                f"{arguments.lists:,} lists of {K} items: all servable, none twice; scores differ from teacher forcing "
                f"by at most {check_lists(side, arguments.lists):.1g}."
            )
    if arguments.write:
        machine.write("generation", "\n\n".join(sections))
    else:
        print("\n\n".join(sections))


if __name__ == "__main__":
    main()
