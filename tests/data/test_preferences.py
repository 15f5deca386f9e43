"""Pairs of one request, their levels as of the end of training, rewards, and batches with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from torch import Tensor

from longrec.data.alignment_loader import AlignmentLoader
from longrec.data.log import Log
from longrec.data.preferences import Preferences, check_feedback, check_pairs
from longrec.errors import ConfigError, DataError
from longrec.features.sampling import Sampling

START = 1_600_000_000_000
USERS, REQUESTS, SHOWN = 6, 8, 4
END = 6 * 100_000
"""Milliseconds from the start to the end of the training window: six requests of each user."""
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "ms"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "like": {"kind": "id", "feedback": True},
        "buy": {"kind": "id", "feedback": True, "available_at": "buy_at"},
    },
    "histories": {"clicks": {"features": ["item"], "where": {"click": [1]}, "max_length": 5}},
}


def build_table() -> pa.Table:
    random = np.random.default_rng(0)
    user, request, rank = (x.ravel() for x in np.indices((USERS, REQUESTS, SHOWN)))
    t = START + 100_000 * request + user
    click = (random.random(len(user)) < 0.5).astype(int)
    like = click * (random.random(len(user)) < 0.5)
    buy = (random.random(len(user)) < 0.4).astype(int)
    delay = random.integers(1, 4, len(user)) * 100_000  # some come after the end of training
    return pa.table(
        {
            **{"user": user, "item": 10 * (rank // 2) + random.integers(0, 3, len(user)), "t": t, "click": click},
            **{"like": like, "buy": buy, "buy_at": t + delay, "play": random.random(len(user)).astype(np.float32)},
        }
    )


@pytest.fixture(scope="module")
def log(prepared: Callable[..., Log]) -> Log:
    split = {
        **{"by": "time", "valid_from": START + END, "test_from": START + END + 100_000},
    }
    return prepared(build_table(), SCHEMA, split=split)


def columns_of(log: Log) -> dict[str, np.ndarray]:
    """The columns of the raw table in the order of the log."""
    table = build_table().sort_by([("user", "ascending"), ("t", "ascending")])
    columns = {name: table[name].to_numpy() for name in table.column_names}
    np.testing.assert_array_equal(columns["t"], log.timestamps)
    return columns


LEVELS = ("label", "like", "buy")


def test_pairs_are_of_one_request_with_a_strictly_higher_level(log: Log) -> None:
    """Test 10 of the notes, against the raw table: a later purchase is never an exposure-only loser."""
    preferences = Preferences(log, LEVELS, {}, losers=99)
    columns, rows = columns_of(log), log.rows_of("train")
    entry, loser = preferences.draw_pairs(rows, np.random.default_rng(0))
    winner = rows[entry]
    actual = set(zip(winner.tolist(), loser.tolist()))
    assert len(actual) == len(entry)
    # Levels of each item of a request: the largest of its rows.
    least: dict[tuple[int, ...], int] = {}
    most: dict[tuple[int, ...], int] = {}
    bought_later = 0
    for row in rows:
        shown = tuple(int(columns[name][row]) for name in ("user", "t", "item"))
        own = 2 if columns["like"][row] else int(columns["click"][row])
        settled = columns["buy_at"][row] < START + END
        bought_later += int(columns["buy"][row] and not settled)
        least[shown] = max(least.get(shown, 0), 3 if columns["buy"][row] and settled else own)
        most[shown] = max(most.get(shown, 0), 3 if columns["buy"][row] or not settled else own)
    expected = set()
    for i in rows:
        for j in rows:
            one, other = (tuple(int(columns[name][row]) for name in ("user", "t", "item")) for row in (i, j))
            if one[:2] == other[:2] and least[one] > most[other]:
                expected.add((int(i), int(j)))
    assert actual == expected
    assert bought_later > 10
    assert set(preferences.preferred.tolist()) == {i for i, _ in expected}


def test_a_row_has_at_most_so_many_pairs(log: Log) -> None:
    rows = log.rows_of("train")
    every = Preferences(log, ("label",), {}, losers=99).draw_pairs(rows, np.random.default_rng(0))
    for losers in (1, 2):
        preferences = Preferences(log, ("label",), {}, losers=losers)
        drawn = set()
        for seed in range(30):
            entry, loser = preferences.draw_pairs(rows, np.random.default_rng(seed))
            counts, full = np.bincount(entry, minlength=len(rows)), np.bincount(every[0], minlength=len(rows))
            np.testing.assert_array_equal(counts, np.minimum(full, losers))
            drawn |= set(zip(entry.tolist(), loser.tolist()))
        assert drawn == set(zip(every[0].tolist(), every[1].tolist()))


def test_rewards_are_sums_of_what_was_available(log: Log) -> None:
    preferences = Preferences(log, (), {"label": 1.0, "like": 3.0, "buy": 10.0})
    columns, rows = columns_of(log), log.rows_of("train")
    reward = preferences.rewards_of(rows)
    late = columns["buy_at"][rows] >= START + END
    assert late.any()
    np.testing.assert_array_equal(np.isnan(reward), late)
    own = columns["click"] + 3 * columns["like"] + 10 * columns["buy"]
    np.testing.assert_allclose(reward[~late], own[rows][~late])
    assert Preferences(log, LEVELS, {}).reward is None


def test_levels_of_a_split_are_those_before_the_next_one(log: Log) -> None:
    train, valid, test = (Preferences(log, ("buy",), {}, split=split) for split in ("train", "valid", "test"))
    columns = columns_of(log)
    for preferences, end in ((train, END), (valid, END + 100_000), (test, 10**9)):
        late = columns["buy_at"][preferences.rows] >= START + end
        np.testing.assert_array_equal(preferences.possible > preferences.reached, late)
    assert (test.possible == test.reached).all()


@pytest.mark.parametrize("sequences", [True, False])
def test_a_batch_has_the_items_of_a_pair_for_one_state(log: Log, sequences: bool) -> None:
    preferences = Preferences(log, ("like", "label"), {"like": 1.0})
    own = log.rows_of("train")
    own = own[(log.labels.take(own) > 0.5) & (log.user(own) != 2)]
    loader = AlignmentLoader(
        log, own, 16, "clicks", Sampling("none", 0, requests=True), preferences=preferences, sequences=sequences
    )
    assert loader.by_request != sequences
    pairs, weights = 0, 0.0
    for batch in loader.epoch(0):
        targets = batch.targets
        assert targets is not None
        assert targets.pairs is not None
        assert targets.reward is not None
        winner, loser = targets.pairs.numpy()
        count = len(targets.state) - len(loser)
        np.testing.assert_array_equal(loser, count + np.arange(len(loser)))
        np.testing.assert_array_equal(targets.state[winner], targets.state[loser])
        items = targets.rows[targets.item].numpy()
        assert (items[winner] != items[loser]).all()
        assert targets.weight is not None
        assert not targets.weight[loser].any()
        assert targets.reward[loser].isnan().all()
        if sequences:
            assert targets.requests is not None
            user = targets.requests["user"]
            assert isinstance(user, Tensor)
            assert user[winner].equal(user[loser])
        pairs += len(loser)
        weights += float(targets.weight.sum())
    at = loader.loss_rows
    assert weights == np.isin(at, own).sum()
    assert set(at.tolist()) <= set(own.tolist())
    assert pairs == np.isin(at, preferences.preferred).sum() > 20


def test_a_log_without_feedback_or_pairs_is_refused(log: Log, prepared: Callable[..., Log]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_feedback(log, ("label", "lke", "item"), ["stars"])
    text = str(caught.value)
    assert "the feedback 'lke' is no feature; did you mean 'like'?" in text
    assert "the feedback 'item' is no feedback" in text
    assert "the feedback 'stars' is no feature" in text
    table = build_table()
    t = pa.array(START + np.random.default_rng(1).permutation(len(table)) * 1_000)
    alone = prepared(table.set_column(table.schema.get_field_index("t"), "t", t), SCHEMA)
    with pytest.raises(DataError, match="requests of 1 rows on average, none with a target above another row"):
        check_pairs(Preferences(alone, ("label",), {}), alone.rows_of("train"))
    timeless = {name: value for name, value in SCHEMA.items() if name not in ("time", "histories")}
    timeless["features"] = {name: one for name, one in SCHEMA["features"].items() if name != "buy"}
    with pytest.raises(ConfigError, match="data.schema.time: is required; preferences are among"):
        check_feedback(prepared(table, timeless, split={"by": "user"}), ("label",), [])
    ones = prepared(
        table.set_column(table.schema.get_field_index("click"), "click", pa.array([1] * len(table))), SCHEMA
    )
    with pytest.raises(ConfigError, match="'label' is 1 in every training row"):
        check_feedback(ones, ("label",), [])
