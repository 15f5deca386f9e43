"""Fixtures: files of a small shop whose users like items of one kind, and the config of a job."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from longrec.training.extract import ExtractReport, extract

sys.path.insert(0, str(Path(__file__).parent))  # for domains, which test modules share
import domains

SCHEMA: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "s"},
    "label": {"column": "stars", "at_least": 4},
    "features": {
        "user_id": {"kind": "id"},
        "item_id": {"kind": "id"},
        "genre": {"kind": "id", "side": "item"},
        "stars": {"kind": "bucketized", "edges": [2, 3, 4, 5], "feedback": True},
    },
    "histories": {"seen": {"features": ["item_id", "genre", "stars", "time_gap"], "max_length": 10}},
}
JOB: dict[str, Any] = {
    "data": {"log": "events.parquet", "items": "items.parquet", "schema": "shop.schema.yaml"},
    "model": {
        "name": "din",
        "embedding_dim": 4,
        "attention": [8],
        "activation": "dice",
        "mlp": [16],
        "dropout": 0.2,
    },
    "fit": {"batch_size": 100, "lr": 0.01, "tensorboard": "off", "mlflow": "off", "log_steps": 5},
    "evaluate": {"n_resamples": 20},
}


def write_shop(folder: Path, users: int = 60, items: int = 80, events: int = 3_000, seed: int = 0) -> Path:
    """Write events.parquet, items.parquet, shop.schema.yaml and din.yaml, and return the path of the config."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    user, item = random.integers(0, users, events), random.integers(0, items, events)
    stars = np.clip(random.normal(np.where(user % 4 == item % 4, 4.2, 2.8), 1.0).round(), 1, 5).astype(np.int64)
    at = 1_700_000_000 + np.sort(random.integers(0, 2_000_000, events))
    columns = {"user_id": user + 100, "item_id": item + 1_000, "at": at, "stars": stars}
    pq.write_table(pa.table(columns), folder / "events.parquet")
    genres = [f"g{number % 4}" for number in range(items)]
    pq.write_table(pa.table({"item_id": np.arange(items) + 1_000, "genre": genres}), folder / "items.parquet")
    (folder / "shop.schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False))
    job = copy.deepcopy(JOB)
    job["data"]["folder"] = str(folder / "prepared")
    path = folder / "din.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of the shop, whose log is prepared once for all tests."""
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def domain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExtractReport]:
    """Folder of the two domains (domains.py), and the report of the extractor of the wide one, one version per day."""
    folder = domains.write(tmp_path_factory.mktemp("domains"))
    return folder, extract(domains.extractor(folder), folder / "knowledge" / "v1", ["every=1d"], quiet=True)


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides that put runs below the folder of the test: ``runs("fit.lr=1")``."""
    return lambda *overrides: [f"fit.runs={tmp_path / 'runs'}", *overrides]


def same_run(one: Path, other: Path) -> None:
    """Assert that two run folders hold the same run, except for the clock."""
    for name in (
        "checkpoints/best/weights.safetensors",
        "checkpoints/last/weights.safetensors",
        "checkpoints/last/optimizer.safetensors",
    ):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    files = sorted(path.name for path in (one / "predictions").iterdir())
    assert files == sorted(path.name for path in (other / "predictions").iterdir())
    for file in files:
        first, second = (pq.read_table(run / "predictions" / file) for run in (one, other))
        assert first.equals(second), file
    assert metric_lines(one) == metric_lines(other)
    assert timeless(one / "results.json") == timeless(other / "results.json")
    assert timeless(one / "checkpoints/last/state.json") == timeless(other / "checkpoints/last/state.json")


def metric_lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the clock."""
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def timeless(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text())
    if content.get("valid"):
        del content["valid"]["run"]
    return {key: value for key, value in content.items() if key not in ("seconds", "run", "metrics_bytes")}


@pytest.fixture(scope="session")
def same() -> Callable[[Path, Path], None]:
    """Function that asserts that two run folders hold the same run, except for the clock."""
    return same_run


@pytest.fixture(scope="session")
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    """Function that reads metrics.jsonl without the clock."""
    return metric_lines
