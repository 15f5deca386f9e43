"""Labels are coin flips: what was recorded late never reaches a request with an earlier timestamp.

A session has two impressions of one coin. The model learns to copy the label of the first one, which its history has.
While the label of the first is not recorded yet, nothing tells the coin of the second one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live_shop import Clock, Trained, serve

import longrec
from longrec.metrics import auc

START, DAY, SECOND, ITEMS = 1_700_000_000_000, 86_400_000, 1_000, 40
USERS, SESSIONS = 150, 8
AFTER = 600 * SECOND
"""Time from the first to the second impression of a session."""
LATE = AFTER + 30 * SECOND
"""Time from the first impression until it, or its label, is recorded."""
KINDS = ("event", "feedback", "change")
"""What is recorded late: the event, its label, or that it has another label. Each for a third of the users."""
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "at", "unit": "ms", "available_at": "arrived"},
    "label": "click",
    "features": {
        "item": {"kind": "id"},
        "clicked": {"kind": "id", "column": "click", "feedback": True, "available_at": "clicked_at"},
    },
    "histories": {"seen": {"features": ["item", "clicked", "time_gap"], "max_length": 1}},
}


class Session(NamedTuple):
    """Two impressions of one user and one coin."""

    user: int
    at: int
    items: tuple[int, int]
    coin: int


def make_sessions(number: int) -> list[Session]:
    """Return one session per user, on one day."""
    random = np.random.default_rng(number)
    days = START + number * DAY
    return [
        Session(user, days + user * SECOND, (user % ITEMS, (user + 1) % ITEMS), int(random.random() < 0.5))
        for user in range(USERS * len(KINDS))
    ]


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that copies the label of the event before."""
    folder = tmp_path_factory.mktemp("coins")
    rows = [
        {"user": one.user, "item": item, "at": at, "arrived": at, "click": one.coin, "clicked_at": at + 60 * SECOND}
        for number in range(SESSIONS)
        for one in make_sessions(number)
        for item, at in zip(one.items, (one.at, one.at + AFTER))
    ]
    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["at"])), folder / "log.parquet")
    config = {
        "name": "copier",
        "data": {"log": str(folder / "log.parquet"), "folder": str(folder / "prepared"), "schema": SCHEMA},
        "model": {"name": "din", "embedding_dim": 4, "attention": [4], "mlp": [16]},
        "fit": {"max_steps": 120, "lr": 0.02, "batch_size": 256, "runs": str(folder / "runs"), "tensorboard": "off"},
        "evaluate": {"n_resamples": 2},
    }
    run = longrec.train(config, quiet=True)
    longrec.export(run, folder / "copier.bundle")
    return Trained(run, folder / "copier.bundle", [])


def measure(scores: dict[int, float], coins: dict[int, int]) -> tuple[float, float]:
    """Return the AUC of the scores of users, and the deviation from 0.5 in standard errors."""
    value = float(auc(np.array([coins[user] for user in scores]), np.array(list(scores.values()))))
    return value, abs(value - 0.5) / float(np.sqrt((len(scores) + 1) / (3 * len(scores) ** 2)))


def test_a_late_record_does_not_reveal_a_coin(copier: Trained, tmp_path: Path) -> None:
    sessions, clock = make_sessions(SESSIONS), Clock()
    coins = {one.user: one.coin for one in sessions}
    before: dict[int, float] = {}
    after: dict[int, float] = {}
    with serve(copier, tmp_path / "state", clock) as service:

        def record(now: int, one: Session, index: int, **change: Any) -> None:
            clock.now = now
            event = {"user": one.user, "item": one.items[index], "at": one.at + AFTER * index, **change}
            service.record(orjson.dumps(event))

        def rank(one: Session, at: int) -> float:
            request = {"user": one.user, "candidates": [one.items[1]], "at": at}
            return float(orjson.loads(service.answer(orjson.dumps(request)))["items"][0]["score"])

        for one in sessions:
            kind, label = KINDS[one.user % len(KINDS)], {"feedback": {"click": one.coin}}
            if kind == "feedback":
                record(one.at, one, 0, context={})
            elif kind == "change":  # of a label that is the coin of another user
                record(one.at, one, 0, feedback={"click": (one.user // len(KINDS)) % 2})
            record(one.at + LATE, one, 0, **label)
            before[one.user] = rank(one, one.at + AFTER)
            after[one.user] = rank(one, one.at + LATE + SECOND)
            record(one.at + LATE + SECOND, one, 1, feedback={"click": one.coin})
    for number, kind in enumerate(KINDS):
        value, deviation = measure({user: before[user] for user in before if user % len(KINDS) == number}, coins)
        assert deviation < 4, (kind, value)
        planted, _ = measure({user: after[user] for user in after if user % len(KINDS) == number}, coins)
        assert planted > 0.95, (kind, planted)  # the same label tells it as soon as it was recorded
    longrec.export_events(tmp_path / "state", tmp_path / "events.parquet")
    into = longrec.predict(copier.run, log=str(tmp_path / "events.parquet"), into=tmp_path / "scores")
    log = pq.read_table(tmp_path / "events.parquet")
    scores = dict(zip(zip(log["user"].to_pylist(), log["at"].to_pylist()), pq.read_table(into)["score"].to_pylist()))
    # A log has one revision of an event, so of a changed one only the last, and only from then on.
    second = {
        one.user: scores[one.user, one.at + AFTER] for one in sessions if KINDS[one.user % len(KINDS)] != "change"
    }
    value, deviation = measure(second, coins)
    assert deviation < 4, value
    np.testing.assert_allclose(list(second.values()), [before[user] for user in second], atol=2e-6)
