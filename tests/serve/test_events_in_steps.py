"""Events of a log in steps with requests, a filtered history, and tokens stored as codes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import token_shop

from longrec.errors import RequestError, StoreError
from longrec.exporting.bundle import Bundle
from longrec.serve.events import EventResponse
from longrec.serve.golden_scores import score_golden
from longrec.serve.knowledge_features import key_number
from longrec.serve.online_source import OnlineSource
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.store.token_store import TokenStore
from longrec.training.token_source import open_source

CONTEXT = {"place": "side", "zone": "a"}


@pytest.fixture(scope="module")
def shop() -> token_shop.TokenShop:
    return token_shop.coded()


@pytest.fixture
def service(shop: token_shop.TokenShop, tmp_path: Path) -> Iterator[Service]:
    opened_service = Service(shop.bundle, Settings(events=str(shop.source), state=str(tmp_path / "state")))
    yield opened_service
    opened_service.close()


def rank(service: Service, at: int, user: int = 3) -> Any:
    request = {"user": user, "candidates": ["i0", "i1", "i7"], "at": at, "context": {"place": "top"}}
    return orjson.loads(service.answer(orjson.dumps(request)))["items"]


def record_event(service: Service, **change: Any) -> EventResponse:
    event = {"user": 3, "item": "i4", "at": 2_000, "context": CONTEXT, **change}
    return service.record(orjson.dumps({name: value for name, value in event.items() if value is not None}))


def get_store(service: Service) -> TokenStore:
    assert service._state is not None
    return next(iter(service._state.stores.values()))


def list_liked_times(service: Service, before: int, user: int = 3) -> list[int]:
    """List the times of the events that pass the filter."""
    live = service._state.live[service.bundle.digest]  # type: ignore[union-attr]
    row = service.served.encoder.look_up_user(user)
    return live.last(key_number(user), row, before, 50, "where.liked", ["item"]).times.tolist()


def test_impressions_score_online_as_offline(shop: token_shop.TokenShop, service: Service) -> None:
    assert service.check() < 1e-6
    wanted = [shop.golden(shop.log, int(row)) for row in shop.log.rows_of("test")[::5]]
    for one, scores in zip(wanted, score_golden(service, wanted)):
        assert np.abs(one.expected - scores).max() < 1e-6


def test_the_source_makes_codes_and_vectors(shop: token_shop.TokenShop) -> None:
    bundle = Bundle.open(shop.source)
    assert bundle.manifest.kind == "encoder"
    assert bundle.manifest.encoder is not None
    assert (bundle.manifest.encoder.width, bundle.manifest.encoder.slots) == (8, 2)
    source = OnlineSource(bundle)
    assert source.program.outputs == ("token", "codes")
    assert source.check() < 1e-5
    assert np.array(bundle.golden[0].vectors).shape == (len(bundle.golden[0].request["candidates"]), 8)


def test_a_token_of_codes_can_be_read_from_the_next_step_on(shop: token_shop.TokenShop, service: Service) -> None:
    before = [rank(service, at) for at in (2_000, 2_001)]
    response = record_event(service)
    assert (response.at, response.visible) == (2_000, 2_000)
    assert rank(service, 2_000) == before[0]
    assert rank(service, 2_001) != before[1]
    raw = get_store(service).backend.last(key_number(3), 2_001, 1).columns["codes"]
    assert raw.shape == (1, 4)
    source = open_source(shop.tokens / "source")
    books = source.model.codebooks()
    assert books is not None
    codebook_vectors = books.detach().numpy()
    vector = np.concatenate([sum(codebook_vectors[s, m, raw[0, 2 * s + m]] for m in range(2)) for s in range(2)])
    scaled = (vector - np.array(source.mean)) / np.array(source.std)
    assert np.allclose(get_store(service).last(key_number(3), 2_001, 1).vectors[0], scaled, atol=1e-4)


def test_features_are_read_at_the_timestamp_of_the_request(service: Service) -> None:
    """An event a step after its request is encoded with the data available to the request."""
    record_event(service, at=2_000, feedback={"stars": 5})
    record_event(service, at=2_005, item="i7", request=2_000)
    expected = get_store(service).last(key_number(3), 2_006, 1).vectors
    record_event(service, at=2_005, item="i7")
    assert not np.array_equal(get_store(service).last(key_number(3), 2_006, 1).vectors, expected)
    record_event(service, at=2_005, item="i7", request=1_999)
    assert np.array_equal(get_store(service).last(key_number(3), 2_006, 1).vectors, expected)
    with pytest.raises(RequestError, match="request: a timestamp after the event"):
        record_event(service, at=2_000, request=2_001)


def test_a_filter_waits_until_its_column_is_recorded(service: Service) -> None:
    old = list_liked_times(service, 9_999)
    record_event(service)
    assert list_liked_times(service, 9_999) == old
    answer = rank(service, 2_001)
    record_event(service, context=None, feedback={"stars": 3})
    assert list_liked_times(service, 9_999) == old
    record_event(service, context=None, feedback={"stars": 4})
    assert list_liked_times(service, 9_999) == [*old, 2_000]
    assert rank(service, 2_001) != answer
    record_event(service, context={**CONTEXT, "zone": "b"}, feedback={"stars": 4})
    assert list_liked_times(service, 9_999) == old
    record_event(service, context={**CONTEXT, "zone": None}, feedback={"stars": 4})
    assert list_liked_times(service, 9_999) == old
    with pytest.raises(RequestError, match="no 'zone'"):
        record_event(service, context={"place": "top"})


def test_an_event_of_the_log_is_replaced_in_the_filtered_history(shop: token_shop.TokenShop, service: Service) -> None:
    columns = token_shop.steps()
    wanted = zip(columns["user_id"], columns["stars"], columns["zone"])
    index = max(n for n, (user, stars, zone) in enumerate(wanted) if user == 3 and stars >= 4 and zone == "a")
    item, at = columns["item_id"][index], columns["at"][index]
    before = list_liked_times(service, 9_999)
    assert at in before
    response = record_event(service, item=item, at=at, context={"place": "top", "zone": "b"}, feedback={"stars": 5})
    assert response.replaced
    assert list_liked_times(service, 9_999) == [time for time in before if time != at]
    record_event(service, item=item, at=at, context={"place": "top", "zone": "a"}, feedback={"stars": 5})
    assert list_liked_times(service, 9_999) == before


def test_steps_have_no_clock(service: Service) -> None:
    with pytest.raises(RequestError, match="at: nothing; expected a whole number"):
        record_event(service, at=None)


def test_a_server_holds_state_for_several_processes(shop: token_shop.TokenShop, redis_url: str, tmp_path: Path) -> None:
    """Tokens and events in Redis: another service reads what one records, and neither locks a folder."""
    url = f"{redis_url}/coded"
    with TokenStore.open(shop.tokens) as old:
        info = old.info
        with TokenStore.create(url, type(info)(**{**vars(info), "versions": ()})) as store:
            for version in info.versions:
                store.add_version(version, old.backend.take_array(f"codebooks-{version.number}"))
            for user, events in old.backend.scan():
                store.backend.load(np.full(len(events), user), events.times, events.columns)
    settings = Settings({"tokens": url}, str(shop.source), f"{redis_url}/state")
    one, two = Service(shop.bundle, settings), Service(shop.bundle, settings)
    assert one.exclusive_folders == []
    with contextlib.closing(one), contextlib.closing(two):
        alone = Service(shop.bundle)
        assert rank(two, 2_001) == rank(alone, 2_001)
        before, filtered = rank(two, 2_001), list_liked_times(two, 9_999)
        record_event(one)
        record_event(one, context=None, feedback={"stars": 4})
        assert rank(two, 2_001) == rank(one, 2_001) != before
        assert list_liked_times(two, 9_999) == [*filtered, 2_000]
    with pytest.raises(StoreError, match="a server, but the tokens are in the bundle; expected tokens on a server"):
        Service(shop.bundle, Settings(events=str(shop.source), state=f"{redis_url}/other"))
