"""Canary for leaks: half of the users have random labels, which only a leak can predict."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.errors import DataError
from longrec.metrics import summary
from longrec.training.compress import compress
from longrec.training.fit import train

_spec = importlib.util.spec_from_file_location("pages", Path(__file__).with_name("pages.py"))
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)

USERS = 400
FEATURES = {**pages.FEATURES, "user_id": {"kind": "id"}}
NARROW = {name: FEATURES[name] for name in ("item_id", "place", "click")}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = pages.make_pages(users=USERS, requests=5, seed=3)
    coins = np.random.default_rng(4).integers(0, 2, len(columns["click"]))
    columns["click"] = np.where(columns["user_id"] % 2 == 0, coins, columns["click"])
    # feedback at once: an old label is worth nothing here, and a late one would only be missing
    columns["seen_at"] = columns["at"] + 1
    return pages.write(columns, tmp_path_factory.mktemp("canary") / "log.parquet")


def measure_leak(log: Path, folder: Path, tokens: Path, **history: Any) -> tuple[float, float, float]:
    """Return the AUC with its interval on the valid rows of the users with random labels."""
    histories = {"tokens": {"from": str(tokens), "features": ["token", "time_gap"], "max_length": 4, **history}}
    model = {"name": "iat_reader", "base": pages.BASE, "adapt": 8, "width": 8, "query": 8}
    config = pages.job(log, folder, model, features=NARROW, histories=histories)
    config["data"]["split"] = {"by": "time", "valid": 0.4, "test": 0.1}
    config["fit"] |= {"epochs": 6}
    run = train(config, quiet=True)
    predictions = run.predictions("valid")
    users = predictions["user"].to_numpy()
    keys = run.log().users.keys.values.to_numpy()[users - 1]
    coins = keys % 2 == 0
    auc = summary(predictions["label"].to_numpy()[coins], predictions["score"].to_numpy()[coins], users[coins])["auc"]
    return auc.value, auc.low, auc.high


def source(log: Path, folder: Path, valid: float) -> dict[str, Any]:
    model = {**pages.IAT, "order": "temporal", "base": {**pages.BASE, "batch_norm": False, "dropout": 0.0}}
    config = pages.job(log, folder, model, features=FEATURES)
    config["data"]["split"] = {"by": "time", "valid": valid, "test": 0.1}
    config["fit"] |= {"epochs": 8, "patience": 0}
    return config


def test_5_checkpoint_leakage_canary(log: Path, tmp_path: Path) -> None:
    """Tokens written forward in time carry no signal of random labels. Those of a checkpoint over its window do."""
    compress(source(log, tmp_path, 0.4), tmp_path / "honest", ["blocks=6", "first_slices=2", "epochs=4"], quiet=True)
    value, low, high = measure_leak(log, tmp_path / "honest-reader", tmp_path / "honest")
    assert low <= 0.5 <= high, (value, low, high)
    run = train(source(log, tmp_path, 0.01), quiet=True)
    compress(run, tmp_path / "leaky", ["mode=leaky_checkpoint"], quiet=True)
    with pytest.raises(
        DataError, match="leaks values before they were available: it leaks.*\n.*allow_leak: true reads the store"
    ):
        measure_leak(log, tmp_path / "leaky-reader", tmp_path / "leaky")
    value, low, high = measure_leak(log, tmp_path / "leaky-reader", tmp_path / "leaky", allow_leak=True)
    assert low > 0.52, (value, low, high)
