"""Batches of runs of users: every row counts once an epoch, context comes from before, and an epoch resumes exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.user_loader import UserLoader
from longrec.features.batch import Batch

SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "features": {"item": {"kind": "id"}},
    "histories": {"all": {"features": ["item"], "max_length": 5}},
}


@pytest.fixture(scope="module")
def log(prepared: Callable[..., Log]) -> Log:
    """Users of 1 to about 100 rows; some rows have no label and are no samples."""
    random = np.random.default_rng(0)
    n = 700
    user = np.minimum(random.geometric(0.15, n), 20)
    click = [None if random.random() < 0.1 else int(random.random() < 0.5) for _ in range(n)]
    return prepared(
        pa.table({"user": user, "item": random.integers(0, 9, n), "t": np.arange(n), "click": click}), SCHEMA
    )


def split_rows(batch: Batch) -> tuple[list[int], list[int]]:
    """Rows that count, and rows of the context."""
    assert batch.rows is not None
    if batch.loss_mask is None:
        return batch.rows.tolist(), []
    return batch.rows[batch.loss_mask].tolist(), batch.rows[~batch.loss_mask].tolist()


def counted(batches: list[Batch]) -> list[list[int]]:
    return [split_rows(batch)[0] for batch in batches]


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(0, 200),
    size=st.integers(1, 90),
    longest=st.integers(1, 40),
    context=st.integers(0, 30),
    epoch=st.integers(0, 3),
    start=st.integers(0, 60),
    shuffle=st.booleans(),
    mirrored=st.booleans(),
    drawn=st.integers(0, 9),
)
def test_an_epoch(
    count: int,
    size: int,
    longest: int,
    context: int,
    epoch: int,
    start: int,
    shuffle: bool,
    mirrored: bool,
    drawn: int,
    log: Log,
) -> None:
    own = np.random.default_rng(drawn).permutation(log.rows_of("train"))[:count]
    options: dict[str, Any] = {
        "seed": drawn,
        "shuffle": shuffle,
        "rows_per_user": longest,
        "context": context,
        "mirrored": mirrored,
    }
    loader = UserLoader(log, own, size, **options)
    batches = list(loader.epoch(epoch))
    whole = counted(batches)
    assert len(whole) == len(loader)
    assert all(whole), "no batch is empty"
    assert sorted(sum(whole, [])) == sorted(own.tolist())  # every row counts once
    assert sum(whole, []) == loader.order(epoch).tolist()
    again = UserLoader(log, own, size, **options)
    assert [split_rows(batch) for batch in again.epoch(epoch, start)] == [
        split_rows(batch) for batch in batches[start:]
    ]
    measured = [batch.loss_rows if shuffle else batch.size for batch in batches]
    share = sum(measured) / max(len(batches), 1)
    # Runs of one user that share a batch share its context too, so that it can only be smaller.
    assert max(measured, default=0) <= max(size, share) + 2 * (longest + context)


def test_a_run_is_whole_and_its_context_stands_right_before_it(log: Log) -> None:
    own = log.rows_of("train")[::2]  # the rows between are no samples of this loader, yet they are context
    loader = UserLoader(log, own, 60, rows_per_user=10, context=7)
    seen: dict[int, set[int]] = {}
    for number, batch in enumerate(loader.epoch(0)):
        rows, context = split_rows(batch)
        assert batch.rows is not None
        assert batch.rows.tolist() == sorted({*rows, *context})
        for row in rows:
            seen.setdefault(number, set()).add(row)
            user = log.user(np.array([row]))[0]
            first = log.events.offsets[user]
            positions = own[log.user(own) == user].tolist()
            length, pieces = len(positions), -(-len(positions) // 10)
            starts = [piece * length // pieces for piece in range(pieces)]
            begin = positions[max(at for at in starts if positions[at] <= row)]
            before = set(range(max(int(first), begin - 7), begin))
            assert before <= {*rows, *context}
        users = set(log.user(np.array(rows)).tolist())
        assert set(log.user(np.array(context, np.int64)).tolist()) <= users
    assert any(log.labels[row] != log.labels[row] for batch in loader.epoch(0) for row in split_rows(batch)[1])


def test_rows_of_any_order_come_in_the_order_of_the_log_when_not_shuffled(log: Log) -> None:
    own = np.random.default_rng(3).permutation(log.rows_of("test"))
    loader = UserLoader(log, own, 20, shuffle=False, rows_per_user=8, context=8)
    assert sum(counted(list(loader.epoch(0))), []) == sorted(own.tolist()) == loader.rows.tolist()
    train = set(log.rows_of("train").tolist())
    assert any(row in train for batch in loader.epoch(0) for row in split_rows(batch)[1])


def test_runs_do_not_depend_on_the_batch_size(log: Log) -> None:
    """So a score, which sees a run and its context, does not either."""

    def around(size: int) -> dict[int, frozenset[int]]:
        loader = UserLoader(log, log.rows_of("valid"), size, shuffle=False, rows_per_user=9, context=9)
        visible = {}
        for batch in loader.epoch(0):
            rows, context = split_rows(batch)
            users = log.user(np.array(rows + context))
            for row, user in zip(rows, users):
                visible[row] = {r for r, u in zip(rows + context, users) if u == user and r <= row}
        return {row: frozenset(list(sorted(before))[-10:]) for row, before in visible.items()}

    assert around(20) == around(41) == around(10_000)


def test_seeds_and_epochs_give_other_orders_and_mirrored_ones_come_in_pairs(log: Log) -> None:
    own = log.rows_of("train")
    orders = {
        tuple(UserLoader(log, own, 64, seed=seed, rows_per_user=16).order(epoch))
        for seed in range(3)
        for epoch in range(4)
    }
    assert len(orders) == 12
    loader = UserLoader(log, own, 64, rows_per_user=16, mirrored=True)
    runs = [loader._order(epoch).tolist() for epoch in range(4)]
    assert runs[1] == runs[0][::-1]
    assert runs[3] == runs[2][::-1]
    assert runs[2] not in (runs[0], runs[1])


def test_the_order_never_changes(log: Log) -> None:
    # A run must resume under a later version too: this pins the permutation of runs itself.
    loader = UserLoader(log, np.arange(40), 4, seed=7, rows_per_user=4)
    assert loader._order(3).tolist() == [3, 5, 4, 7, 8, 0, 9, 2, 1, 6]


def test_batches_are_about_as_large_as_requested(log: Log) -> None:
    """In training by the rows that count, in prediction by all rows: a long context takes memory."""
    own = log.rows_of("train")
    trains = UserLoader(log, own, 64, rows_per_user=20, context=10)
    counted = [batch.loss_rows for batch in trains.epoch(0)]
    assert len(counted) == len(trains) > 5
    assert min(counted) >= 40
    assert max(counted) <= 64 + 30
    predicts = UserLoader(log, own, 64, shuffle=False, rows_per_user=10, context=20)
    sizes = [batch.size for batch in predicts.epoch(0)]
    assert len(sizes) == len(predicts) > len(trains)
    assert max(sizes) <= 64 + 30


def test_rows_of_a_request_share_it_and_are_in_one_batch(prepared: Callable[..., Log]) -> None:
    random = np.random.default_rng(1)
    n = 600
    columns = {
        "user": random.integers(0, 9, n),
        "item": random.integers(0, 9, n),
        "t": random.integers(0, 40, n),
        "click": random.integers(0, 2, n),
        "page": random.integers(0, 2, n),
    }
    schema = {**SCHEMA, "features": {"item": {"kind": "id"}, "page": {"kind": "id"}}}
    log = prepared(pa.table(columns), schema)
    rows = log.rows_of("train")
    loader = UserLoader(log, rows, 50, seed=3, by_request=True)
    batches = list(loader.epoch(0))
    assert sorted(row for batch in batches for row in split_rows(batch)[0]) == rows.tolist()
    seen: set[tuple[int, int]] = set()
    for batch in batches:
        assert batch.layout.kind == "grouped"
        assert batch.users is not None
        assert batch.timestamps is not None
        keys = set(zip(batch.users.tolist(), batch.timestamps.tolist()))
        assert not keys & seen
        seen |= keys
        page = batch.per_candidate("page")
        assert isinstance(page, Tensor)
        requests = set(zip(batch.users.tolist(), batch.timestamps.tolist(), page.tolist()))
        assert len(requests) <= batch.layout.requests < batch.size
        assert batch.rows is not None
        single = gather(log, batch.rows.numpy())
        assert torch.equal(batch.ungroup().histories["all"].offsets, single.histories["all"].offsets)
        one, other = (b.histories["all"].columns["item"] for b in (batch.ungroup(), single))
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert torch.equal(one, other)
    assert len({tuple(split_rows(b)[0]) for b in loader.epoch(1)} & {tuple(split_rows(b)[0]) for b in batches}) == 0
