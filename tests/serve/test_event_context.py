"""The context of an event: columns that are not used, and columns that its item has in the catalog."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import live_shop
import orjson
import pytest
from live_shop import Clock, Trained, rank, record, serve

from longrec.errors import RequestError
from longrec.serve.client import client


@pytest.fixture
def row(trained: Trained) -> dict[str, Any]:
    return trained.rows[0]


@pytest.fixture
def clock(row: dict[str, Any]) -> Clock:
    clock = Clock()
    clock.now = row["at"]
    return clock


def score_after(trained: Trained, state: Path, clock: Clock, **change: Any) -> tuple[float, list[str]]:
    """Return a score after an event of the same user, and the columns that were not used."""
    row = trained.rows[0]
    with serve(trained, state, clock) as service:
        ignored = record(service, row, **change)["ignored"]
        return rank(service, row, row["at"] + 60_000), ignored


def test_columns_that_no_history_reads_are_named_and_not_used(
    trained: Trained, row: dict[str, Any], clock: Clock, tmp_path: Path
) -> None:
    plain = {"place": row["place"], "price": row["price"]}
    expected, none = score_after(trained, tmp_path / "plain", clock, context=plain)
    assert none == []
    further = {"mood": "sad", **plain, "country": "c1", "kind": 3}
    assert score_after(trained, tmp_path / "further", clock, context=further) == (
        pytest.approx(expected, abs=1e-6),
        ["mood", "country", "kind"],
    )
    with client(trained.bundle, events=True, state=tmp_path / "client") as shop:
        assert shop.event(3, "i1", context={**plain, "mood": None}).ignored == ("mood",)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"place": "top", "price": 1, "moood": 1}, r"the unknown key 'moood' \(did you mean 'mood'\?\)"),
        ({"place": "top", "price": 1, "click": 1}, "the unknown key 'click'"),
        ({"place": "top", "price": 1, "user_id": 1}, "the unknown key 'user_id'"),
        ({"place": "top", "stars": 1}, "the unknown key 'stars'"),
        ({"price": 1, "mood": "sad"}, "no 'place'"),
    ],
    ids=["near", "label", "key", "feedback", "missing"],
)
def test_a_name_that_no_schema_has_is_refused(
    trained: Trained, row: dict[str, Any], tmp_path: Path, context: dict[str, Any], message: str
) -> None:
    with serve(trained, tmp_path / "state") as service, pytest.raises(RequestError, match=message):
        record(service, row, context=context)


def test_an_event_has_the_columns_of_its_item_in_the_catalog(
    trained: Trained, row: dict[str, Any], clock: Clock, tmp_path: Path
) -> None:
    """The row's price is that of the item table, so both events are the same one."""
    expected, _ = score_after(trained, tmp_path / "sent", clock)
    assert score_after(trained, tmp_path / "named", clock, context={"place": row["place"]})[0] == expected
    other, _ = score_after(
        trained, tmp_path / "own", clock, context={"place": row["place"], "price": (row["price"] + 3) % 6}
    )
    assert abs(other - expected) > 1e-5  # the price of an event counts


def test_an_event_has_the_columns_of_an_item_that_was_added_since(
    trained: Trained, row: dict[str, Any], clock: Clock, tmp_path: Path
) -> None:
    own = trained._replace(bundle=shutil.copytree(trained.bundle, tmp_path / "live.bundle"))
    with serve(own, tmp_path / "state", clock) as service:
        with pytest.raises(RequestError, match="no 'price'") as caught:
            record(service, row, item="new", context={"place": "side"})
        assert caught.value.expected == "price, place"
        service.change_items(orjson.dumps({"items": [{"item_id": "new", "kind": 1, "price": 5}]}))
        record(service, row, item="new", context={"place": "side"}, allow_unknown=False)
        filled = rank(service, row, row["at"] + 60_000)
        answer = record(service, row, item="new", context={"place": "side", "price": 5})
        assert answer["replaced"]
        assert answer["visible"] == answer["at"]  # no change, so no new revision
        assert rank(service, row, row["at"] + 60_000) == filled


def test_an_event_of_an_item_alone_needs_no_context(tmp_path: Path) -> None:
    """All columns that the histories read are those of the item."""
    features = {**live_shop.SCHEMA["features"], "stars": live_shop.SCHEMA["features"]["stars"]}
    history = {"features": ["item_id", "price", "stars"], "max_length": 4}
    schema = {**live_shop.SCHEMA, "features": features, "histories": {"seen": history}}
    trained = live_shop.train_shop(tmp_path, schema)
    row, clock = trained.rows[0], Clock()
    clock.now = row["at"] + 10_000
    with serve(trained, tmp_path / "state", clock) as service:
        first = record(service, row, context=None)
        clock.now += 10_000
        again = record(service, row, context=None, feedback={"stars": 3})
        assert (first["replaced"], again["replaced"], again["visible"]) == (False, True, first["visible"])
        assert not record(service, row, context=None, at=row["at"] + 1, feedback={"stars": 3})["replaced"]
        with pytest.raises(RequestError, match="neither context nor feedback"):
            record(service, row, context=None, item="unknown")
