from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from longrec.errors import RequestError
from longrec.features.schema import TimeColumn
from longrec.serve.request_json import EventRequest, decode_event, decode_request
from longrec.serve.request_time import parse_request_time

GOOD = {"user": 1, "candidates": [1, 2]}


def catch_error(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_request(body)
    return caught.value


def test_a_request_is_typed() -> None:
    request = decode_request(
        b'{"user":"u","candidates":["a",1],"at":"2026-01-31","context":{"x":null},"allow_unknown":true}'
    )
    assert (request.user, request.candidates, request.at) == ("u", ["a", 1], "2026-01-31")
    assert (request.context, request.history, request.allow_unknown) == ({"x": None}, None, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"user":1,"candidates":[1]} x',
        b'{"user":1,"candidates":[1],"at":NaN}',
        b'{"user":1,"candidates":[1],"context":{"x":-Infinity}}',
        b'{"user":"\xff","candidates":[1]}',
        b'{"user":1,"candidates":[1],"context":{"x":' + b"[" * 200_000,
    ],
)
def test_what_is_no_json_is_a_400(body: bytes) -> None:
    error = catch_error(body)
    assert error.status == 400
    assert str(error).startswith("body: not JSON (")
    assert "NaN and Infinity are not JSON" in str(error)


@pytest.mark.parametrize(
    ("change", "where", "actual", "expected"),
    [
        ({"user": 1.5}, "user", "a value of type number", "whole number or text"),
        ({"user": True}, "user", "a value of type true or false", "whole number or text"),
        ({"user": None}, "user", "nothing", "a value"),
        ({"user": 2**63}, "user", "an integer of more than 64 bits", "signed 64-bit integers or text"),
        ({"candidates": 3}, "candidates", "a value of type whole number", "list"),
        ({"candidates": [1, 2.0]}, "candidates[1]", "a value of type number", "whole number or text"),
        ({"candidates": []}, "candidates", "an empty list", "1 to 100,000 items"),
        ({"candidates": [4, 7, 8, 7]}, "candidates", "7 twice, at 1 and 3", "each item once"),
        ({"context": [1]}, "context", "a value of type list", "mapping"),
        ({"history": {"h": 1}}, "history[...]", "a value of type whole number", "mapping"),
        ({"allow_unknown": 1}, "allow_unknown", "a value of type whole number", "true or false"),
        ({"candidate": [1]}, "body", "the unknown key 'candidate'", "user, candidates"),
    ],
)
def test_another_form_is_a_422_with_its_path(change: dict[str, Any], where: str, actual: str, expected: str) -> None:
    error = catch_error(orjson.dumps(GOOD | change))
    assert (error.status, error.where, error.found) == (422, where, actual)
    assert expected in error.expected


def test_more_faults_of_form() -> None:
    assert "did you mean 'candidates'?" in catch_error(b'{"user":1,"candidates":[1],"candidats":[1]}').do.lower()
    assert catch_error(b'{"user":1}').where == "candidates"
    assert catch_error(b"[1]").found == "a value of type list"
    error = catch_error(b'{"user":1,"candidates":[1],"at":1e999}')
    assert (error.status, error.where, error.found) == (422, "at", "number out of range")
    error = catch_error(b'{"user":1,"candidates":' + orjson.dumps(list(range(100_001))) + b"}")
    assert (error.status, error.found, error.expected) == (413, "100,001 items", "at most 100,000")
    assert (
        len(decode_request(b'{"user":1,"candidates":' + orjson.dumps(list(range(100_000))) + b"}").candidates)
        == 100_000
    )


@pytest.mark.parametrize(
    ("at", "unit", "expected"),
    [
        ("2001-09-09T01:46:40Z", "s", 1_000_000_000_000),
        ("2001-09-09T01:46:40", "ms", 1_000_000_000_000),
        ("2001-09-09T03:46:40.0019+02:00", "auto", 1_000_000_000_001),
        ("2001-09-09", "ns", 999_993_600_000),
        (1_000_000_000, "s", 1_000_000_000_000),
        (1_000_000_000.0015, "s", 1_000_000_000_001),
        (1_000_000_000_000, "ms", 1_000_000_000_000),
        (1_000_000_000_000_999, "us", 1_000_000_000_000),
        (1_000_000_000_000_999_999, "ns", 1_000_000_000_000),
        (1_000_000_000, "auto", 1_000_000_000_000),
        (1_000_000_000_000, "auto", 1_000_000_000_000),
        (1_000_000_000_000_000, "auto", 1_000_000_000_000),
        (1_000_000_000_000_000_000, "auto", 1_000_000_000_000),
        (5, "s", 5_000),
        ("5", "s", 5_000),
        ("1000000000.0019", "auto", 1_000_000_000_001),
        ("2026", "step", 2026),
        (17.0, "step", 17),
        (None, "s", 77),
    ],
)
def test_timestamps_are_read_in_the_unit_of_the_log(at: Any, unit: Any, expected: int) -> None:
    assert parse_request_time(at, TimeColumn(column="t", unit=unit), 77) == expected


@pytest.mark.parametrize(
    ("at", "unit", "message"),
    [
        ("soon", "s", "the text 'soon'; expected ISO 8601 such as 2026-01-31T12:00:00Z"),
        (1_000_000_000_000, "s", "which reads as ms; expected an epoch number in s, as the log"),
        (1_000_000_000, "ms", "which reads as s; expected an epoch number in ms"),
        (12, "auto", "which reads near 1970; expected an epoch number in s, ms, us or ns"),
        (10**400, "s", "reads as ns"),
        (1e300, "s", "reads as ns"),
        (-(10**13), "ms", None),
        ("2026-01-31", "step", "a whole number, as the log counts its steps"),
        (1.5, "step", "a whole number"),
        (None, "step", "nothing; expected a whole number"),
        (2**62, "step", "a whole number"),
    ],
)
def test_a_timestamp_in_another_unit_is_refused(at: Any, unit: Any, message: str | None) -> None:
    if message is None:
        assert parse_request_time(at, TimeColumn(column="t", unit=unit), 0) == at
        return
    with pytest.raises(RequestError) as caught:
        parse_request_time(at, TimeColumn(column="t", unit=unit), 0)
    assert caught.value.status == 422
    assert message in str(caught.value)


def test_timestamps_without_a_clock() -> None:
    assert parse_request_time(41, TimeColumn(column="t", unit="step"), 0) == 41
    assert parse_request_time(None, None, 5) == 0
    with pytest.raises(RequestError, match="the schema has no time column"):
        parse_request_time("2026-01-01", None, 0)


def test_an_event_is_typed() -> None:
    event = decode_event(b'{"user":"u","item":3,"at":7,"context":{"x":null},"feedback":{"y":1},"request":5}')
    assert (event.user, event.item, event.at, event.request) == ("u", 3, 7, 5)
    assert (event.context, event.feedback, event.allow_unknown) == ({"x": None}, {"y": 1}, False)
    for body, status, where in (
        (b"{", 400, "body"),
        (b'{"user":1}', 422, "item"),
        (b'{"user":1,"item":2.5}', 422, "item"),
        (b'{"user":1,"item":2,"context":[]}', 422, "context"),
        (b'{"user":1,"item":2,"contex":{}}', 422, "body"),
        (b'{"user":1,"item":2,"feedback":[]}', 422, "feedback"),
    ):
        with pytest.raises(RequestError) as caught:
            decode_event(body)
        assert (caught.value.status, caught.value.where) == (status, where)


def test_every_key_of_an_event_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guide" / "events.md").read_text()
    table = text.split("| key of an event |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, re.M)) == set(EventRequest.__struct_fields__)
