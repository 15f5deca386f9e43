"""Recent events and attributes of the user in a request: read for this request only, as if they were stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import shop
from live_shop import RANK, RECORD, STARS, USERS, Clock, Trained, rank, record, serve

from longrec.errors import RequestError
from longrec.serve.client import client
from longrec.serve.service import Service


@pytest.fixture(scope="module")
def frozen(trained: Trained) -> Iterator[Service]:
    with contextlib.closing(Service(trained.bundle)) as service:
        yield service


def make_recent(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of the user of a row before it, with the stars that were available then."""
    before = [one for one in rows if one["user_id"] == row["user_id"] and one["at"] < row["at"]]
    return [
        {
            "item": one["item_id"],
            "at": one["at"],
            "context": {"place": one["place"], "mood": "sad"},
            "feedback": {"stars": one["stars"]} if one["stars"] is not None and one["starred_at"] < row["at"] else {},
        }
        for one in before
    ]


def test_recent_events_are_read_as_stored_ones(trained: Trained, frozen: Service, state: str, tmp_path: Path) -> None:
    """Scores equal those of a server that recorded the events, whether none of them is stored or every second one."""
    rows, clock, changed = trained.rows[:70], Clock(), 0
    timeline = [(row["at"], step, number) for number, row in enumerate(rows) for step in (RANK, RECORD)]
    timeline += [(row["starred_at"], STARS, number) for number, row in enumerate(rows) if row["stars"] is not None]
    with serve(trained, tmp_path / "whole", clock) as whole, serve(trained, state, clock) as half:
        for clock.now, step, number in sorted(timeline):
            row = rows[number]
            if step == RANK:
                recent, expected = make_recent(rows[:number], row), pytest.approx(rank(whole, row), abs=2e-6)
                assert rank(frozen, row, recent=recent) == expected
                assert rank(half, row, recent=recent[::-1]) == expected  # in any order
                changed += expected != rank(frozen, row)
            change = {} if step == RECORD else {"context": None, "feedback": {"stars": row["stars"]}}
            for service in () if step == RANK else (whole, half) if number % 2 else (whole,):
                record(service, row, **change)
    assert changed > len(rows) / 3


def test_recent_events_are_not_stored_and_must_be_earlier(trained: Trained, tmp_path: Path) -> None:
    row, clock = trained.rows[0], Clock()
    clock.now = row["at"]
    event = {"item": "i1", "at": row["at"] - 1, "context": {"place": "side"}}
    with serve(trained, tmp_path / "state", clock) as service:
        before = rank(service, row)
        sent = rank(service, row, recent=[event])
        assert abs(sent - before) > 1e-5
        assert rank(service, row) == before
        assert rank(service, row, recent=[event, event]) == sent  # each event counts once
        assert not record(service, row, item="i1", at=row["at"] - 1)["replaced"]
        for at in (row["at"], row["at"] + 1, None):
            with pytest.raises(RequestError) as caught:
                rank(service, row, recent=[event, {**event, "at": at}])
            assert (caught.value.where, caught.value.status) == ("recent[1].at", 422)


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"item": "new"}, "recent[0].item", "1 unknown item: 'new'"),
        ({"item": 7}, "recent[0].item", "integers, for example 7"),
        ({"context": {}}, "recent[0].context", "no 'place'"),
        ({"context": {"place": "top", "plac": 1}}, "recent[0].context", "the unknown key 'plac' (did you mean"),
        ({"context": {"place": [1]}}, "recent[0].context.place", "list"),
        ({"feedback": {"star": 1}}, "recent[0].feedback", "the unknown key 'star'"),
    ],
    ids=["unknown", "type", "missing", "name", "value", "feedback"],
)
def test_a_fault_of_a_recent_event_has_its_location(
    trained: Trained, frozen: Service, change: dict[str, Any], where: str, message: str
) -> None:
    row = trained.rows[0]
    event = {"item": "i1", "at": row["at"] - 1, "context": {"place": "side"}, **change}
    with pytest.raises(RequestError) as caught:
        rank(frozen, row, recent=[event], allow_unknown=False)
    assert caught.value.where == where
    assert message in caught.value.found


def test_a_bundle_without_stored_histories_refuses_recent_events(prejoined: shop.Shop) -> None:
    with contextlib.closing(Service(prejoined.bundle)) as service:
        request = {**service.example(), "recent": [{"item": 1, "at": 1}]}
        with pytest.raises(RequestError, match="no bundle here stores the events"):
            service.answer(orjson.dumps(request))


def test_a_request_has_attributes_of_its_user(trained: Trained, frozen: Service) -> None:
    row = {**trained.rows[0], "user_id": 4}  # of the country c1
    plain = rank(frozen, row)
    assert rank(frozen, row, user_context={"country": "c1"}) == plain
    assert abs(rank(frozen, row, user_context={"country": "c2"}) - plain) > 1e-5
    new = {**row, "user_id": USERS + 100}
    nothing = rank(frozen, new)
    assert rank(frozen, new, user_context={"country": None}) == nothing
    assert abs(rank(frozen, new, user_context={"country": "c1"}) - nothing) > 1e-5
    for context, where in (({"contry": "c1"}, "user_context"), ({"country": {}}, "user_context.country")):
        with pytest.raises(RequestError) as caught:
            rank(frozen, row, user_context=context)
        assert (caught.value.where, caught.value.status) == (where, 422)
    assert "did you mean 'country'?" in _find_fault(frozen, row, {"contry": "c1"})
    with client(trained.bundle) as shop_client:
        common = {"candidates": [row["item_id"]], "at": row["at"], "context": {"place": row["place"], "mood": "sad"}}
        common |= {"candidate_context": {"price": [row["price"]]}}
        event = {"item": "i1", "at": row["at"] - 1, "context": {"place": "side"}}
        ranking = shop_client.rank(4, **common, recent=[event], user_context={"country": "c2"})
    expected = rank(frozen, {**row, "mood": "sad"}, recent=[event], user_context={"country": "c2"})
    assert ranking[0].score == expected


def _find_fault(service: Service, row: dict[str, Any], context: dict[str, Any]) -> str:
    with pytest.raises(RequestError) as caught:
        rank(service, row, user_context=context)
    return caught.value.found
