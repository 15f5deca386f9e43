"""Tests of explanations: time, available columns and weight of the tokens behind a score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.gather import gather
from longrec.store.token_store import TokenInfo, TokenStore, Version
from longrec.training.explain import explain
from longrec.training.finished_run import Run
from longrec.training.fit import train

N, START = 120, 1_700_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run of a reader of hand-written tokens, over a log of three users."""
    folder = tmp_path_factory.mktemp("explained")
    random = np.random.default_rng(0)
    user, at = np.arange(N) % 3, START + np.arange(N) * 60
    columns = {"user": user, "item": random.integers(0, 9, N), "at": at, "click": random.integers(0, 2, N)}
    pq.write_table(pa.table(columns), folder / "log.parquet")
    info = TokenInfo(width=3, sides={"label": 3, "dwell": 7}, unit="ms", versions=(Version(0), Version(1)),
                     standardized=True)  # fmt: skip
    with TokenStore.create(folder / "tokens", info) as store:
        store.append(
            user,
            at * 1_000,
            instance=np.arange(N),
            visible=at * 1_000,
            version=np.arange(N) % 2,
            vectors=np.tile(np.array([[3.0, 0.0, 4.0]], np.float32), (N, 1)),
            sides={"label": np.arange(N) % 3, "dwell": np.arange(N) % 7},
            available_at={"label": at * 1_000 + 400_000, "dwell": at * 1_000},
        )
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "at", "unit": "s"},
        "label": "click",
        "features": {"user": {"kind": "id"}, "item": {"kind": "id"}},
        "histories": {
            "seen": {"features": ["item", "time_gap"], "max_length": 3},
            "tokens": {
                "from": str(folder / "tokens"),
                "features": ["token", "version", "label", "dwell"],
                "max_length": 5,
            },
        },
    }
    job: dict[str, Any] = {
        "data": {"log": str(folder / "log.parquet"), "schema": schema, "folder": str(folder / "prepared")},
        "model": {"name": "iat_reader", "base": {"name": "pooling", "mlp": [4], "batch_norm": False}, "width": 4,
                  "heads": 2, "query": 4, "adapt": 4, "side_dim": 2, "embedding_dim": 2},
        "fit": {"epochs": 1, "max_steps": 2, "runs": str(folder / "runs"), "tensorboard": "off", "mlflow": "off"},
        "evaluate": {"n_resamples": 2},
    }  # fmt: skip
    return train(job, quiet=True)


def test_tokens_are_explained_with_available_columns(run: Run) -> None:
    log = run.log()
    row = int(np.flatnonzero(log.events.times == (START + 60 * 99) * 1_000)[0])
    explanation = explain(run, row)
    tokens = explanation["histories"]["tokens"]
    assert [token["ago"] for token in tokens] == [900_000, 720_000, 540_000, 360_000, 180_000]
    assert [token["time"] for token in tokens] == [explanation["time"] - token["ago"] for token in tokens]
    assert {token["norm"] for token in tokens} == {5.0}
    assert {token["item"] for token in tokens} == {None}
    numbers = [99 - 15, 99 - 12, 99 - 9, 99 - 6, 99 - 3]
    labels = [{0: None, 1: 0, 2: 1}[number % 3] for number in numbers]
    assert [token["side"]["label"] for token in tokens] == [*labels[:3], "not yet known", "not yet known"]
    assert [token["side"]["version"] for token in tokens] == [number % 2 for number in numbers]
    assert [token["side"]["dwell"] for token in tokens] == [number % 7 for number in numbers]
    weights = run.model().explain(gather(log, np.array([row])))["tokens"]  # type: ignore[operator]
    assert [token["weight"] for token in tokens] == pytest.approx(weights.tolist())
    assert [event["item"] for event in explanation["histories"]["seen"]] == log.items.keys.values.take(
        log.events.columns["item"][row - 3 : row].astype(np.int64) - 1
    ).to_pylist()


def test_a_user_without_tokens_is_explained_too(run: Run) -> None:
    first = int(np.flatnonzero(run.log().events.times == START * 1_000)[0])
    assert explain(run, first)["histories"] == {"seen": [], "tokens": []}
