"""Workers of a stream: no event lost and none doubled, however they end, and the states of all events."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import redis
from live_shop import Clock, Trained, record, serve, train_shop
from test_user_states import MODELS, WHOLE, get_states

import longrec
from longrec.cli import main
from longrec.errors import ServerError, StoreError
from longrec.serve import event_streams, stream_worker
from longrec.serve.event_streams import EventStream
from longrec.serve.live_events import LiveEvents
from longrec.serve.recorded_events import RecordedEvents
from longrec.serve.service import Service
from longrec.serve.stream_worker import StreamWorker

BATCH = 25


class Killed(BaseException):
    """The end of a worker, at any of its steps."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    histories = {name: WHOLE["histories"][name] for name in ("seen", "liked")}
    schema = {**WHOLE, "histories": histories}
    return train_shop(tmp_path_factory.mktemp("streams"), schema, MODELS["hpmn"], states=True)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client


def list_events(shop: Trained) -> list[dict[str, Any]]:
    """Return events in the order in which they are sent: some twice, some with feedback that changes, some late."""
    rng, events = np.random.default_rng(4), list[dict[str, Any]]()
    for row in shop.rows:
        context = {"place": row["place"], "price": row["price"]}
        event = {"user": row["user_id"], "item": row["item_id"], "at": row["at"], "context": context}
        events.append(event)
        if rng.random() < 0.2:
            events.append(event)
        for stars in (1, 5)[: rng.integers(0, 3)]:
            events.append({**event, "context": None, "feedback": {"stars": stars}})
    late = {list_key(events[at]) for at in rng.integers(0, len(events), 5).tolist()}  # more than the states wait for
    return [one for one in events if list_key(one) not in late] + [one for one in events if list_key(one) in late]


def list_key(event: dict[str, Any]) -> tuple[int, str, int]:
    return event["user"], event["item"], event["at"]


def fill(client: redis.Redis, events: list[dict[str, Any]], first: int = 1_700_000_000_000) -> None:
    for number, event in enumerate(events):
        own = {name: value for name, value in event.items() if value is not None}
        client.xadd("events", {"event": orjson.dumps({**own, "allow_unknown": True})}, id=f"{first + number}-0")


@contextlib.contextmanager
def working(shop: Trained, url: str, state: str | Path, clock: Clock, name: str = "worker") -> Iterator[StreamWorker]:
    with serve(shop, state, clock) as service:
        get_states(service)
        yield StreamWorker(service, EventStream(f"{url}/events", "longrec", name), BATCH)


def list_stored(service: Service) -> dict[str, Any]:
    """Return everything that is stored of the events."""
    live = service.recorder.live_stores[0][0]
    records = service.recorder.state.recorded
    assert records is not None
    events = {
        user: (own.times.tolist(), {name: column.tolist() for name, column in own.columns.items()})
        for user, own in live.backend.scan()
    }
    return {"events": events, "records": list(records.scan())}


def list_states(service: Service) -> dict[int, np.ndarray]:
    """Return the states of all users, folded from whole histories."""
    states, histories = get_states(service), service.served.encoder.histories
    live = service.recorder.live_stores[0][0]
    users = [user for user, _ in live.backend.scan()]
    own = [stream_worker_user(service, user) for user in users]
    for user in users:
        states.remove(user, -1)
    return {u: np.frombuffer(s.content, np.float32) for u, s in states.fold(histories, own, Clock.now + 1).items()}


def stream_worker_user(service: Service, user: int) -> Any:
    from longrec.serve.user_states import UserHistory

    return UserHistory(user, service.served.encoder.look_up_user(user))


def interrupt(monkeypatch: pytest.MonkeyPatch, decide: Callable[[], BaseException | None]) -> None:
    """Let calls of stores and of the server fail, before they have an effect or after it."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            if (error := decide()) is not None:
                raise error
            result = call(*arguments, **named)
            if (error := decide()) is not None:
                raise error
            return result

        return run

    monkeypatch.setattr(LiveEvents, "write", wrap(LiveEvents.write))
    monkeypatch.setattr(RecordedEvents, "write", wrap(RecordedEvents.write))
    monkeypatch.setattr(event_streams, "call_server", wrap(event_streams.call_server))


@pytest.mark.parametrize("where", ["folder", "server"])
def test_a_worker_that_ends_at_any_step(
    shop: Trained, where: str, tmp_path: Path, redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored equals what single events have stored, revisions included, and the states are those of it."""
    clock, events = Clock(), list_events(shop)
    clock.now = max(row["at"] for row in shop.rows) + 1_000_000
    with serve(shop, tmp_path / "single", clock) as service:
        for event in events:
            own = {"user_id": event["user"], "item_id": event["item"], "at": event["at"], "place": "", "price": 0}
            record(service, own, context=event["context"], feedback=event.get("feedback"))
        expected, states = list_stored(service), list_states(service)
    fill(client, events)
    client.xadd("events", {"event": b"{"}, id="1800000000000-0")
    state = str(tmp_path / "state") if where == "folder" else f"{redis_url}/state"
    rng, ends = np.random.default_rng(9), 0
    with monkeypatch.context() as patched:
        interrupt(patched, lambda: Killed() if rng.random() < 0.05 else None)
        while ends < 12:
            with working(shop, redis_url, state, clock) as worker:
                try:
                    worker.run(until_empty=True)
                except Killed:
                    ends += 1
                else:
                    break
    assert ends > 5
    with working(shop, redis_url, state, clock) as worker:
        worker.run(until_empty=True)
        assert list_stored(worker._service) == expected
        folded = get_states(worker._service).store
        left = {user: one for user in states if (one := folded.get(user)) is not None}
        assert left
        for user, one in left.items():
            if one.until == clock.now - get_states(worker._service).delay:
                np.testing.assert_allclose(np.frombuffer(one.content, np.float32), states[user], atol=1e-5)
        for user, whole in list_states(worker._service).items():
            np.testing.assert_allclose(whole, states[user], atol=1e-5)
    assert client.xpending("events", "longrec")["pending"] == 0
    assert client.xlen("events:refused") == 1


def test_states_follow_the_stream(shop: Trained, tmp_path: Path, redis_url: str, client: redis.Redis) -> None:
    """A worker that is behind folds up to where the stream is, so that the next entries change no state."""
    clock, events = Clock(), [event for event in list_events(shop) if event["context"] is not None]
    events.sort(key=lambda event: event["at"])
    clock.now = events[-1]["at"] + 50_000_000
    for number, event in enumerate(events):
        own = {"event": orjson.dumps({**event, "allow_unknown": True})}
        client.xadd("events", own, id=f"{event['at']}-{number}")
    with working(shop, redis_url, tmp_path / "state", clock) as worker:
        removed: list[int] = []
        store = get_states(worker._service).store
        live = worker._recorder.live_stores[0][0]
        live.removals.insert(
            0, lambda times: removed.extend(u for u in times if (s := store.get(u)) and s.until > times[u])
        )
        entries = worker._stream
        assert entries.join() is None
        for _ in range(4):
            own = entries.read(BATCH, 1)
            worker._record(own)
            for queue in worker._queues.values():
                queue.fold(own[-1].position[0], clock.now, at_once=True)
        assert worker.folded > 3
        assert removed == []
        worker.run(until_empty=True)
        assert removed == []


def test_refused_entries(shop: Trained, tmp_path: Path, redis_url: str, client: redis.Redis) -> None:
    """They are written aside with the reason, and the others are recorded."""
    row = shop.rows[0]
    event = {"user": row["user_id"], "item": row["item_id"], "context": {"place": "top", "price": 1}}
    bodies = [b"[]", orjson.dumps({**event, "item": "none"}), orjson.dumps({**event, "at": "noon"})]
    bodies += [orjson.dumps({**event, "context": {"place": ["top"], "price": 1}}), orjson.dumps(event)]
    bodies.append(orjson.dumps({**event, "context": None, "feedback": {"stars": 1}, "at": 5}))
    for body in bodies:
        client.xadd("events", {"event": body})
    client.xadd("events", {"other": b"1"})
    now = client.xinfo_stream("events")["first-entry"][0]
    with working(shop, redis_url, tmp_path / "state", Clock()) as worker:
        worker.run(until_empty=True)
        assert (worker.counts.events, worker.counts.refused) == (1, 6)
        ((_, own),) = worker._recorder.live_stores[0][0].backend.scan()
        assert abs(int(own.times[0]) - int(now.split(b"-")[0])) < 10_000  # without a timestamp that of its entry
    refused: Any = client.xrange("events:refused")
    reasons = {fields[b"reason"].decode().split(";")[0] for _, fields in refused}
    assert {fields[b"event"] for _, fields in refused} == {*bodies, b""} - {bodies[4]}
    assert "no field 'event'" in reasons
    assert any(reason.startswith("item: 1 unknown item: 'none'") for reason in reasons)
    assert any(reason.startswith("event: no event of this user") for reason in reasons)
    assert any(reason.startswith("context.place: ") for reason in reasons)


def test_a_server_that_is_away(
    shop: Trained,
    tmp_path: Path,
    redis_url: str,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Calls that fail, or whose response is lost, are repeated after a pause, with the same effect."""
    clock, events = Clock(), list_events(shop)
    fill(client, events[:100])
    client.xadd("events", {"event": b"{"})
    monkeypatch.setattr(stream_worker, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(stream_worker, "_LAST_PAUSE", 0.001)
    with working(shop, redis_url, tmp_path / "one", clock) as worker:
        worker.run(until_empty=True)
        expected = list_stored(worker._service)
    client.xgroup_destroy("events", "longrec")
    client.delete("events:refused")
    rng = np.random.default_rng(3)
    interrupt(monkeypatch, lambda: ServerError("redis://host", "no response") if rng.random() < 0.1 else None)
    with working(shop, redis_url, tmp_path / "two", clock) as worker:
        worker.run(until_empty=True)
        assert list_stored(worker._service) == expected
    assert client.xlen("events:refused") == 1
    assert capsys.readouterr().err.count("redis://host: no response\n  Again in 0.001 s; nothing is lost") > 3


def test_one_worker_at_a_time(shop: Trained, tmp_path: Path, redis_url: str, client: redis.Redis) -> None:
    """Another one waits and then goes on with what was left. A restarted one takes over at once."""
    fill(client, list_events(shop)[:40])
    first, second, again = (EventStream(f"{redis_url}/events", "longrec", name) for name in ("a", "b", "a"))
    assert first.join() is None
    assert len(first.read(30, 1)) == 30
    assert second.join() == "a"
    assert again.join() is None
    with pytest.raises(StoreError, match="the worker 'a' reads it now"):
        first.stay()
    again.leave()
    assert second.join() is None
    entries, trimmed = second.claim()
    assert ([one.position for one in entries], trimmed) == ([(1_700_000_000_000 + n, 0) for n in range(30)], 0)
    assert second.count_waiting() == len(client.xrange("events")) - 30
    client.xtrim("events", maxlen=20, approximate=False)
    entries, trimmed = second.claim()
    assert (len(entries), trimmed) == (10, 20)
    second.leave()


def test_the_command(
    shop: Trained, tmp_path: Path, redis_url: str, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(client, list_events(shop))
    command = ["stream", str(shop.bundle), "--from", f"{redis_url}/events", "--state", str(tmp_path / "state")]
    assert main([*command, "--until-empty", "--json", "-"]) == 0
    done = orjson.loads(capsys.readouterr().out)
    assert done["events"] > 140
    assert (done["refused"], done["trimmed"]) == (0, 0)
    timer = threading.Timer(1.5, os.kill, [os.getpid(), signal.SIGTERM])
    before = signal.getsignal(signal.SIGTERM)
    timer.start()
    assert main(command) == 0  # after the signal
    assert signal.getsignal(signal.SIGTERM) == before
    assert "0 events, 0 recorded before" in capsys.readouterr().out
    assert client.exists("events:longrec:worker") == 0
    assert longrec.export_events(tmp_path / "state", tmp_path / "new.parquet") == len(
        {(row["user_id"], row["item_id"], row["at"]) for row in shop.rows}
    )
    assert main([*command, "--batch", "0"]) == 2
