from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec.data.catalog import build_catalog, compute_first_timestamps, list_negatives
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.next_item_loader import NextItemLoader, find_sequence_fault
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.features.batch import Batch
from longrec.features.sampling import Sampling
from longrec.features.schema import Schema

SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "at", "unit": "step"},
    "label": "liked",
    "features": {"item": {"kind": "id"}, "liked": {"kind": "id", "feedback": True}},
    "histories": {"seen": {"features": ["item"], "max_length": 6}},
}


def write_log(folder: Path, seed: int = 0, schema: Mapping[str, Any] | None = None) -> Log:
    """Prepare a log of 30 users, with several events at one time."""
    random = np.random.default_rng(seed)
    events = 600
    columns = {
        "user": random.integers(0, 30, events),
        "item": random.integers(0, 25, events),
        "at": np.sort(random.integers(0, 120, events)),
        "liked": (random.random(events) < 0.7).astype(np.int64),
    }
    pq.write_table(pa.table(columns), folder / "log.parquet")
    config = DataConfig(log=str(folder / "log.parquet"), folder=str(folder / "prepared"))  # type: ignore[arg-type]
    return Log.open(prepare(config, Schema(**{**SCHEMA, **(schema or {})})))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return write_log(tmp_path_factory.mktemp("log"))


def positives(log: Log, split: str = "train") -> np.ndarray[Any, np.dtype[np.int64]]:
    rows = log.rows_of(split)
    return rows[log.labels.take(rows) > 0.5]


def histories_by_hand(log: Log, rows: np.ndarray[Any, Any]) -> list[list[int]]:
    """Items of each row's user strictly before the row's time, in order, all of them."""
    return [
        [
            int(log.events.columns["item"][other])
            for other in range(log.events.offsets[log.user(np.array([row]))[0]], len(log))
            if log.user(np.array([other]))[0] == log.user(np.array([row]))[0]
            and log.events.times[other] < log.events.times[row]
        ]
        for row in rows
    ]


def item_rows(log: Log, column: Any) -> list[int]:
    """Row of the item table of each encoded item id."""
    ids = log.items.columns["item"]
    assert isinstance(ids, np.ndarray)
    back = {int(encoded): row for row, encoded in enumerate(ids.tolist())}
    return [back[int(one)] for one in column]


def test_every_target_reads_its_own_history_and_no_more(log: Log) -> None:
    rows = positives(log)
    loader = NextItemLoader(log, rows, 50, "seen", Sampling(negatives=8), windows="all")
    expected = dict(zip(rows.tolist(), histories_by_hand(log, rows)))
    read: dict[int, int] = {}
    order = loader.order(3)
    at = 0
    for batch in loader.epoch(3):
        targets = batch.targets
        assert targets is not None
        events = batch.histories["seen"]
        offsets, items = events.offsets.numpy(), item_rows(log, events.columns["item"])
        assert (np.diff(offsets) <= 6).all()
        for state, item in zip(targets.state.tolist(), targets.item.tolist()):
            row = int(order[at])
            at += 1
            window = int(np.searchsorted(offsets, state, side="right")) - 1
            seen = items[offsets[window] : state + 1]
            assert seen == expected[row][-len(seen) :], "the events up to the state are the newest of its history"
            assert int(targets.rows[item]) == int(log.events.columns["item"][row])
            read[row] = read.get(row, 0) + 1
    some = {row for row, history in expected.items() if history}
    assert read == dict.fromkeys(some, 1), "each target with a history occurs once an epoch"


def test_equal_timestamps_are_read_in_the_order_of_the_log(log: Log) -> None:
    rows = positives(log)
    loader = NextItemLoader(log, rows, 50, "seen", Sampling(negatives=8), windows="all", ties="order")
    order, at, tied = loader.order(0), 0, 0
    for batch in loader.epoch(0):
        targets = batch.targets
        assert targets is not None
        offsets, items = (
            batch.histories["seen"].offsets.numpy(),
            item_rows(log, batch.histories["seen"].columns["item"]),
        )
        for state in targets.state.tolist():
            row = int(order[at])
            at += 1
            window = int(np.searchsorted(offsets, state, side="right")) - 1
            begin = row - (state + 1 - int(offsets[window]))
            assert items[offsets[window] : state + 1] == log.events.columns["item"][begin:row].tolist()
            assert log.user(np.array([begin]))[0] == log.user(np.array([row]))[0]
            tied += int(log.events.times[row - 1] == log.events.times[row])
    assert tied > 10
    assert at == len(rows) - len(set(rows.tolist()) & set(log.events.offsets.tolist())), "all but first events"


def test_the_last_windows_hold_the_newest_events(log: Log) -> None:
    rows = positives(log)
    loader = NextItemLoader(log, rows, 50, "seen", Sampling(negatives=8))
    assert set(loader.rows.tolist()) < set(rows.tolist())
    users = log.user(loader.rows)
    newest = {user: rows[log.user(rows) == user].max() for user in set(users.tolist())}
    assert set(newest.values()) <= set(loader.rows.tolist())
    assert not loader.by_request


def test_epochs_differ_and_resume_in_the_middle(log: Log) -> None:
    def facts(batch: Batch) -> list[list[float]]:
        assert batch.targets is not None
        return [batch.targets.state.tolist(), batch.targets.rows.tolist(), batch.histories["seen"].offsets.tolist()]

    loader = NextItemLoader(log, positives(log), 50, "seen", Sampling(negatives=8))
    whole = [facts(batch) for batch in loader.epoch(1)]
    assert len(whole) == len(loader) > 2
    assert [facts(batch) for batch in loader.epoch(1, 2)] == whole[2:]
    assert [facts(batch) for batch in loader.epoch(2)] != whole


def test_a_history_that_depends_on_the_time_of_reading_makes_requests(tmp_path: Path) -> None:
    schema = {"histories": {"seen": {"features": ["item", "liked", "time_gap"], "max_length": 6}}}
    log = write_log(tmp_path, schema=schema)
    assert find_sequence_fault(log, "seen").startswith("the values of time_gap")
    assert "liked" in find_sequence_fault(log, "seen")
    rows = positives(log)
    loader = NextItemLoader(log, rows, 64, "seen", Sampling(negatives=8))
    assert loader.by_request
    seen = []
    for batch in loader.epoch(0):
        assert batch.targets is not None
        assert not batch.targets.per_position
        own = item_rows(log, batch.histories["seen"].columns["item"])
        offsets = batch.histories["seen"].offsets.tolist()
        items = batch.targets.rows[batch.targets.item].tolist()
        seen += [(tuple(own[a:b]), item) for a, b, item in zip(offsets, offsets[1:], items)]
    by_hand = [tuple(history[-6:]) for history in histories_by_hand(log, rows)]
    expected = list(zip(by_hand, log.events.columns["item"].take(rows).tolist()))
    assert sorted(seen) == sorted(expected)


def test_negatives_follow_their_distribution(log: Log) -> None:
    rows = positives(log)
    catalog = list_negatives(log)
    for draw in ("uniform", "popularity"):
        loader = NextItemLoader(log, rows, 10_000, "seen", Sampling(negatives=40_000, draw=draw))  # type: ignore[arg-type]
        (batch,) = loader.epoch(0)
        assert batch.targets is not None
        assert batch.targets.log_q is not None
        drawn = batch.targets.rows[-40_000:].numpy()
        share = np.bincount(drawn, minlength=len(log.items))[catalog] / 40_000
        expected = np.ones(len(catalog))
        if draw == "popularity":
            expected = np.bincount(log.events.columns["item"].take(rows), minlength=len(log.items))[catalog] + 0.5
        expected = expected / expected.sum()
        np.testing.assert_allclose(share, expected, atol=0.006)
        np.testing.assert_allclose(
            batch.targets.log_q.numpy(), np.log(40_000 * expected)[np.searchsorted(catalog, drawn)], rtol=1e-4
        )


@pytest.mark.parametrize(("draw", "ties"), [("in_batch", "order"), ("mixed", "strict")])
def test_negatives_of_the_batch_represent_the_catalog(log: Log, draw: Any, ties: Any) -> None:
    """Divided by q, each item counts once in a batch on average: the sum over negatives estimates that over all."""
    rows, catalog = positives(log), list_negatives(log)
    loader = NextItemLoader(log, rows, 20, "seen", Sampling(negatives=300, draw=draw), windows="all", ties=ties)
    weights, batches = np.zeros(len(log.items)), 0
    for epoch in range(6):
        for batch in loader.epoch(epoch):
            targets = batch.targets
            assert targets is not None
            assert targets.log_q is not None
            assert targets.draws is not None
            assert targets.negatives == len(targets.rows)
            of_batch = len(np.unique(targets.item))
            times = np.bincount(targets.item, minlength=len(targets.rows))
            assert targets.draws.tolist() == [*times[:of_batch], *np.ones(len(targets.rows) - of_batch)]
            np.add.at(weights, targets.rows.numpy(), (targets.draws / targets.log_q.exp()).numpy())
            batches += 1
    assert batches > 50
    expected = np.isin(np.arange(len(log.items)), catalog).astype(float)
    if draw == "in_batch":
        expected *= np.bincount(log.events.columns["item"].take(loader.rows), minlength=len(log.items)) > 0
        expected[0] = 1
    np.testing.assert_allclose(weights / batches, expected, atol=0.12)


@pytest.mark.parametrize("sequences", [True, False])
def test_a_target_is_compared_with_no_target_of_its_user(log: Log, sequences: bool) -> None:
    rows = positives(log)
    kind = Sampling(draw="in_batch")
    loader = NextItemLoader(log, rows, 60, "seen", kind, sequences=sequences)
    order, at = loader.order(0), 0
    for batch in loader.epoch(0):
        targets = batch.targets
        assert targets is not None
        assert targets.hits is not None
        own = order[at : at + len(targets.state)]
        at += len(own)
        own = own if sequences else np.sort(own)
        users, items = log.user(own), log.events.columns["item"].take(own)
        pairs = {(int(t), int(targets.rows[j])) for t, j in targets.hits.t().tolist()}
        assert pairs == {(t, int(items[other])) for t in range(len(own)) for other in np.flatnonzero(users == users[t])}
    kept = NextItemLoader(log, rows, 60, "seen", Sampling(draw="in_batch", mask_own=False))
    assert next(iter(kept.epoch(0))).targets.hits is None  # type: ignore[union-attr]


@pytest.mark.parametrize("sequences", [True, False])
def test_an_epoch_has_some_targets_of_each_user(log: Log, sequences: bool) -> None:
    rows = positives(log)
    every = NextItemLoader(log, rows, 16, "seen", Sampling(), sequences=sequences, windows="all")
    some = NextItemLoader(log, rows, 16, "seen", Sampling(per_user=3), sequences=sequences, windows="all")
    count = np.bincount(log.user(every.rows))
    assert len(some) == -(-int(np.minimum(count, 3).sum()) // 16) < len(every)
    drawn = np.zeros(len(log), np.int64)
    for epoch in range(30):
        order, seen = some.order(epoch), []
        assert np.bincount(log.user(order), minlength=len(count)).tolist() == np.minimum(count, 3).tolist()
        drawn[order] += 1
        if epoch < 2:
            for batch in some.epoch(epoch):
                assert batch.targets is not None
                seen += batch.targets.rows[batch.targets.item].tolist()
            assert sorted(seen) == sorted(log.events.columns["item"].take(order).tolist())
    assert set(np.flatnonzero(drawn).tolist()) == set(every.rows.tolist()), "in time each target is drawn"


def test_a_batch_expects_the_items_of_the_targets_that_epochs_have(log: Log) -> None:
    """With some targets of each user, those of users with many count less."""
    rows = positives(log)
    loader = NextItemLoader(log, rows, 10_000, "seen", Sampling(draw="in_batch", per_user=2), windows="all")
    chance = 2 / np.maximum(np.bincount(log.user(loader.rows)), 2)[log.user(loader.rows)]
    expected = np.bincount(log.events.columns["item"].take(loader.rows), chance, len(log.items))
    (batch,) = loader.epoch(0)
    assert batch.targets is not None
    assert batch.targets.log_q is not None
    q = batch.targets.log_q.exp().numpy()[:-1]
    np.testing.assert_allclose(q, expected[batch.targets.rows.numpy()[:-1]], rtol=1e-5)


def test_targets_have_the_features_of_their_own_requests(tmp_path: Path) -> None:
    features = {
        **SCHEMA["features"],
        "user": {"kind": "id"},
        "tens": {"kind": "bucketized", "column": "at", "edges": [*range(10, 120, 10)]},
    }
    log = write_log(tmp_path, schema={"features": features})
    loader = NextItemLoader(log, positives(log), 50, "seen", Sampling(requests=True, age=True))
    order, at, first, last = loader.order(0), 0, log.timestamps[loader.rows].min(), log.timestamps[loader.rows].max()
    for batch in loader.epoch(0):
        targets = batch.targets
        assert targets is not None
        assert targets.requests is not None
        assert targets.age is not None
        own = order[at : at + len(targets.state)]
        at += len(own)
        expected = gather(log, own).requests
        assert list(targets.requests) == list(expected) == ["user", "tens"]
        for name, column in expected.items():
            assert torch.equal(targets.requests[name], column)  # type: ignore[arg-type]
        assert len(batch.requests["tens"]) == batch.layout.requests  # type: ignore[arg-type]
        np.testing.assert_allclose(targets.age, (last - log.timestamps[own]) / (last - first), rtol=1e-5)
    plain = next(iter(NextItemLoader(log, positives(log), 50, "seen", Sampling()).epoch(0))).targets
    assert plain is not None
    assert plain.requests is None
    assert plain.age is None


@pytest.mark.parametrize("count", [1, 3])
def test_a_negative_of_its_own_is_no_item_of_the_user(log: Log, count: int) -> None:
    loader = NextItemLoader(log, positives(log), 64, "seen", Sampling("own", count, unseen=True))
    order, at = loader.order(0), 0
    for batch in loader.epoch(0):
        assert batch.targets is not None
        assert batch.targets.own is not None
        negatives = batch.targets.rows[batch.targets.own].tolist()
        assert len(negatives) == len(batch.targets.state)
        for items in negatives:
            assert len(items) == count
            user = log.user(order[at : at + 1])[0]
            own = slice(log.events.offsets[user], log.events.offsets[user + 1])
            train = np.asarray(log.splits[own]) == 0
            assert not set(items) & set(log.events.columns["item"][own][train].tolist())
            at += 1


def test_targets_draw_their_own_negatives_independently(log: Log) -> None:
    rows = positives(log)
    (batch,) = NextItemLoader(log, rows, 10_000, "seen", Sampling("own", 200)).epoch(0)
    assert batch.targets is not None
    assert batch.targets.own is not None
    drawn, catalog = batch.targets.rows[batch.targets.own].numpy(), list_negatives(log)
    assert len(batch.targets.rows) - batch.targets.negatives == len(np.unique(batch.targets.item))
    assert len(batch.targets.rows) <= 2 * len(catalog)  # each vector once
    assert not np.array_equal(drawn[0], drawn[1])
    share = np.bincount(drawn.ravel(), minlength=len(log.items))[catalog] / drawn.size
    np.testing.assert_allclose(share, 1 / len(catalog), atol=0.006)


def test_a_whole_catalog_has_every_training_item_and_the_unseen_one_once(log: Log) -> None:
    loader = NextItemLoader(log, positives(log), 64, "seen", Sampling("all", 0))
    batch = next(iter(loader.epoch(0)))
    assert batch.targets is not None
    of_training = np.unique(log.events.columns["item"].take(np.flatnonzero(np.asarray(log.splits) == 0)))
    assert batch.targets.rows.tolist() == [0, *of_training]
    assert batch.candidates["item"][0] == 1  # type: ignore[index]
    assert batch.size == len(batch.targets.rows) == len(batch.candidates["item"])  # type: ignore[arg-type]
    assert batch.loss_rows == len(batch.targets.state)


def test_the_catalog_has_the_features_of_items(log: Log) -> None:
    columns = build_catalog(log, np.arange(len(log.items)), 10**9)
    ids = columns["item"]
    assert isinstance(ids, torch.Tensor)
    assert ids.tolist() == log.items.columns["item"].tolist()  # type: ignore[union-attr]
    first = compute_first_timestamps(log)
    for row in range(1, len(log.items)):
        assert first[row] == log.events.times[log.events.columns["item"] == row].min()


def test_an_item_exists_once_an_event_of_it_is_available(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "available", log.events.times + np.arange(len(log)) % 7)
    first = compute_first_timestamps(log)
    for row in range(1, len(log.items)):
        assert log.available is not None
        assert first[row] == log.available[log.events.columns["item"] == row].min()


def test_times_of_targets_allow_sequences_of_whole_histories(tmp_path: Path) -> None:
    seen = {"features": ["item", "time_gap", "time_since_previous"], "max_length": 6}
    log, sampling = write_log(tmp_path, schema={"histories": {"seen": seen}}), Sampling(negatives=8, time=True)
    assert find_sequence_fault(log, "seen")
    assert not find_sequence_fault(log, "seen", sampling)
    loader = NextItemLoader(log, positives(log), 50, "seen", sampling)
    order, at = loader.order(0), 0
    for batch in loader.epoch(0):
        assert batch.targets is not None
        assert batch.targets.gap is not None
        for gap in batch.targets.gap.tolist():
            row, at = int(order[at]), at + 1
            times = log.events.times[log.events.offsets[log.user(np.array([row]))[0]] : row]
            newest = times[times < log.events.times[row]].max()
            assert gap == 2 + int(np.log2(1 + (log.events.times[row] - newest) // log.schema.per_second))
    assert at == len(order) > 0
