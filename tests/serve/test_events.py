"""The ranking after an acknowledged event reads its token and the event itself."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
import token_shop
import torch

from longrec.data.gather import gather
from longrec.errors import BundleError, LongRecError, RequestError, StoreError
from longrec.exporting.catalog_table import build_change_reader
from longrec.exporting.scale import Scale
from longrec.features.label_encoding import POSITIVE
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.serve import response_schemas
from longrec.serve.client import Client, RecordedEvent, client
from longrec.serve.knowledge_features import key_number
from longrec.serve.live_catalog import change_items
from longrec.serve.online_source import OnlineSource
from longrec.serve.server import run_server, serve
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.store.token_store import TokenStore
from longrec.training.token_source import open_source

Shop = token_shop.TokenShop
NOW = token_shop.START + 30 * token_shop.DAY
CONTEXT = {"place": "side", "price": 2.25}


@pytest.fixture(scope="module")
def shop() -> Shop:
    return token_shop.shop()


class Clock:
    """Clock with a settable time."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(shop: Shop, tmp_path: Path, clock: Clock) -> Iterator[Service]:
    opened_service = Service(shop.bundle, Settings(events=str(shop.source), state=str(tmp_path / "state")), clock)
    yield opened_service
    opened_service.close()


def rank(service: Service, user: str = "u1", **change: Any) -> list[dict[str, Any]]:
    request = {"user": user, "candidates": [100, 101, 110], "context": CONTEXT, **change}
    return orjson.loads(service.answer(orjson.dumps(request)))["items"]


def record_event(service: Service, **change: Any) -> RecordedEvent:
    event = {"user": "u1", "item": 104, "context": CONTEXT, **change}
    response = service.record(orjson.dumps({name: value for name, value in event.items() if value is not None}))
    msgspec.json.decode(response.json(), type=response_schemas.EventResponse)  # as the OpenAPI document says
    return RecordedEvent(
        response.at, response.instance, response.visible, response.replaced, response.new_user, response.new_item
    )


def catch_error(service: Service, **change: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        record_event(service, **change)
    return caught.value


def encode_impression(service: Service, user: str, item: int, at: int, context: dict[str, Any] = CONTEXT) -> Any:
    """Encode an impression with the source."""
    source = service._state.source  # type: ignore[union-attr]
    return source.encode(Query(user, at, context, allow_unknown=True), Candidates.of([item], "event"))


def read_last_token(service: Service, user: str = "u1") -> Any:
    store = next(iter(service._state.stores.values()))  # type: ignore[union-attr]
    return store.last(key_number(user), 2**62, 1)


def score_offline(shop: Shop, folder: Path, events: list[dict[str, Any]], request: dict[str, Any]) -> float:
    """Return the offline score of a request on a log with these events and their tokens."""
    columns = token_shop.events()
    for event in [*events, request]:
        for name in columns:
            columns[name].append(event.get(name))
    source = open_source(shop.tokens / "source")
    log = token_shop.open_log(folder / "events", columns, token_shop.SCHEMA)
    scale = Scale(source.mean, source.std)
    with TokenStore.create(folder / "tokens", type(i := TokenStore.open(shop.tokens).info)(**vars(i))) as store:
        with TokenStore.open(shop.tokens) as old:
            for user, t in old.scan():
                store.append(np.full(len(t), user), t.times, instance=t.instance, visible=t.visible,
                             version=t.version, vectors=t.vectors, sides=t.sides,
                             available_at=t.available_at)  # fmt: skip
        for event in events:
            row = np.flatnonzero(log.events.times == event["at"])
            assert len(row) == 1
            with torch.no_grad():
                vector = scale.standardize(source.model.encode(gather(log, row)).numpy())
            one = {n: np.array([v]) for n, v in event["sides"].items()}
            since = {n: np.array([v]) for n, v in event["known"].items()}
            store.append(
                np.array([key_number(event["user_id"])]), np.array([event["at"]]), instance=row, sides=one,
                visible=np.array([event["at"]]), version=np.array([source.version]), vectors=vector, available_at=since,
            )  # fmt: skip
    reader = token_shop.open_log(folder / "reader", columns, token_shop.make_reader_schema(folder / "tokens"))
    row = np.flatnonzero(reader.events.times == request["at"])
    assert len(row) == 1
    with torch.no_grad():
        return float(torch.sigmoid(shop.model(gather(reader, row)))[0])


def test_a_ranking_after_an_event_equals_one_with_the_event_in_the_log(
    shop: Shop, service: Service, clock: Clock, tmp_path: Path
) -> None:
    """Two events with feedback, the second of which reads the first, then a request."""
    raw = [
        {"user_id": "u1", "item_id": 104, "at": NOW, "place": "side", "price": 2.25, "stars": 4.0, "click": 1},
        {"user_id": "u1", "item_id": 117, "at": NOW + 600_000, "place": "top", "price": 0.5, "stars": 1.0, "click": 0},
    ]
    request = {"user_id": "u1", "item_id": 100, "at": NOW + 900_000, "place": "side", "price": 2.25, "click": 0}
    before = rank(service, at=request["at"], candidates=[100])[0]["score"]
    assert before == pytest.approx(score_offline(shop, tmp_path / "before", [], request), abs=1e-5)
    for event in raw:
        clock.now = event["at"]
        context = {name: event[name] for name in ("place", "price")}
        feedback = {"click": event["click"], "stars": event["stars"]}
        record_event(service, item=event["item_id"], context=context, feedback=feedback)
        event["sides"] = {"label": 1 + event["click"], "stars": 4 if event["stars"] == 4.0 else 2}
        event["known"] = {"label": event["at"], "stars": event["at"] + 60_000}
    clock.now = request["at"]
    after = rank(service, candidates=[100])[0]["score"]
    assert after == pytest.approx(score_offline(shop, tmp_path / "after", raw, request), abs=1e-5)
    assert abs(after - before) > 1e-4


def test_a_token_is_the_one_that_training_would_have_written(shop: Shop, service: Service) -> None:
    """Events of the log, recorded again, get the tokens that compress wrote with the same version."""
    source, log = open_source(shop.tokens / "source"), shop.log
    with TokenStore.open(shop.tokens) as store:
        written = {int(i): (int(v), vector) for _, t in store.scan()
                   for i, v, vector in zip(t.instance, t.version, t.vectors)}  # fmt: skip
    columns, count = token_shop.events(), 0
    for row in range(len(log) - 1, 0, -9):
        user, item, at = log.user(np.array([row]))[0], log.events.columns["item"][row], int(log.events.times[row])
        key, thing = log.users.key(int(user)), log.items.key(int(item))
        index = next(n for n in range(len(columns["at"])) if (columns["user_id"][n], columns["item_id"][n],
                     columns["at"][n]) == (key, thing, at))  # fmt: skip
        context = {name: columns[name][index] for name in ("place", "price")}
        response = record_event(service, user=key, item=thing, at=at, context=context)
        version, vector = written.get(response.instance, (-1, None))
        if version == source.version:
            assert response.replaced
            own = encode_impression(service, key, thing, at, context)[0]
            assert np.abs(own - vector).max() < 4e-3  # fp16, and float32 summed in another order
            count += 1
    assert count > 5


def test_the_next_ranking_reads_it_and_nobody_else_does(service: Service, clock: Clock) -> None:
    before, other = rank(service, at=NOW + 1), rank(service, "u2", at=NOW + 1)
    response = record_event(service)
    assert (response.at, response.replaced, response.new_user, response.new_item) == (
        "2023-12-14T22:13:20.000Z",
        False,
        False,
        False,
    )
    assert response.visible == response.at
    assert rank(service, at=NOW) == rank(service, at=NOW)
    assert rank(service, at=NOW + 1) != before
    assert rank(service, "u2", at=NOW + 1) == other


def test_nothing_at_or_after_its_timestamp_changes_an_answer(service: Service, clock: Clock) -> None:
    before = rank(service, at=NOW)
    record_event(service, at=NOW)
    record_event(service, at=NOW + 5, item=105)
    assert rank(service, at=NOW) == before
    # recorded late, neither the token nor the event is visible before
    clock.now = NOW + 10
    later = rank(service, at=NOW + 11)
    response = record_event(service, at=NOW - 1, item=106)
    assert response.visible == "2023-12-14T22:13:20.010Z"
    token = read_last_token(service)
    assert rank(service, at=NOW) == before
    assert rank(service, at=NOW + 11) != later
    assert token.visible.tolist() == [NOW + 5]
    store = next(iter(service._state.stores.values()))  # type: ignore[union-attr]
    late = store.last(key_number("u1"), NOW, 1)
    assert (late.times.tolist(), late.visible.tolist()) == ([NOW - 1], [NOW + 10])


def test_a_late_label_is_not_read_before_it_was_recorded(service: Service, clock: Clock) -> None:
    response = record_event(service)
    unknown = read_last_token(service)
    assert unknown.sides["label"].tolist() == [3]
    assert unknown.sides["stars"].tolist() == [5]
    clock.now = NOW + 600_000
    before = rank(service, at=NOW + 600_000), rank(service, at=NOW + 600_001)
    assert before[0] == before[1]
    again = record_event(service, context=None, at=response.at, feedback={"click": 1, "stars": 5})
    assert (again.replaced, again.instance, again.visible) == (True, response.instance, response.visible)
    token = read_last_token(service)
    assert token.sides["label"].tolist() == [POSITIVE]
    assert token.available_at["label"].tolist() == token.available_at["stars"].tolist() == [NOW + 600_000]
    assert token.vectors.tobytes() == unknown.vectors.tobytes()
    assert rank(service, at=NOW + 600_000) == before[0]
    assert rank(service, at=NOW + 600_001) != before[1]
    # earlier feedback stays when more is added, and null is a value
    clock.now += 60_000
    record_event(service, context=None, at=response.at, feedback={"stars": None})
    token = read_last_token(service)
    assert (token.sides["label"].tolist(), token.available_at["label"].tolist()) == ([POSITIVE], [NOW + 600_000])
    assert (token.sides["stars"].tolist(), token.available_at["stars"].tolist()) == ([0], [NOW + 660_000])


def test_feedback_is_never_fresher_than_in_training(service: Service) -> None:
    """By the schema stars are available after a minute, so immediate feedback waits for it."""
    record_event(service, feedback={"stars": 4.0, "label": 0})
    token = read_last_token(service)
    assert token.available_at["stars"].tolist() == [NOW + 60_000]
    assert (token.sides["label"].tolist(), token.available_at["label"].tolist()) == ([1], [NOW])
    early, late = (rank(service, at=NOW + at) for at in (60_000, 60_001))
    assert early != late


def test_an_event_recorded_again_replaces_itself(service: Service, clock: Clock) -> None:
    stores = service._state.stores  # type: ignore[union-attr]
    count = len(next(iter(stores.values())))
    first = record_event(service, at=NOW)
    answer = rank(service, at=NOW + 1)
    clock.now += 5_000
    for _ in range(3):
        again = record_event(service, at=NOW)
        assert again.replaced
        assert (again.instance, again.visible) == (first.instance, first.visible)
    assert len(next(iter(stores.values()))) == count + 1
    assert rank(service, at=NOW + 1) == answer
    assert not record_event(service, at=NOW, item=105).replaced
    assert not record_event(service, at=NOW + 1).replaced
    assert not record_event(service, at=NOW, user="u2").replaced


def test_an_event_of_the_log_recorded_again_counts_once(shop: Shop, service: Service) -> None:
    columns = token_shop.events()
    index = max(n for n, user in enumerate(columns["user_id"]) if user == "u1")
    event = {name: columns[name][index] for name in columns}
    at = int(event["at"])
    live = service._state.live[service.bundle.digest]  # type: ignore[union-attr]
    row = int(shop.log.users.rows(token_shop.pa.array(["u1"]), "user")[0])
    before = live.last(key_number("u1"), row, at + 1, 100, None, ["item", "stars"])
    answer = rank(service)
    context = {name: event[name] for name in ("place", "price")}
    stars = {} if event["stars"] is None else {"stars": event["stars"]}
    response = record_event(
        service, item=event["item_id"], at=at, context=context, feedback={"click": event["click"], **stars}
    )
    assert response.replaced
    after = live.last(key_number("u1"), row, at + 1, 100, None, ["item", "stars"])
    assert after.times.tolist() == before.times.tolist()
    assert sorted(after.columns["item"].tolist()) == sorted(before.columns["item"].tolist())
    assert [item["id"] for item in rank(service)] == [item["id"] for item in answer]


def test_a_new_user_has_a_history_after_their_first_event(service: Service) -> None:
    nobody = rank(service, "fresh", at=NOW + 1, allow_unknown=True)
    response = record_event(service, user="fresh")
    assert response.new_user
    after = rank(service, "fresh", at=NOW + 1, allow_unknown=True)
    assert after != nobody
    assert rank(service, "other", at=NOW + 1, allow_unknown=True) == nobody
    live = service._state.live[service.bundle.digest]  # type: ignore[union-attr]
    assert live.last(key_number("fresh"), 0, NOW + 1, 5, None, ["item"]).columns["item"].tolist() == [5]


def test_a_source_with_histories_reads_earlier_events(service: Service, clock: Clock) -> None:
    """The base of the source reads histories: a token depends on events recorded before it, and on none after."""
    record_event(service, user="u7", at=NOW)
    alone = read_last_token(service, "u7")
    later = encode_impression(service, "u7", 104, NOW + 1)
    record_event(service, user="u7", at=NOW - 1_000, item=109)
    assert not np.array_equal(encode_impression(service, "u7", 104, NOW + 1), later)
    clock.now += 1_000
    again = record_event(service, user="u7", at=NOW)  # unchanged: the earlier event was recorded after it
    token = read_last_token(service, "u7")
    assert (token.instance, token.visible) == (alone.instance, alone.visible)
    assert (token.instance.tolist(), token.vectors.tobytes()) == ([again.instance], alone.vectors.tobytes())


FAULTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown item": ({"item": 5}, 404, "item: 1 unknown item: 5"),
    "item of another type": ({"item": "104"}, 422, "item: text, for example '104'; expected integers"),
    "user of another type": ({"user": 1}, 422, "user: integers, for example 1; expected text"),
    "no item": ({"item": None}, 422, "item: nothing"),
    "strange key": ({"items": [1]}, 422, "the unknown key 'items'"),
    "context of another name": ({"context": {"place": "top", "prize": 1}}, 422, "did you mean 'price'"),
    "context that lacks": ({"context": {}}, 422, "no 'place'; no 'price'"),
    "feedback in the context": ({"context": {**CONTEXT, "stars": 1}}, 422, "the unknown key 'stars'"),
    "value of another type": ({"context": {"place": 3, "price": 1}}, 422, "context.place: integers"),
    "context in the feedback": ({"feedback": {"price": 1}}, 422, "expected click, stars"),
    "misspelt feedback": ({"feedback": {"clik": 1}}, 422, "Did you mean 'click'"),
    "one column twice": ({"feedback": {"click": 1, "label": 1}}, 422, "column 'click' twice"),
    "an invalid label": ({"feedback": {"click": 7}}, 422, "feedback.click: the label 7"),
    "feedback of another type": ({"feedback": {"stars": "many"}}, 422, "feedback.stars: text"),
    "a log without requests": ({"request": NOW}, 422, "request: the timestamp of a request; expected nothing"),
    "an invalid timestamp": ({"at": "noon"}, 422, "at: the text 'noon'"),
    "neither context nor feedback": ({"context": None}, 422, "neither context nor feedback"),
    "feedback without a timestamp": ({"context": None, "feedback": {"click": 1}}, 422, "at: nothing"),
    "feedback without an event": ({"context": None, "at": NOW, "feedback": {"click": 1}}, 404, "no event of this user"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_event_is_refused_and_nothing_is_written(service: Service, fault: str) -> None:
    change, status, says = FAULTS[fault]
    stores = service._state.stores  # type: ignore[union-attr]
    count, before = len(next(iter(stores.values()))), rank(service)
    error = catch_error(service, **change)
    assert error.status == status
    assert says in str(error)
    assert len(next(iter(stores.values()))) == count
    assert rank(service) == before


def test_an_unknown_item_is_taken_when_allowed(service: Service) -> None:
    assert "allow_unknown" in catch_error(service, item=5).do
    response = record_event(service, item=5, allow_unknown=True)
    assert response.new_item
    assert len(rank(service, at=NOW + 1)) == 3


def test_a_service_without_a_source_takes_no_events(shop: Shop) -> None:
    with client(shop.bundle) as alone, pytest.raises(RequestError, match="Start the server with --events") as caught:
        alone.event("u1", 104, context=CONTEXT)
    assert caught.value.status == 404


@pytest.fixture(scope="module", params=["in process", "over HTTP"])
def shops(request: pytest.FixtureRequest, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    state = tmp_path_factory.mktemp("state") / "s"
    if request.param == "in process":
        with client(shop.bundle, events=shop.source, state=state) as opened:
            yield opened
        return
    with (
        run_server(shop.bundle, settings=Settings(events=str(shop.source), state=str(state))) as url,
        client(url) as far,
    ):
        yield far


def test_a_client_records_events_and_reads_them(shops: Client) -> None:
    def rank_items(user: str) -> list[tuple[Any, ...]]:
        return list(shops.rank(user, [100, 101, 110], context=CONTEXT, allow_unknown=True, at="2040-01-01"))

    before = rank_items("u8")
    response = shops.event("u8", 104, context=CONTEXT)
    assert not response.replaced
    after = rank_items("u8")
    assert after != before
    again = shops.event("u8", 104, at=response.at, feedback={"click": 1, "stars": 3})
    assert again.replaced
    assert again.instance == response.instance
    assert rank_items("u8") not in (after, before)
    with pytest.raises(RequestError, match="1 unknown item: 3") as caught:
        shops.event("u8", 3, context=CONTEXT)
    assert caught.value.status == 404


def test_metrics_count_events(shop: Shop, tmp_path: Path) -> None:
    settings = Settings(events=str(shop.source), state=str(tmp_path / "state"))
    with run_server(shop.bundle, settings=settings) as url, client(url) as far:
        response = far.event("u8", 104, context=CONTEXT)
        far.event("u8", 104, at=response.at, feedback={"click": 1})
        with pytest.raises(RequestError):
            far.event("u8", 1, context=CONTEXT)
        text = far._call("GET", "/metrics").decode()  # type: ignore[attr-defined]
    assert 'longrec_requests_total{route="/events",status="200"} 2' in text
    assert 'longrec_requests_total{route="/events",status="404"} 1' in text
    assert 'longrec_events_total{feedback="none",occurrence="new"} 1' in text
    assert 'longrec_events_total{feedback="some",occurrence="again"} 1' in text


def test_rankings_go_on_while_events_are_kept(shop: Shop, tmp_path: Path) -> None:
    """Several clients record events of one user while others rank: all calls succeed, every event is stored once."""
    settings = Settings(events=str(shop.source), state=str(tmp_path / "state"))
    faults: list[Exception] = []

    def work(url: str, number: int) -> None:
        try:
            with client(url) as far:
                for offset in range(12):
                    if number % 2:
                        assert len(far.rank("u1", [100, 101], context=CONTEXT, at="2040-01-01")) == 2
                    else:
                        far.event("u1", 100 + offset, at=NOW + number, context=CONTEXT, feedback={"click": offset % 2})
        except Exception as error:  # noqa: BLE001  reported by the test's own thread
            faults.append(error)

    with run_server(shop.bundle, settings=settings) as url:
        threads = [threading.Thread(target=work, args=(url, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert faults == []
    with TokenStore.open(tmp_path / "state" / "tokens" / "tokens") as store:
        tokens = store.last(key_number("u1"), 2**62, 24)
    assert sorted(tokens.times.tolist()) == [NOW] * 12 + [NOW + 2] * 12
    assert len(np.unique(tokens.instance)) == 24


def test_what_was_acknowledged_outlives_a_killed_server(shop: Shop, tmp_path: Path) -> None:
    settings = orjson.dumps({"events": str(shop.source), "state": str(tmp_path / "state")}).decode()
    arguments = [sys.executable, "-m", "longrec.serve.server", str(shop.bundle), "0", "1", settings]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with client(process.stdout.readline().split("ready at ")[1].split()[0]) as far:
        for number in range(5):
            far.event("u9", 104 + number, context=CONTEXT, at=NOW + number, feedback={"click": 1})
        after = far.rank("u9", [100, 101], context=CONTEXT, at="2040-01-01")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with client(shop.bundle, events=shop.source, state=tmp_path / "state") as again:
        assert again.rank("u9", [100, 101], context=CONTEXT, at="2040-01-01") == after


def test_one_process_writes_to_a_folder(shop: Shop, service: Service, tmp_path: Path) -> None:
    settings = Settings(events=str(shop.source), state=str(tmp_path / "state"))
    with pytest.raises(StoreError, match="another writer holds it"):
        Service(shop.bundle, settings)
    other = Settings(events=str(shop.source), state=str(tmp_path / "other"))
    with pytest.raises(LongRecError, match="2 workers, and .* is a folder that only one process may write to"):
        serve(shop.bundle, port=0, workers=2, settings=other)


def test_a_state_belongs_to_its_bundle(shop: Shop, tmp_path: Path) -> None:
    state = tmp_path / "state"
    Service(shop.bundle, Settings(events=str(shop.source), state=str(state))).close()
    content = orjson.loads((state / "state.json").read_bytes())
    (state / "state.json").write_bytes(orjson.dumps({**content, "bundle": "0" * 64}))
    with pytest.raises(StoreError, match="the events of another bundle"):
        Service(shop.bundle, Settings(events=str(shop.source), state=str(state)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="a folder with other files"):
        Service(shop.bundle, Settings(events=str(shop.source), state=str(tmp_path / "mine")))


def test_bundles_of_the_wrong_kind_are_refused(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a bundle of an encoder; expected a bundle of a ranker"):
        Service(shop.source)
    with pytest.raises(BundleError, match="a bundle of a ranker; expected a bundle of a source"):
        Service(shop.bundle, Settings(events=str(shop.bundle), state=str(tmp_path / "state")))


def test_a_source_of_other_tokens_is_refused(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnlineSource, "matches", lambda self, info: False)
    with pytest.raises(BundleError, match="wrote none of the tokens that .* reads"):
        Service(shop.bundle, Settings(events=str(shop.source), state=str(tmp_path / "state")))


def test_a_live_store_is_written_instead_of_the_copy(shop: Shop, tmp_path: Path, clock: Callable[[], int]) -> None:
    folder = tmp_path / "live"
    token_shop.shutil.copytree(shop.tokens, folder, ignore=token_shop.shutil.ignore_patterns("source", "lock"))
    settings = Settings({"tokens": str(folder)}, str(shop.source), str(tmp_path / "state"))
    service = Service(shop.bundle, settings, clock)
    response = record_event(service)
    with TokenStore.open(folder) as store:
        assert store.last(key_number("u1"), NOW + 1, 1).instance.tolist() == [response.instance]
    assert not (tmp_path / "state" / "tokens").exists()
    service.close()


def test_tokens_of_positive_impressions_only_are_not_written_online(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = TokenStore.open(shop.tokens).info
    kept = {**info.source, "compress": {**info.source["compress"], "keep": "positive"}}
    folder = tmp_path / "live"
    with TokenStore.create(folder, type(info)(**{**vars(info), "source": kept})):
        pass
    with pytest.raises(BundleError, match="tokens of positive impressions only"):
        Service(shop.bundle, Settings({"tokens": str(folder)}, str(shop.source), str(tmp_path / "state")))


def test_items_of_recorded_events_are_seen(service: Service, clock: Clock) -> None:
    encoder = service.served.encoder

    def read_items(user: str, at: int) -> list[int]:
        return encoder.read_seen_events(Query(user, at, CONTEXT, allow_unknown=True))[0].tolist()

    event = record_event(service, user="nobody", item=104)
    now = clock()
    assert read_items("nobody", now) == []
    assert read_items("nobody", now + 1) == [encoder.look_up_item(104)]
    before = read_items("u1", now)
    record_event(service, item=104)
    assert read_items("u1", now) == before
    assert read_items("u1", now + 1) == [*before, encoder.look_up_item(104)]
    assert not event.replaced


def test_an_event_of_an_added_item_is_read_also_after_its_change_was_removed(
    shop: Shop, tmp_path: Path, clock: Clock
) -> None:
    shutil.copytree(shop.bundle, tmp_path / "bundle")
    settings = Settings(events=str(shop.source), state=str(tmp_path / "state"))
    with contextlib.closing(Service(tmp_path / "bundle", settings, clock)) as service:
        catalog = service.served.catalog
        columns = build_change_reader(service.bundle, None).read
        change_items([catalog], [{"item_id": 777, **dict.fromkeys(columns)}])
        row = service.served.encoder.look_up_item(777)
        assert row == len(service.bundle.items)
        record_event(service, item=777, allow_unknown=True)
        clock.now += 60_000
        assert row in service.served.encoder.read_seen_events(Query("u1", clock.now, CONTEXT))[0]
        assert len(rank(service, at=None)) == 3
        (catalog.folder / "catalog.json").unlink()
        assert len(rank(service, at=None)) == 3
        assert service.served.encoder.look_up_item(777) == 0
