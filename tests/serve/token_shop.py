"""A shop with tokens, from a raw log to two bundles: a ranker that reads them and the source that writes them.

The log is prepared by the data package, so that serving is compared with training's own join.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from longrec import commands
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.requests import build_impression
from longrec.exporting.golden import GoldenRequest, Sample
from longrec.exporting.offline import build_golden_request
from longrec.exporting.write import ExternalStores, export
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.serve.service import replay
from longrec.store.token_store import TokenStore
from longrec.training.compress import compress
from longrec.training.job import read_job

DAY, START, USERS, ITEMS = 86_400_000, 1_700_000_000_000, 12, 30
SCHEMA: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "ms"},
    "label": "click",
    "features": {
        "user_id": {"kind": "id", "vocab": [f"u{n}" for n in range(USERS)]},
        "item_id": {"kind": "id", "vocab": list(range(100, 100 + ITEMS))},
        "place": {"kind": "id", "vocab": ["top", "side", "foot"]},
        "price": {"kind": "bucketized", "edges": [1, 2, 3]},
        "stars": {"kind": "bucketized", "edges": [2, 4], "feedback": True, "available_after": "1m"},
    },
    "histories": {"seen": {"features": ["item_id", "place", "stars", "time_gap"], "max_length": 8}},
}
SOURCE: dict[str, Any] = {
    "name": "iat",
    "order": "temporal",
    "base": {"name": "pooling", "embedding_dim": 4, "mlp": [8], "batch_norm": False, "init_std": 0.5},
    "width": 6,
    "decoder": 8,
}
READER: dict[str, Any] = {
    "name": "iat_reader",
    "base": {"name": "pooling", "embedding_dim": 4, "mlp": [8], "batch_norm": False, "init_std": 0.5},
    "width": 8,
    "heads": 2,
    "query": 8,
    "adapt": 8,
    "side_dim": 4,
    "embedding_dim": 4,
    "init_std": 0.5,
}
OF = ["token", "version", "label", "stars", "time_gap"]
STEPS: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "step"},
    "request": "page",
    "label": {"column": "stars", "at_least": 4},
    "features": {
        "user_id": {"kind": "id", "vocab": list(range(USERS))},
        "item_id": {"kind": "id", "vocab": [f"i{n}" for n in range(ITEMS)]},
        "place": {"kind": "id", "vocab": ["top", "side", "foot"]},
        "stars": {"kind": "bucketized", "edges": [2, 4], "feedback": True},
    },
    "histories": {
        "liked": {
            "features": ["item_id", "place", "stars"],
            "max_length": 6,
            "where": {"stars": {"at_least": 4}, "zone": "a"},
        }
    },
}
"""Whole numbers for users, text for items, steps for times; requests; a filter on a column that is no feature."""
CODED: dict[str, Any] = {**SOURCE, "width": 4, "slots": 2, "codes": {"size": 8, "levels": 2}}
POOLING: dict[str, Any] = {"name": "pooling", "embedding_dim": 4, "mlp": [8], "batch_norm": False, "init_std": 0.5}


def events(count: int = 400, seed: int = 0) -> dict[str, list[Any]]:
    """Return raw columns of a log over ten days, with many shared timestamps and some missing stars."""
    random = np.random.default_rng(seed)
    at = START + np.sort(random.integers(0, 10 * 24, count)) * (DAY // 24)
    user, item = random.integers(0, USERS, count), random.integers(0, ITEMS, count)
    position = random.integers(0, 3, count)
    return {
        "user_id": [f"u{n}" for n in user],
        "item_id": (100 + item).tolist(),
        "at": at.tolist(),
        "place": [("top", "side", "foot")[n] for n in position],
        "price": (random.random(count) * 4).round(2).tolist(),
        "stars": [None if n == 0 else float(n) for n in random.integers(0, 6, count)],
        "click": (random.random(count) < np.where(position == item % 3, 0.9, 0.2)).astype(int).tolist(),
    }


def steps(count: int = 400, seed: int = 1) -> dict[str, list[Any]]:
    """Return raw columns of a log in steps: two candidates per request, the second a step later."""
    random = np.random.default_rng(seed)
    page = np.arange(count) // 2
    at = 10 * np.sort(random.integers(0, 100, (count + 1) // 2)).repeat(2)[:count] + np.arange(count) % 2
    return {
        "user_id": random.integers(0, USERS, (count + 1) // 2).repeat(2)[:count].tolist(),
        "item_id": [f"i{n}" for n in random.integers(0, ITEMS, count)],
        "at": at.tolist(),
        "page": page.tolist(),
        "place": [("top", "side", "foot")[n] for n in random.integers(0, 3, count)],
        "zone": [("a", "b")[n] for n in random.integers(0, 2, count)],
        "stars": random.integers(1, 6, count).astype(float).tolist(),
    }


def open_log(folder: Path, columns: Mapping[str, list[Any]], schema: Mapping[str, Any]) -> Log:
    """Prepare a log of raw columns and open it."""
    job = read_job(make_job(folder, columns, schema))
    return Log.open(prepare(job.data, job.schema), job.schema)


def make_job(
    folder: Path, columns: Mapping[str, list[Any]], schema: Mapping[str, Any], model: Mapping[str, Any] = SOURCE
) -> dict[str, Any]:
    """Write raw columns into a folder, and return the job of a source."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / "log.parquet")
    ends = (700, 850) if schema["time"]["unit"] == "step" else ("2023-11-20", "2023-11-22")
    return {
        "name": "source",
        "data": {
            "log": str(folder / "log.parquet"),
            "schema": dict(schema),
            "split": {"by": "time", "valid_from": ends[0], "test_from": ends[1]},
            "folder": str(folder / "prepared"),
            "threads": 1,
        },
        "model": dict(model),
        "fit": {"batch_size": 64, "lr": 0.01, "tensorboard": "off", "mlflow": "off"},
    }


def make_reader_schema(
    tokens: str | Path, of: Sequence[str] = OF, schema: Mapping[str, Any] = SCHEMA
) -> dict[str, Any]:
    """Return the schema of the reader."""
    histories = {**schema["histories"], "tokens": {"from": str(tokens), "features": list(of), "max_length": 16}}
    return {**schema, "histories": histories}


@dataclass(frozen=True)
class TokenShop:
    folder: Path
    tokens: Path
    log: Log
    model: Ranker
    bundle: Path
    source: Path

    def golden(self, log: Log, row: int, others: NDArray[Any] | None = None) -> GoldenRequest:
        """Build the golden request of a row of a log."""
        items = np.arange(1, 9) if others is None else others
        return build_golden_request(
            self.model, log.fitted, log.users, log.items, Sample(**build_impression(log, row, items))
        )


@functools.cache
def shop() -> TokenShop:
    """Build a reader with a branch for tokens, of a source that reads histories, once."""
    return _make(events(), SCHEMA, SOURCE, READER, OF)


@functools.cache
def coded() -> TokenShop:
    """Build a shop with tokens as codes, two per instance, with steps, requests and a filtered history."""
    return _make(steps(), STEPS, CODED, POOLING, ["token", "label", "time_gap"])


def _make(
    columns: Mapping[str, list[Any]],
    schema: Mapping[str, Any],
    source: Mapping[str, Any],
    reader: Mapping[str, Any],
    of: Sequence[str],
) -> TokenShop:
    folder = Path(tempfile.mkdtemp(prefix="token-shop-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokens = folder / "tokens" / "v1"
    compress(make_job(folder, columns, schema, source), tokens, ["blocks=3", "first_slices=2"], quiet=True)
    log = open_log(folder, columns, make_reader_schema(tokens, of, schema))
    torch.manual_seed(1)
    model = build(reader, log.fields()).eval()
    assert isinstance(model, Ranker)
    token_shop = TokenShop(folder, tokens, log, model, folder / "shop.bundle", folder / "source.bundle")
    requests = [token_shop.golden(log, int(row)) for row in log.rows_of("test")[::15]]
    external_stores = ExternalStores({name: history.store for name, history in log.tokens.items()})
    export(
        model,
        log.folder,
        token_shop.bundle,
        requests,
        replay,
        fitted=log.fitted,
        name="reader",
        external_stores=external_stores,
    )
    commands.export(token_shop.tokens, token_shop.source)
    return token_shop


def copy_tokens(folder: Path, url: str) -> None:
    """Write the tokens of a folder to a server."""
    with TokenStore.open(folder) as old, TokenStore.create(url, replace(old.info, versions=())) as store:
        for version in old.info.versions:
            store.add_version(version)
        for user, tokens in old.scan():
            store.load(np.full(len(tokens), user), tokens.times, instance=tokens.instance, visible=tokens.visible,
                       version=tokens.version, vectors=tokens.vectors, sides=tokens.sides,
                       available_at=tokens.available_at)  # fmt: skip
