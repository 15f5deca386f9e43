"""Late, repeated or changed events change no response for an earlier timestamp, and the next log has the same data."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
import token_shop
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.gather import gather_history
from longrec.data.log import Log
from longrec.errors import StoreError
from longrec.exporting.bundle import Bundle
from longrec.exporting.write import _select_history
from longrec.features.fields import AVAILABLE
from longrec.serve.histories import EventHistories
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_events import LiveEvents
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.store import backends
from longrec.store.disk_store import DiskStore
from longrec.store.token_store import TokenStore
from longrec.store.visibility import read_visible_tokens
from longrec.training.compress import compress

MINUTE = 60_000
NOW = token_shop.START + 30 * token_shop.DAY
FEATURES = token_shop.SCHEMA["features"]
SCHEMA: dict[str, Any] = {
    **token_shop.SCHEMA,
    "features": {
        **FEATURES,
        "dwell": {"kind": "bucketized", "edges": [5, 20], "feedback": True, "available_at": "dwell_known"},
    },
    "histories": {
        "seen": {"features": ["item_id", "place", "stars", "dwell", "time_gap"], "max_length": 4},
        "liked": {"features": ["item_id", "price", "time_gap"], "max_length": 3, "where": {"stars": {"at_least": 3}}},
        "top": {"features": ["item_id"], "max_length": 3, "where": {"place": "top"}},
    },
}
Event = dict[str, Any]


def raw_events() -> dict[str, list[Any]]:
    """Return the log of the token shop, with a column that is recorded later."""
    columns = token_shop.events(250)
    columns["dwell"] = [float(n * 7 % 30) for n in range(250)]
    columns["dwell_known"] = [at + 5 * MINUTE for at in columns["at"]]
    return columns


@pytest.fixture(scope="module")
def shop() -> token_shop.TokenShop:
    return token_shop._make(raw_events(), SCHEMA, token_shop.SOURCE, token_shop.POOLING, token_shop.OF)


@dataclass
class Story:
    """A server, a clock, all recorded events, and all responses.

    Attributes:
        event_rows: row of a log, by user, item and time.
        changed: time of the last change of recorded values, by user.
    """

    service: Service
    now: int = NOW
    event_rows: dict[tuple[str, int, int], Event] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    answers: list[tuple[bytes, int, str, Any]] = field(default_factory=list)

    def clock(self) -> int:
        return self.now

    def record(self, user: str, item: int, at: int, feedback: Event, context: Event | None) -> None:
        event = {"user": user, "item": item, "at": at, "feedback": feedback, "context": context}
        said = self.service.record(orjson.dumps({**event, "allow_unknown": True}))
        key = (user, item, at)
        old, dwell_time = self.event_rows.get(key), {} if "dwell" not in feedback else {"dwell_known": said.recorded_at}
        row = {**(old or {}), **(context or {}), **feedback, **dwell_time, "recorded_at": said.visible}
        row["click"] = row.pop("label", row.get("click"))
        if old is not None and any(n in old and old[n] != v for n, v in {**(context or {}), **feedback}.items()):
            self.changed[user] = self.now
        elif old is not None and "dwell" in feedback and "dwell" in old:
            row["dwell_known"] = old["dwell_known"]  # unchanged: available since it was recorded first
        self.event_rows[key] = row

    def rank(self, user: str, at: int) -> None:
        request = {"user": user, "candidates": [100, 104], "at": at, "allow_unknown": True}
        body = orjson.dumps({**request, "context": {"place": "side", "price": 2.25}})
        self.answers.append((body, at, user, orjson.loads(self.service.answer(body))["items"]))

    def replay(self) -> None:
        """Repeat every request: the responses are unchanged."""
        assert self.answers
        for body, _, _, items in self.answers:
            assert orjson.loads(self.service.answer(body))["items"] == items

    def step(self, draw: random.Random, users: list[str], items: list[int]) -> None:
        """Record something: mostly an event, late or not, or more feedback on a recorded one, or another value."""
        self.now += draw.choice([1, 1_000, 20_000, 5 * MINUTE])
        mine = [key for key in self.event_rows if key[0] in users]
        what = draw.choice(["new", "new", "late", "late", "again", "dwell", "correct"])
        if what in ("new", "late") or not mine:
            at = self.now - (draw.choice([1, MINUTE // 2, 9 * MINUTE, 120 * MINUTE]) if what == "late" else 0)
            # Recorded values are available, null too. Missing values read "not yet known" here, and null in a log.
            feedback = {"stars": draw.choice([None, 1.0, 2.0, 3.0, 5.0]), "label": draw.randrange(2)}
            self.record(draw.choice(users), draw.choice(items), at, feedback, context(draw))
        else:
            key = draw.choice(mine)
            row = self.event_rows[key]
            held = {name: row[name] for name in ("place", "price")}
            if what == "again":
                self.record(*key, {}, held)
            elif what == "dwell" and "dwell" not in row:
                self.record(*key, {"dwell": float(draw.randrange(30))}, None)
            else:
                other = {"stars": float(draw.randrange(1, 6))}
                self.record(*key, other, context(draw))
        for user in users:
            for at in (self.now, self.now - draw.choice([500, MINUTE, 60 * MINUTE])):
                self.rank(user, at)


def context(draw: random.Random) -> Event:
    return {"place": draw.choice(["top", "side", "foot"]), "price": draw.choice([0.5, 2.25, 3.5])}


@contextlib.contextmanager
def open_story(shop: token_shop.TokenShop, state: str, tokens: str | None = None) -> Iterator[Story]:
    story = Story.__new__(Story)
    locations = {} if tokens is None else {"tokens": tokens}
    story.__init__(Service(shop.bundle, Settings(locations, str(shop.source), state), lambda: story.now))  # type: ignore[misc]
    try:
        yield story
    finally:
        story.service.close()


@pytest.fixture(scope="module")
def story(shop: token_shop.TokenShop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with open_story(shop, str(tmp_path_factory.mktemp("late") / "state")) as opened_story:
        yield opened_story


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_no_answer_changes_afterwards(story: Story, seed: int) -> None:
    """A new user each time. The same timestamps are ranked while events are recorded, and again afterwards."""
    draw = random.Random(seed)
    user, story.answers = f"new-{seed}-{story.now}", []
    for _ in range(8):
        story.step(draw, [user], [100, 101, 777])
    story.replay()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_next_log_sees_what_the_server_saw(shop: token_shop.TokenShop, seed: int, tmp_path: Path) -> None:
    """Users of the bundle and new ones. A log of all recorded events is prepared, and read at every timestamp."""
    draw = random.Random(seed)
    columns = raw_events()
    users, items = ["u1", "u2", "fresh"], [100, 101, 102, 777]
    with open_story(shop, str(tmp_path / "state")) as story:
        for _ in range(40):
            story.step(draw, users, items)
        story.replay()
        columns["recorded_at"] = [None] * len(columns["at"])
        # events of one timestamp are ordered as in the server
        for user, item, at in sorted(story.event_rows):
            row = {**story.event_rows[user, item, at], "user_id": user, "item_id": item, "at": at}
            for name, values in columns.items():
                values.append(row.get(name))
        columns["dwell_known"] = [to_milliseconds(value) for value in columns["dwell_known"]]
        columns["recorded_at"] = [to_milliseconds(value) for value in columns["recorded_at"]]
        schema = {**SCHEMA, "time": {**SCHEMA["time"], "available_at": "recorded_at"}}
        log = token_shop.open_log(tmp_path / "next", columns, schema)
        compared = 0
        for _, at, user, _ in story.answers:
            if story.changed.get(user, 0) < at:
                compare(story.service, log, user, at)
                compared += 1
        assert compared > 30


def to_milliseconds(value: Any) -> int | None:
    if isinstance(value, str):
        return int(np.datetime64(value.removesuffix("Z"), "ms").astype(np.int64))
    return value


def compare(service: Service, log: Log, user: str, at: int) -> None:
    """Compare the histories of a user at a timestamp in the server and in the log."""
    online = service.served.encoder._histories.read_stored(
        key_number(user), service.served.encoder.look_up_user(user), at
    )
    row, timestamps = log.users.rows(token_shop.pa.array([user]), "user"), np.array([at])
    for name, history in online.items():
        events, offsets = log.select_history_at(name, row, timestamps)
        offline = gather_history(log, name, events, offsets, timestamps)
        for column, values in history.items():
            assert np.asarray(values).tolist() == offline.columns[column].tolist(), (name, column)  # type: ignore[union-attr]


def read_last_token(service: Service, user: str, at: int) -> Any:
    assert service._state is not None
    store = next(iter(service._state.stores.values()))
    return read_visible_tokens(store, key_number(user), at, 1)


def test_a_further_version_is_read_from_when_it_was_recorded(story: Story) -> None:
    """Changed context, label and stars: the event and its token before and after the change."""
    user, top, foot = f"once-{story.now}", {"place": "top", "price": 0.5}, {"place": "foot", "price": 3.5}
    story.now += MINUTE
    first, story.answers = story.now, []
    story.record(user, 104, first, {"label": 0, "stars": 5.0}, top)
    story.now += 5 * MINUTE
    story.rank(user, story.now)
    token, seen = read_last_token(story.service, user, story.now), count_events(story.service, user, story.now)
    assert seen == {"seen": 1, "liked": 1, "top": 1}
    story.record(user, 104, first, {"label": 1, "stars": 1.0}, foot)
    again = story.event_rows[user, 104, first]
    assert to_milliseconds(again["recorded_at"]) == story.now
    story.record(user, 104, first, {"label": 1, "stars": 1.0}, foot)  # and recording this again changes nothing
    assert story.event_rows[user, 104, first]["recorded_at"] == again["recorded_at"]
    story.replay()
    assert count_events(story.service, user, story.now) == seen
    assert read_last_token(story.service, user, story.now).vectors.tobytes() == token.vectors.tobytes()
    later = read_last_token(story.service, user, story.now + 1)
    assert count_events(story.service, user, story.now + 1) == {"seen": 1, "liked": 0, "top": 0}
    assert (len(later), later.visible.tolist(), later.sides["label"].tolist()) == (1, [story.now], [2])
    assert later.vectors.tobytes() != token.vectors.tobytes()
    story.now += MINUTE
    story.record(user, 104, first, {"stars": 4.0}, top)  # the first values again: a third version
    story.replay()
    assert count_events(story.service, user, story.now + 1) == seen
    assert count_events(story.service, user, story.now) == {"seen": 1, "liked": 0, "top": 0}


def count_events(service: Service, user: str, at: int) -> dict[str, int]:
    """Count the events of each history."""
    histories = service.served.encoder._histories.read_stored(
        key_number(user), service.served.encoder.look_up_user(user), at
    )
    return {name: len(next(iter(columns.values()))) for name, columns in histories.items()}


def test_late_feedback_passes_a_filter_from_then_on(story: Story) -> None:
    user, context = f"late-{story.now}", {"place": "side", "price": 0.5}
    at = story.now
    story.record(user, 101, at, {}, context)
    story.now += 60 * MINUTE
    visible = story.event_rows[user, 101, at]["recorded_at"]
    story.record(user, 101, at, {"stars": 4.0}, None)
    assert story.event_rows[user, 101, at]["recorded_at"] == visible
    assert count_events(story.service, user, story.now) == {"seen": 1, "liked": 0, "top": 0}
    assert count_events(story.service, user, story.now + 1) == {"seen": 1, "liked": 1, "top": 0}


def test_an_event_of_the_bundle_recorded_again_is_read_as_before_until_then(
    shop: token_shop.TokenShop, tmp_path: Path
) -> None:
    columns = raw_events()
    index = max(n for n, user in enumerate(columns["user_id"]) if user == "u1")
    at, item = columns["at"][index], columns["item_id"][index]
    context = {name: columns[name][index] for name in ("place", "price")}
    with open_story(shop, str(tmp_path / "state")) as story:
        for timestamp in (at, at + 1, at + 10 * MINUTE, NOW):
            story.rank("u1", timestamp)
        story.record("u1", item, at, {}, context)  # as in the bundle
        assert to_milliseconds(story.event_rows["u1", item, at]["recorded_at"]) == at
        live = story.service._state.live[story.service.bundle.digest]  # type: ignore[union-attr]
        assert len(live.backend) == 0  # type: ignore[union-attr]
        story.replay()
        before = story.service.answer(story.answers[-1][0].replace(str(NOW).encode(), str(NOW + 1).encode()))
        story.record("u1", item, at, {}, {**context, "place": "top" if context["place"] != "top" else "foot"})
        assert to_milliseconds(story.event_rows["u1", item, at]["recorded_at"]) == NOW
        story.replay()
        assert story.service.answer(story.answers[-1][0].replace(str(NOW).encode(), str(NOW + 1).encode())) != before


def test_a_bundle_carries_when_its_events_became_available(shop: token_shop.TokenShop, tmp_path: Path) -> None:
    """Histories read from the events of a bundle, with a live store and without, equal those of the log."""
    columns = raw_events()
    columns["recorded_at"] = [at + (n % 4) * 20 * token_shop.DAY // 24 for n, at in enumerate(columns["at"])]
    schema = {**SCHEMA, "time": {**SCHEMA["time"], "available_at": "recorded_at"}}
    log = token_shop.open_log(tmp_path, columns, schema)
    events = _select_history(log.fitted, log.events)
    assert AVAILABLE in events.columns
    manifest = SimpleNamespace(inputs=[SimpleNamespace(group=f"h.{name}") for name in log.schema.histories])
    bundle: Any = SimpleNamespace(
        fitted=log.fitted, store=DiskStore(events), items=log.items, manifest=manifest, digest="0" * 64
    )
    live = LiveEvents(str(tmp_path / "live"), bundle)
    with contextlib.closing(live):
        for histories in (EventHistories(bundle), EventHistories(bundle, live)):
            for row in range(1, 6):
                for at in np.quantile(columns["at"], [0.3, 0.6, 0.9, 1]).astype(np.int64).tolist():
                    number = key_number(log.users.key(row))
                    for name, own in histories.read_stored(number, row, at).items():
                        rows, offsets = log.select_history_at(name, np.array([row]), np.array([at]))
                        offline = gather_history(log, name, rows, offsets, np.array([at])).columns
                        assert {c: np.asarray(v).tolist() for c, v in own.items()} == {
                            c: v.tolist()  # type: ignore[union-attr]
                            for c, v in offline.items()
                        }


def write_previous_format(location: str, old: backends.Backend) -> None:
    """Write the live events of a store in the format of version 0.3, without times of recording."""
    types = {n: t for n, t in old.types.items() if n != AVAILABLE and not n.startswith("since.")}
    attributes = {**old.attributes, "format": "longrec-live-1"}
    with contextlib.closing(backends.create(location, types, "instance", attributes)) as new:
        for user, events in old.scan():
            new.append(np.full(len(events), user), events.times, {n: events.columns[n] for n in types})


@pytest.mark.parametrize("where", ["folder", "server"])
def test_events_of_an_earlier_version_are_taken_over(
    shop: token_shop.TokenShop, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("redis_url") if where == "server" else str(tmp_path / "old")
    bundle = Bundle.open(shop.bundle)
    with contextlib.closing(LiveEvents(f"{url}/late-made", bundle)) as first:
        for n in range(6):
            own = {"instance": 10 * n, "item": 1 + n, "place": 2, "price": 2, "stars": 3, "dwell": 2}
            own |= {"known.stars": NOW, "known.dwell": NOW, "met.liked": n % 2, "met.top": 0}
            for write in first.prepare_update(7 + n % 2, 0, NOW + n, own, None, NOW + n, overwrite=False).writes:
                write()
        expected = [
            (user, e.times.tolist(), {n: c.tolist() for n, c in e.columns.items()}) for user, e in first.backend.scan()
        ]
        write_previous_format(f"{url}/late-old", first.backend)
    for _ in range(2):  # and at a second start
        with contextlib.closing(LiveEvents(f"{url}/late-old", bundle)) as live:
            migrated = [
                (u, e.times.tolist(), {n: c.tolist() for n, c in e.columns.items()}) for u, e in live.backend.scan()
            ]
            assert migrated == expected
    with backends.open_store(f"{url}/late-old", writable=False) as old:  # type: ignore[attr-defined]
        assert len(old) == 6
    other: Any = SimpleNamespace(fitted=bundle.fitted, store=bundle.store, digest="0" * 64)
    with pytest.raises(StoreError, match="events of another bundle"):
        LiveEvents(f"{url}/late-old", other)


def test_an_interrupted_copy_is_repeated(shop: token_shop.TokenShop, tmp_path: Path) -> None:
    bundle, location = Bundle.open(shop.bundle), str(tmp_path / "history")
    with contextlib.closing(LiveEvents(str(tmp_path / "made"), bundle)) as first:
        own = {"instance": 5, "item": 1, "place": 2, "price": 2, "stars": 3, "dwell": 2, "met.liked": 1, "met.top": 0}
        own |= {"known.stars": NOW, "known.dwell": NOW}
        for write in first.prepare_update(7, 0, NOW, own, None, NOW, overwrite=False).writes:
            write()
        write_previous_format(location, first.backend)
        half = {**first.backend.attributes, "format": "longrec-live-2-half"}
        backends.create(f"{location}-2", first.backend.types, "instance", half).close()
    with contextlib.closing(LiveEvents(location, bundle)) as live:
        assert len(live.backend) == 1


def test_tokens_are_visible_from_when_their_event_was(tmp_path: Path) -> None:
    """The token that compress writes for a late event is visible when the event is, like one written online."""
    columns = token_shop.events(200)
    columns["recorded_at"] = [at + (n % 3) * 7 * token_shop.DAY // 2 for n, at in enumerate(columns["at"])]
    schema = {**token_shop.SCHEMA, "time": {**token_shop.SCHEMA["time"], "available_at": "recorded_at"}}
    job = token_shop.make_job(tmp_path, columns, schema)
    compress(job, tmp_path / "tokens", ["blocks=2", "first_slices=1"], quiet=True)
    log = token_shop.open_log(tmp_path, columns, schema)
    assert log.available is not None
    label_times = log.label_time(np.arange(len(log)))
    assert (label_times >= log.available).all()
    wanted = {(int(t), int(a), int(k)) for t, a, k in zip(log.events.times, log.available, label_times)}
    with TokenStore.open(tmp_path / "tokens") as store:
        for _, tokens in store.scan():
            written = zip(tokens.times.tolist(), tokens.visible.tolist(), tokens.available_at["label"].tolist())
            assert set(written) <= wanted
        assert len(store) > 50
