"""A small generator with random weights and its bundle: items with codes, twins, and items without codes."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.requests import build_impression
from longrec.exporting.catalog import read_catalog
from longrec.exporting.golden import Sample, build_recommend_request
from longrec.exporting.offline import build_request_batch, generate_items
from longrec.exports import export_run, find_seen_items
from longrec.features.batch import Batch
from longrec.generation.trie import Trie
from longrec.models.unirec import UniRec
from longrec.training.job import read_job

USERS, EVENTS, ITEMS, WITHOUT = 60, 9, 150, 10
"""The last items have no codes, and each code is that of several items."""
MODEL: dict[str, Any] = {
    "name": "unirec",
    "attributes": ["group"],
    "tasks": ["surface"],
    "embedding_dim": 16,
    "layers": 1,
    "hidden": 16,
    "head_hidden": 16,
    "beam_width": 8,
}


@dataclass(frozen=True)
class GeneratorShop:
    """A log, a generator over it, and its bundle."""

    log: Log
    model: UniRec
    bundle: Path

    @property
    def catalog(self) -> dict[str, torch.Tensor]:
        """Features of all items."""
        table, own = read_catalog(self.log.items), [f.name for f in self.log.fields().features if f.side == "item"]
        return {name: torch.from_numpy(np.asarray(table[name]).astype(np.int32)) for name in own}

    @property
    def trie(self) -> Trie:
        """The items that have codes."""
        return self.model.build_trie(self.catalog)

    def sample(self, row: int) -> Sample:
        """Return the request of a row of the log."""
        return Sample(**build_impression(self.log, row, []))

    def batch(self, row: int) -> Batch:
        """Return the batch of the request of a row of the log."""
        return build_request_batch(self.log.fitted, self.log.users, self.log.items, self.sample(row))

    def generate(
        self, row: int, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[list[int], NDArray[np.float32]]:
        """Return the keys of the items that the model generates for a row of the log, and their scores."""
        with torch.no_grad():
            best, scores = generate_items(self.model, self.batch(row), self.catalog, k, allowed)
        return [int(self.log.items.key(number + 1)) for number in best.tolist()], scores

    def request(self, row: int, k: int, exclude_seen: bool = False) -> dict[str, Any]:
        """Return the request of a row of the log to a client."""
        log = self.log
        return build_recommend_request(log.fitted, log.users, log.items, self.sample(row), k, exclude_seen)

    def find_unseen(self, row: int) -> NDArray[np.bool_]:
        """Return the mask of the items that the user of a row has not seen before."""
        sample, unseen = self.sample(row), np.ones(len(self.log.items) - 1, np.bool_)
        unseen[find_seen_items(self.log, sample.user, sample.timestamp) - 1] = False
        return unseen


def write_log(folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    user, step = np.repeat(np.arange(USERS), EVENTS), np.tile(np.arange(EVENTS), USERS)
    log = {
        "user": user + 100,
        "item": random.integers(0, ITEMS, len(user)),
        "surface": random.choice(["home", "search"], len(user)),
        "time": 1_600_000_000 + 1_000 * step + user,
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    items = np.arange(ITEMS)
    coded = items < ITEMS - WITHOUT
    columns = {name: random.integers(0, size, ITEMS) for name, size in (("group", 4), ("code_1", 6), ("code_2", 9))}
    table = {"item": pa.array(items), "group": pa.array(columns["group"])}
    table |= {name: pa.array(columns[name], mask=~coded) for name in ("code_1", "code_2")}
    pq.write_table(pa.table(table), folder / "items.parquet")
    ids = {name: {"kind": "id", "side": "item"} for name in columns}
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "features": {"item": {"kind": "id"}, "surface": {"kind": "id"}, **ids},
        "histories": {"seen": {"features": ["item", *columns], "max_length": 5}},
    }
    paths = {"log": str(folder / "log.parquet"), "items": str(folder / "items.parquet")}
    return {**paths, "schema": schema, "split": {"by": "leave_one_out"}, "folder": str(folder / "prepared")}


@functools.cache
def make() -> GeneratorShop:
    """Return the generator. It is exported once."""
    folder = Path(tempfile.mkdtemp())
    job = read_job({"name": "x", "data": write_log(folder), "model": MODEL})
    log = Log.open(prepare(job.data, job.schema), job.schema)
    torch.manual_seed(0)
    settings = {name: value for name, value in MODEL.items() if name != "name"}
    model = UniRec(UniRec.Config(**settings), log.fields()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    config = SimpleNamespace(to_yaml=lambda: "", model=MODEL, data=job.data)
    run: Any = SimpleNamespace(
        log=lambda: log, model=lambda: model, name="r1", folder=folder / "runs/r1", config=config
    )
    export_run(run, folder / "unirec.bundle", False)
    return GeneratorShop(log, model, folder / "unirec.bundle")
