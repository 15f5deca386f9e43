"""The events that a score reads, as a person reads them: the same events as the score, and for whom."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from in_process import InProcess, read_error
from live_shop import Clock, Trained, record, serve

from longrec.errors import RequestError
from longrec.features.decode import decode_value
from longrec.features.feature_encoders import BucketizedEncoder, HashEncoder, Lists, LogSquareEncoder
from longrec.features.fields import TIME_GAP_ROWS
from longrec.features.fitted_schema import FittedSchema
from longrec.features.readable_values import NOT_YET_TEXT, read_column, read_id
from longrec.features.schema import Schema
from longrec.features.timestamp_grammar import format_timestamp
from longrec.pipeline.stage import Query
from longrec.serve.access import Access, AccessOptions
from longrec.serve.app import App
from longrec.serve.service import Service

KEY, CHIEF = "reader-0123456789abcdef", "admin-0123456789abcdef=="


LONGEST = f"{(2**39 - 1) / 86_400:.3g} d or more"


def view(service: Service, user: Any, at: Any, **change: Any) -> dict[str, Any]:
    """Return the histories of a user by name."""
    body = orjson.dumps({"user": user, "at": at, "allow_unknown": True, **change})
    return {own["name"]: own for own in orjson.loads(service.read_history(body))["histories"]}


def check_same_items(service: Service, query: Query, histories: dict[str, Any]) -> int:
    """Check that the events are those of the inputs of a score. Return their number."""
    inputs, encoder, total = service.served.encoder.encode(query).inputs, service.bundle.fitted.encoders["item_id"], 0
    for name, own in histories.items():
        read = inputs[f"h.{name}.item_id"].tolist()
        assert own["events"] == len(read)
        shown = [event["item"] for event in reversed(own["newest"])]
        assert shown == [decode_value(encoder, value) if value > 1 else item for value, item in zip(read, shown)]
        assert len(shown) == len(read)
        total += len(read)
    return total


def test_the_events_are_those_of_the_score(trained: Trained, tmp_path: Path) -> None:
    clock, total = Clock(), 0
    with serve(trained, tmp_path / "state", clock) as service:
        for number, row in enumerate(trained.rows[:60]):
            clock.now = row["at"] + 1
            late = {"stars": row["stars"]} if number % 2 else {}
            record(service, row, feedback=late)
            for at in (row["at"], row["at"] + 1, row["at"] + 90_000):
                context = {"place": "top", "mood": "sad"}
                query = Query(row["user_id"], at, context, allow_unknown=True)
                total += check_same_items(service, query, view(service, row["user_id"], at))
        row = trained.rows[0]
        at = row["at"] + 10_000_000
        newest = [own["newest"] for own in view(service, row["user_id"], at, last=2).values()]
        assert [len(events) for events in newest] == [2, 2]
    assert total > 500


def test_an_event_has_its_title_and_its_values(trained: Trained, tmp_path: Path) -> None:
    clock, row = Clock(), {**trained.rows[0], "user_id": 999, "item_id": "i3", "price": 3, "place": "side"}
    clock.now = row["at"]
    with serve(trained, tmp_path / "state", clock) as service:
        record(service, row)
        record(service, {**row, "item_id": "i0", "at": row["at"] + 1, "place": "new", "price": None})
        record(service, {**row, "item_id": "other", "at": row["at"] + 2, "place": None, "price": 1})
        clock.now += 60_000
        record(service, row, context=None, feedback={"stars": 5})
        recent = [{"item": "i4", "at": row["at"] + 5, "context": {"place": "side", "price": 4}}]
        read = view(service, 999, row["at"] + 60_001, recent=recent)
    seen, aside = read["seen"], read["aside"]
    assert (seen["model"], seen["events"], seen["folded"]) == ("din", 4, None)
    assert [(event["item"], event["title"]) for event in seen["newest"]] == [
        ("i4", "Item 4"),
        (None, None),
        ("i0", None),
        ("i3", "Item 3"),
    ]
    values = [event["values"] for event in seen["newest"]]
    assert [one["price"] for one in values] == ["4 or more", "below 2", None, "2 to 4"]
    assert [one["place"] for one in values] == ["side", None, "(unseen)", "side"]
    assert [one["stars"] for one in values] == [NOT_YET_TEXT] * 3 + ["4 or more"]
    assert [one["item_id"] for one in values] == ["i4", "(unseen)", "i0", "i3"]
    assert [one["kind"] for one in values] == [0, None, 0, 3]
    assert {one["time_gap"] for one in values} == {"31 s to 1.05 min"}
    assert [event["item"] for event in aside["newest"]] == ["i4", "i3"]
    assert seen["newest"][0]["at"] == format_timestamp(row["at"] + 5)


def test_lists_and_pre_joined_rows(service: Service, full: Any, prejoined: Any) -> None:
    golden = max((one.request for one in full.golden), key=lambda request: len(view_golden(service, request)))
    seen = view_golden(service, golden)
    assert seen
    encoder = service.bundle.fitted.encoders["genres"]
    (row,) = service.served.encoder.find_items(np.array([seen[0]["item"]]))
    genres = service.bundle.items.columns["genres"]
    assert isinstance(genres, Lists)
    own = genres.values[genres.offsets[row] : genres.offsets[row + 1]].tolist()
    assert seen[0]["values"]["genres"] == [read_id(encoder, value) for value in own]
    with pytest.raises(RequestError) as caught:
        Service(prejoined.bundle).read_history(b'{"user": 1}')
    assert (caught.value.status, caught.value.where) == (404, "/history")


def view_golden(service: Service, request: Any) -> list[Any]:
    return list(view(service, request["user"], request["at"])["seen"]["newest"])


@pytest.mark.parametrize(
    ("change", "status", "where"),
    [
        ({"last": 0}, 422, "last"),
        ({"last": 1_001}, 422, "last"),
        ({"user": -5}, 404, "user"),
        ({"at": "soon"}, 422, "at"),
        ({"lats": 3}, 422, "body"),
        ({"recent": [{"item": 1}]}, 422, "recent[0].at"),
    ],
)
def test_faults_have_four_fields(service: Service, full: Any, change: Any, status: int, where: str) -> None:
    request = {"user": full.golden[0].request["user"], "at": full.golden[0].request["at"], **change}
    with InProcess(App(service)) as http:
        answer = http.post("/history", request)
    assert (answer.status, read_error(answer)["where"]) == (status, where)
    assert answer.headers["cache-control"] == "no-store"


@pytest.fixture
def guarded(service: Service, tmp_path: Path) -> Iterator[InProcess]:
    """An application with an ordinary key and an admin key."""
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\nadmin {CHIEF}\n")
    path.chmod(0o600)
    with InProcess(App(service, access=Access(AccessOptions(str(path))))) as http:
        yield http


def test_only_an_admin_key_reads_events(guarded: InProcess, full: Any) -> None:
    request = {"user": full.golden[0].request["user"], "at": full.golden[0].request["at"]}
    assert guarded.post("/history", request).status == 401
    refused = guarded.post("/history", request, authorization=f"Bearer {KEY}")
    assert (refused.status, read_error(refused)["found"]) == (403, "an ordinary key")
    answer = guarded.post("/history", request, authorization=f"Bearer {CHIEF}")
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.json()["user"] == request["user"]
    assert guarded.get("/history", authorization=f"Bearer {CHIEF}").status == 405


def test_a_failure_logs_no_event(
    guarded: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(body: bytes) -> Iterator[Any]:
        raise ValueError(body.decode())
        yield

    monkeypatch.setattr(guarded.app.service, "read_history_in_steps", fail)
    with caplog.at_level(logging.DEBUG):
        answer = guarded.post("/history", {"user": 77_123, "item": "secret"}, authorization=f"Bearer {CHIEF}")
    assert answer.status == 500
    assert "ValueError" in caplog.text
    assert "in fail" in caplog.text
    assert "secret" not in caplog.text + answer.content.decode()
    assert "77123" not in caplog.text + answer.content.decode()


def test_values_of_ids() -> None:
    cuts = BucketizedEncoder((10.0, 1_234_567.0))
    assert [read_id(cuts, value) for value in (0, 2, 3, 4)] == [None, "below 10", "10 to 1234567", "1234567 or more"]
    assert read_id(HashEncoder(50, 9), 19) == "(bucket 17)"
    squares = LogSquareEncoder(-2, 30)
    assert [read_id(squares, value) for value in (2, 4, 5)] == [0, 2, "2.718 to 4.113"]


def test_the_longest_time_has_no_end() -> None:
    schema = {"user": "u", "item": "i", "time": {"column": "t", "unit": "ms"}, "label": "y", "features": {"u": "id"}}
    fitted = FittedSchema(Schema.model_validate(schema), {})
    assert read_column(fitted, "time_gap", np.array([13, TIME_GAP_ROWS - 1])) == ["34.1 min to 1.14 h", LONGEST]


@pytest.mark.parametrize(("unit", "expected"), [("ms", "3 s to 7 s"), ("step", "3 steps to 7 steps")])
def test_values_of_computed_columns(unit: str, expected: str) -> None:
    schema = {"user": "u", "item": "i", "time": {"column": "t", "unit": unit}, "label": "y"}
    features = {"u": {"kind": "id"}, "i": {"kind": "id"}}
    fitted = FittedSchema(Schema.model_validate({**schema, "features": features}), {})
    assert read_column(fitted, "time_gap", np.array([4])) == [expected]
    assert read_column(fitted, "time_since_previous", np.array([0, 4])) == [None, expected]
    assert read_column(fitted, "session_recency", np.array([2, 65])) == [0, 63]
