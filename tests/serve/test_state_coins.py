"""Labels are coin flips, and states of users are folded by a worker of a stream: no state reveals a coin too early.

A session has two impressions of one coin. The model learns to copy the label of the first one, which its history has.
While that label is not recorded yet, nothing tells the coin of the second one, though a state holds it by now.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from live_shop import Clock, Trained, serve
from test_live_coins import measure
from test_user_states import get_states

import longrec
from longrec.serve.event_streams import EventStream
from longrec.serve.service import Service
from longrec.serve.stream_worker import StreamWorker
from longrec.serve.user_states import UserStates

START, SECOND, ITEMS, USERS = 1_700_000_000_000, 1_000, 10, 600
AFTER = 600 * SECOND
"""Time from the first to the second impression of a session."""
LATE = AFTER + 30 * SECOND
"""Time from the first impression until it, or its label, is recorded."""
AGAIN = LATE + 10 * SECOND
KINDS = ("event", "feedback", "in order")
"""What is recorded late: the event, its label, or nothing. Each for a third of the users."""
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "at", "unit": "ms"},
    "label": "click",
    "features": {
        "item": {"kind": "id"},
        "clicked": {"kind": "id", "column": "click", "feedback": True, "available_after": "1m"},
    },
    "histories": {"seen": {"features": ["item", "clicked"], "max_length": 2}},
}
MODEL = {"name": "sdim", "embedding_dim": 4, "groups": 2, "bits": 1, "recent": 2, "width": 4, "heads": 1, "mlp": [8]}


class Session(NamedTuple):
    """Two impressions of one user and one coin, the first one at ``START`` and a few milliseconds."""

    user: int
    at: int
    items: tuple[int, int]
    coin: int

    @property
    def kind(self) -> str:
        """What is recorded late."""
        return KINDS[self.user % len(KINDS)]


def make_sessions(first: int) -> list[Session]:
    """Return one session of each of many users."""
    random, users = np.random.default_rng(first), range(first, first + USERS)
    return [
        Session(user, START + 1_000 * first + user, (user % ITEMS, (user + 1) % ITEMS), int(random.random() < 0.5))
        for user in users
    ]


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model with a state that copies the label of the event before."""
    folder = tmp_path_factory.mktemp("coins")
    rows = [
        {"user": one.user, "item": item, "at": at, "click": one.coin}
        for first in (0, USERS)
        for one in make_sessions(first)
        for item, at in zip(one.items, (one.at, one.at + AFTER))
    ]
    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["at"])), folder / "log.parquet")
    config = {
        "name": "copier",
        "data": {"log": str(folder / "log.parquet"), "folder": str(folder / "prepared"), "schema": SCHEMA},
        "model": MODEL,
        "fit": {"max_steps": 120, "lr": 0.02, "batch_size": 256, "runs": str(folder / "runs"), "tensorboard": "off"},
        "evaluate": {"n_resamples": 2},
    }
    run = longrec.train(config, quiet=True)
    longrec.export(run, folder / "copier.bundle", states=True)
    return Trained(run, folder / "copier.bundle", [])


@pytest.fixture
def sessions() -> list[Session]:
    return make_sessions(5 * USERS)


class Replay:
    """A service whose states a worker of a stream folds.

    Args:
        url: address of an empty database of a server.
    """

    def __init__(self, service: Service, clock: Clock, url: str, sessions: list[Session]) -> None:
        self.service, self.clock, self.sessions = service, clock, sessions
        self.states = get_states(service, fold_at=1)
        self.stream = EventStream(f"{url}/events", "longrec", "worker")
        self.worker = StreamWorker(service, self.stream, 10_000)
        self.client = redis.Redis.from_url(url)
        self.first = sessions[0].at
        assert self.stream.join() is None

    def record(self, after: int, events: list[dict[str, Any]]) -> None:
        """Add events to the stream at a time, and let the worker record them and fold the states."""
        self.clock.now = self.first + after
        for number, event in enumerate(events):
            self.client.xadd("events", {"event": orjson.dumps(event)}, id=f"{self.clock.now}-{number + 1}")
        self.worker._record(self.stream.read(10_000, 1))
        for queue in self.worker._queues.values():
            queue.fold(self.clock.now, self.clock.now, at_once=True)

    def play(self) -> None:
        """Record all sessions, with what is late."""
        first, label = self._list_first(), self._list_labels()
        self.record(5 * SECOND, [first[one.user] | {"context": {}} for one in self.sessions if one.kind == "feedback"])
        self.play_in_order()
        self.record(LATE, [first[one.user] | label[one.user] for one in self.sessions if one.kind != "in order"])
        second = [{"user": one.user, "item": one.items[1], "at": one.at + AFTER} for one in self.sessions]
        self.record(LATE + SECOND, [event | label[event["user"]] for event in second])
        self.clock.now = self.first + AGAIN

    def play_in_order(self) -> None:
        """Record the first impressions of the sessions of which nothing is late, with their labels."""
        first, label = self._list_first(), self._list_labels()
        self.record(6 * SECOND, [first[one.user] | label[one.user] for one in self.sessions if one.kind == "in order"])

    def _list_first(self) -> dict[int, dict[str, Any]]:
        return {one.user: {"user": one.user, "item": one.items[0], "at": one.at} for one in self.sessions}

    def _list_labels(self) -> dict[int, dict[str, Any]]:
        return {one.user: {"feedback": {"click": one.coin}} for one in self.sessions}

    def score(self, after: int, kind: str) -> dict[int, float]:
        """Return the scores of the second impressions of a kind of sessions, at a time after the first ones."""
        scores = {}
        for one in self.sessions:
            if one.kind == kind:
                body = {"user": one.user, "candidates": [one.items[1]], "at": one.at + after, "allow_unknown": True}
                scores[one.user] = float(orjson.loads(self.service.answer(orjson.dumps(body)))["items"][0]["score"])
        return scores

    def view(self, after: int, kind: str) -> tuple[dict[int, float], int]:
        """Return the label of the first impression as ``/history`` has it, 0.5 for none, and how many are folded."""
        labels, folded = {}, 0
        for one in self.sessions:
            if one.kind == kind:
                body = {"user": one.user, "at": one.at + after, "last": 9, "allow_unknown": True}
                (own,) = orjson.loads(self.service.read_history(orjson.dumps(body)))["histories"]
                values = [event["values"]["clicked"] for event in own["newest"] if event["item"] == one.items[0]]
                labels[one.user] = {"1": 1.0, "0": 0.0}.get(str(values[0]), 0.5) if values else 0.5
                folded += own["folded"]
        return labels, folded


@pytest.fixture
def replay(copier: Trained, tmp_path: Path, redis_url: str, sessions: list[Session]) -> Iterator[Replay]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    clock = Clock()
    with serve(copier, tmp_path / "state", clock) as service:
        yield Replay(service, clock, redis_url, sessions)


def test_a_state_does_not_reveal_a_coin(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    replay.play()
    coins = {one.user: one.coin for one in replay.sessions}
    assert replay.states.store.count() == USERS
    for kind in ("event", "feedback"):
        value, deviation = measure(replay.score(AFTER, kind), coins)
        assert deviation < 4, (kind, value)
        labels, folded = replay.view(AFTER, kind)
        value, deviation = measure(labels, coins)
        assert (deviation < 4, folded) == (True, 0), (kind, value)
        labels, folded = replay.view(AGAIN, kind)
        assert (measure(labels, coins)[0], folded) == (1.0, len(labels))
        with monkeypatch.context() as broken:  # a state is used for requests about times before it was folded
            broken.setattr(UserStates, "_is_usable", staticmethod(lambda *_: True))
            leaked, _ = measure(replay.score(AFTER, kind), coins)
            assert leaked > 0.95, (kind, leaked)
    value, _ = measure(replay.score(AFTER, "in order"), coins)
    assert value > 0.95, value  # the same label tells it if it was recorded by then


@pytest.mark.parametrize("waits", [True, False], ids=["watermark", "present"])
def test_a_state_waits_for_its_labels(replay: Replay, waits: bool) -> None:
    """A watermark at the present would fold events before their labels are available, and never learn them."""
    if not waits:
        replay.states.delay = 0
    replay.play_in_order()
    assert replay.states.store.count() == (0 if waits else USERS // len(KINDS))
    coins = {one.user: one.coin for one in replay.sessions}
    value, deviation = measure(replay.score(AFTER, "in order"), coins)
    assert replay.states.store.count() == USERS // len(KINDS)
    assert value > 0.95 if waits else deviation < 4, value
