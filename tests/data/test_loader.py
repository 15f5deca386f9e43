"""Batches: every row once per epoch, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data import loader as loader_module
from longrec.data.loader import Loader
from longrec.data.log import Log
from longrec.features.batch import Batch

SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "features": {"item": {"kind": "id"}},
    "histories": {
        "all": {"features": ["item"], "max_length": 30},
        "clicks": {"features": ["item"], "where": {"click": 1}, "max_length": 30},
    },
}


@pytest.fixture(scope="module")
def log(prepared: Callable[..., Log]) -> Log:
    random = np.random.default_rng(0)
    n = 700
    user = np.minimum(random.geometric(0.15, n), 20)
    columns = {"user": user, "item": random.integers(0, 9, n), "t": np.arange(n), "click": random.integers(0, 2, n)}
    return prepared(pa.table(columns), SCHEMA)


def rows(batches: list[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches if batch.rows is not None]


@settings(deadline=None, max_examples=15)
@given(
    count=st.integers(0, 60),
    size=st.integers(1, 17),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 2),
    start=st.integers(0, 70),
    bucket_by_length=st.booleans(),
)
def test_an_epoch(count: int, size: int, seed: int, epoch: int, start: int, bucket_by_length: bool, log: Log) -> None:
    own = log.rows_of("train")[:count]
    loader = Loader(log, own, size, seed=seed, bucket_by_length=bucket_by_length)
    whole = rows(list(loader.epoch(epoch)))
    assert len(whole) == len(loader) == -(-count // size)
    assert sorted(sum(whole, [])) == own.tolist()  # every row once
    assert all(len(batch) == size for batch in whole[:-1])
    again = Loader(log, own, size, seed=seed, bucket_by_length=bucket_by_length)
    assert rows(list(again.epoch(epoch))) == whole
    assert rows(list(again.epoch(epoch, start))) == whole[start:]  # resumes exactly


def test_other_seeds_and_epochs_give_other_orders(log: Log) -> None:
    own = log.rows_of("train")
    orders = {tuple(Loader(log, own, 32, seed=seed).order(epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_never_changes(log: Log) -> None:
    # A run must resume under a later version too: this pins the permutation itself.
    assert Loader(log, np.arange(10), 4, seed=7).order(3).tolist() == [3, 5, 4, 7, 8, 0, 9, 2, 1, 6]


def test_without_shuffling_the_order_is_kept(log: Log) -> None:
    own = log.rows_of("valid")[::-1].copy()
    for epoch in range(2):
        assert sum(rows(list(Loader(log, own, 9, shuffle=False).epoch(epoch))), []) == own.tolist()


def test_batches_may_be_bucketed(log: Log) -> None:
    own = log.rows_of("train")

    def spread(bucket_by_length: bool) -> float:
        loader = Loader(log, own, 16, seed=1, bucket_by_length=bucket_by_length)
        totals = []
        for batch in loader.epoch(0):
            lengths = sum((h.offsets.diff() for h in batch.histories.values()), torch.zeros(batch.size))
            totals.append(float(lengths.max() - lengths.min()))
        return float(np.mean(totals[:-1]))

    assert spread(True) < 0.2 * spread(False)
    order = Loader(log, own, 16, seed=1, bucket_by_length=True).order(0)
    lengths = log.compute_history_lengths("all", order)[: len(own) // 16 * 16].reshape(-1, 16).mean(axis=1)
    assert (np.diff(lengths) < 0).any()  # the batches themselves come in random order


def test_labels_and_fields_come_along(log: Log) -> None:
    batch = next(Loader(log, log.rows_of("train"), 8).epoch(0))
    assert batch.label is not None
    assert batch.label.dtype == torch.float32
    assert batch.rows is not None
    assert batch.label.tolist() == log.labels[batch.rows.numpy()].tolist()
    assert [field.name for field in log.fields().features] == list(batch.features)


@pytest.mark.parametrize("most", [1, 40, 10_000])
def test_a_batch_to_score_has_fewer_rows_if_its_histories_are_long(
    most: int, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "SCORED_EVENTS", most)
    own = log.rows_of("train")[:200]
    lengths = sum(log.compute_history_lengths(name, own) for name in SCHEMA["histories"])
    counts = dict(zip(own.tolist(), np.asarray(lengths).tolist()))
    expected: list[list[int]] = []
    for at in range(0, len(own), 64):
        expected.append([])
        for row in own[at : at + 64].tolist():
            if expected[-1] and sum(counts[one] for one in expected[-1]) + counts[row] > most:
                expected.append([])
            expected[-1].append(row)
    assert rows(list(Loader(log, own, 64, shuffle=False).epoch(0))) == expected
    assert (len(expected) == 4) == (most == 10_000)
    assert [len(batch) for batch in rows(list(Loader(log, own, 64).epoch(0)))] == [64, 64, 64, 8]  # of training
