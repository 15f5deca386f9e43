from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longrec.serve.rank_stage as rank_file
from longrec.errors import BundleError, RequestError
from longrec.exporting.bundle import Bundle
from longrec.exporting.offline import build_golden_request
from longrec.serve.golden_scores import score_golden
from longrec.serve.request_json import decode_request
from longrec.serve.service import RankResponse, Service


def rank(service: Service, **request: Any) -> RankResponse:
    return service.rank(decode_request(orjson.dumps(request)))


def catch_error(service: Service, **request: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        rank(service, **request)
    return caught.value


def map_scores(answer: RankResponse) -> dict[Any, float]:
    ranked = answer.pipeline_result.candidates
    return dict(zip(ranked.keys.tolist(), ranked.score.tolist()))


@pytest.fixture
def good(full: Any) -> dict[str, Any]:
    return {**full.golden[0].request}


@pytest.mark.parametrize("kind", ["full", "steps", "prejoined"])
def test_every_impression_scores_online_as_offline(request: pytest.FixtureRequest, kind: str) -> None:
    shop = request.getfixturevalue(kind)
    service = Service(shop.bundle)
    assert service.check() < 1e-6
    rows = range(0, len(shop.segment), 7)
    items = np.arange(1, 8)
    wanted = [
        build_golden_request(shop.model, shop.fitted, shop.users, shop.items, shop.sample(row, items)) for row in rows
    ]
    for one, scores in zip(wanted, score_golden(service, wanted)):
        assert np.abs(np.array(one.scores) - scores).max() < 1e-6


@settings(deadline=None, max_examples=25)
@given(row=st.integers(0, 399), shift=st.integers(-3, 20))
def test_histories_online_equal_a_search_from_end_to_end(full: Any, service: Service, row: int, shift: int) -> None:
    at = int(full.segment.times[row]) + 500 * shift
    sample = full.sample(row, np.array([1, 2]), at)
    one = build_golden_request(full.model, full.fitted, full.users, full.items, sample)
    assert np.abs(score_golden(service, [one])[0] - one.scores).max() < 1e-6


@settings(deadline=None, max_examples=25)
@given(number=st.integers(0, 11), late=st.integers(0, 5_000), rating=st.integers(0, 5), item=st.integers(1, 40))
def test_nothing_at_or_after_the_timestamp_changes_an_answer(
    full: Any, number: int, late: int, rating: int, item: int
) -> None:
    service = Service(full.bundle)
    store = service.bundle.store
    assert store is not None
    request = full.golden[number].request
    body = orjson.dumps(request)
    before = service.answer(body)
    user = int(full.users.rows(pa.array([request["user"]]), "user")[0])
    at = int(np.datetime64(request["at"].rstrip("Z"), "ms").astype(np.int64))

    def append_event(timestamp: int) -> None:
        values = {
            "item": item,
            "device": 2,
            "rating": rating + 2,
            "dwell": 2,
            "known.dwell": timestamp,
            "where.liked": 1,
        }
        store.append(
            np.array([user]), np.array([timestamp]), {name: np.array([value]) for name, value in values.items()}
        )

    append_event(at)
    append_event(at + late)
    assert service.answer(body) == before
    append_event(at - 1 - late)
    assert service.answer(body) != before


def test_feedback_is_not_read_before_its_time(full: Any) -> None:
    # the rating of an event is available two seconds later, and reads as not yet known until then
    service = Service(full.bundle)
    request = {**full.golden[0].request, "at": "2021-01-01T00:00:10Z"}
    start = int(np.datetime64("2021-01-01", "ms").astype(np.int64))
    user = int(full.users.rows(pa.array([request["user"]]), "user")[0])
    answers = {}
    for rating in (2, 3):
        for at in (8_000, 7_999):
            own = Service(full.bundle)
            values = {"item": 3, "device": 2, "rating": rating, "dwell": 2, "known.dwell": start, "where.liked": 0}
            assert own.bundle.store is not None
            own.bundle.store.append(
                np.array([user]), np.array([start + at]), {name: np.array([value]) for name, value in values.items()}
            )
            answers[rating, at] = own.answer(orjson.dumps(request))
    assert answers[2, 8_000] == answers[3, 8_000]
    assert answers[2, 7_999] != answers[3, 7_999]
    assert service.answer(orjson.dumps(request)) not in answers.values()


def test_an_answer_says_all(service: Service, full: Any) -> None:
    one = full.golden[0]
    answer = orjson.loads(service.answer(orjson.dumps(one.request)))
    assert list(answer) == ["model", "user", "at", "items", "unknown"]
    assert (answer["model"], answer["user"], answer["at"]) == ("din", one.request["user"], one.request["at"])
    assert answer["unknown"] == {"user": False, "candidates": []}
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(item["id"] for item in answer["items"]) == sorted(one.request["candidates"])
    assert {item["via"] for item in answer["items"]} == {"request"}


def test_many_candidates_score_as_few_do(service: Service, good: dict[str, Any], monkeypatch: Any) -> None:
    request = orjson.dumps(good | {"candidates": [f"i{n}" for n in range(40)]})
    whole = orjson.loads(service.answer(request))
    monkeypatch.setattr(rank_file, "_CHUNK_CANDIDATES", 3)
    chunked = orjson.loads(service.answer(request))
    assert [item["id"] for item in chunked["items"]] == [item["id"] for item in whole["items"]]
    assert np.allclose([i["score"] for i in chunked["items"]], [i["score"] for i in whole["items"]], atol=1e-6)
    monkeypatch.setattr(rank_file, "_CHUNK_POSITIONS", 1)
    assert len(orjson.loads(service.answer(request))["items"]) == 40


def test_an_unknown_user_is_refused_or_ranked_as_new(service: Service, good: dict[str, Any]) -> None:
    error = catch_error(service, **good | {"user": 123_456})
    assert (error.status, error.where) == (404, "user")
    assert "the unknown user 123456" in str(error)
    assert "allow_unknown" in error.do
    first = rank(service, **good | {"user": 123_456, "allow_unknown": True})
    assert (first.new_user, first.new_items) == (True, [])
    other = rank(service, **good | {"user": -1, "allow_unknown": True})
    assert first.pipeline_result.candidates.score.tolist() == other.pipeline_result.candidates.score.tolist()
    assert not rank(service, **good | {"allow_unknown": True}).new_user


def test_unknown_items_are_refused_by_name_or_ranked_as_new(service: Service, good: dict[str, Any]) -> None:
    strange = [f"x{n}" for n in range(8)]
    error = catch_error(service, **good | {"candidates": [*strange, "i3"]})
    assert (error.status, error.where) == (404, "candidates")
    assert error.found == "8 unknown items: 'x0', 'x1', 'x2', 'x3', 'x4', ..."
    answer = rank(service, **good | {"candidates": ["x1", "i3", "x0"], "allow_unknown": True})
    assert answer.new_items == ["x1", "x0"]
    scores = map_scores(answer)
    assert scores["x1"] == pytest.approx(scores["x0"], abs=1e-6)
    assert scores["i3"] == pytest.approx(map_scores(rank(service, **good | {"candidates": ["i3"]}))["i3"], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"user": "11"}, "user", "text, for example '11'; expected integers, as in the log"),
        ({"candidates": [3]}, "candidates", "integers, for example 3; expected text, as in the log"),
        ({"candidates": ["i3", 4]}, "candidates", "integers, for example 4; expected text"),
        ({"context": {}}, "context", "no 'device'; no 'shown'; no 'campaign'; no 'tags'; no 'tag_weights'"),
        ({"history": {}}, "history", "none: this bundle stores histories itself"),
        ({"at": "noon"}, "at", "ISO 8601"),
        ({"at": 1e300}, "at", "reads as ns"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(
    service: Service, good: dict[str, Any], change: dict[str, Any], where: str, message: str
) -> None:
    error = catch_error(service, **good | change)
    assert (error.status, error.where) == (422, where)
    assert message in str(error)


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"devise": "d1"}, "context", "the unknown key 'devise'"),
        ({"rating": 5}, "context", "the unknown key 'rating'; expected device, shown, campaign, tags, tag_weights"),
        ({"device": 3}, "context.device", "integers, for example 3; expected text"),
        ({"device": ["d1"]}, "context.device", "expected 64-bit integers or strings"),
        ({"device": {"a": 1}}, "context.device", "an object; expected a number, a text"),
        ({"shown": "much"}, "context.shown", "text, for example 'much'; expected numbers"),
        ({"shown": [1]}, "context.shown", "expected numbers"),
        ({"tags": ["sun"], "tag_weights": [-3.5e38]}, "context.tags: weights", "-3.5e+38 at row 0, beyond the range"),
        ({"campaign": 2.5}, "context.campaign", "ids stored as floats"),
        ({"campaign": 10**18 * 8, "tags": "sun"}, "context.tags", "a list column"),
        ({"tags": ["sun"], "tag_weights": [1.0, 2.0]}, "context.tags: weights", "one weight per value"),
        ({"tags": ["sun", 1], "tag_weights": [1.0, 2.0]}, "context.tags", "one type"),
        ({"tags": [1], "tag_weights": [1.0]}, "context.tags", "integers, for example 1; expected text"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(
    service: Service, good: dict[str, Any], change: dict[str, Any], where: str, message: str
) -> None:
    error = catch_error(service, **good | {"context": good["context"] | change})
    assert (error.status, error.where) == (422, where)
    assert message in str(error)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150)
@given(
    field=st.sampled_from(["user", "candidates", "at", "context", "history", "allow_unknown", "strange"]),
    column=st.sampled_from(["device", "shown", "campaign", "tags", "tag_weights"]),
    value=ANYTHING,
)
def test_no_request_breaks_the_service(service: Service, full: Any, field: str, column: str, value: Any) -> None:
    request = {**full.golden[0].request}
    if field == "context":
        value = {**request["context"], column: value}
    body = json.dumps(request | {field: value}).encode()  # encodes NaN and large integers, which orjson does not
    try:
        outcome: Any = orjson.loads(service.answer(body))["items"]
    except RequestError as error:
        outcome = error
    if isinstance(outcome, RequestError):
        assert outcome.status in (400, 404, 413, 422)
        assert all(isinstance(text, str) for text in (outcome.where, outcome.found, outcome.expected, outcome.do))
    else:
        assert len(outcome) == len(request["candidates"])


def test_a_missing_value_of_the_context_may_be_null(service: Service, good: dict[str, Any]) -> None:
    empty = dict.fromkeys(good["context"])
    nothing = rank(service, **good | {"context": empty})
    assert len(nothing.pipeline_result.candidates) == len(good["candidates"])
    lists = rank(service, **good | {"context": empty | {"tags": [], "tag_weights": []}})
    assert lists.pipeline_result.candidates.score.tolist() == nothing.pipeline_result.candidates.score.tolist()


def test_the_context_and_the_calendar_are_read(service: Service, good: dict[str, Any]) -> None:
    def scores(**change: Any) -> list[float]:
        answer = rank(service, **good | {"candidates": ["i1"], **change})
        return answer.pipeline_result.candidates.score.tolist()

    usual = scores()
    for column, value in {"device": "d2", "shown": 900.5, "campaign": 7}.items():
        assert scores(context=good["context"] | {column: value}) != usual
    assert scores(at="2031-01-01T00:00:00Z") != scores(at="2031-01-01T05:00:00Z")


def test_the_unit_of_a_timestamp_of_an_auto_log_follows_from_its_size(service: Service, good: dict[str, Any]) -> None:
    answers = [rank(service, **good | {"at": at}) for at in ("2020-09-13T12:26:50Z", 1_600_000_010, 1_600_000_010_000)]
    assert {answer.at for answer in answers} == {"2020-09-13T12:26:50.000Z"}
    assert len({tuple(answer.pipeline_result.candidates.score.tolist()) for answer in answers}) == 1


def test_now_is_the_default_timestamp(service: Service, good: dict[str, Any]) -> None:
    answer = rank(service, **{name: value for name, value in good.items() if name != "at"})
    assert abs(np.datetime64(str(answer.at).rstrip("Z"), "s") - np.datetime64("now")) < np.timedelta64(60, "s")


def test_a_prejoined_history_comes_with_the_request(prejoined: Any) -> None:
    service = Service(prejoined.bundle)
    good = {"user": 1, "candidates": [1, 2, 3], "context": {"slot": 1}}
    events = {"item_id": [4, 5, 6], "color": ["red", None, "mauve"]}
    empty = rank(service, **good, history={"clicks": {"item_id": [], "color": []}})
    full = rank(service, **good, history={"clicks": events})
    assert full.at is None
    assert empty.pipeline_result.candidates.score.tolist() != full.pipeline_result.candidates.score.tolist()
    longer = {"item_id": [9, 9, 9, *events["item_id"] * 2], "color": ["red", "red", "red", *events["color"] * 2]}
    last = {name: values[-6:] for name, values in longer.items()}
    assert np.allclose(
        rank(service, **good, history={"clicks": longer}).pipeline_result.candidates.score,
        rank(service, **good, history={"clicks": last}).pipeline_result.candidates.score,
    )
    faults = {
        "history": [None, {}, {"click": events}],
        "history.clicks": [{"clicks": {"item_id": [1]}}, {"clicks": {"item_id": [1], "color": []}}],
        "history.clicks.item_id": [{"clicks": {"item_id": ["4"], "color": ["red"]}}],
        "history.clicks.color": [{"clicks": {"item_id": [4], "color": [1.5]}}],
    }
    for where, histories in faults.items():
        for history in histories:
            error = catch_error(service, **good, history=history)
            assert (error.status, error.where) == (422, where), history


def test_steps_are_counted_as_in_the_log(steps: Any) -> None:
    service = Service(steps.bundle)
    good = {"user": "n1", "candidates": [1, 2], "context": {"place": 3}}
    assert rank(service, **good, at=70).at == 70
    for at in (None, "2026-01-01", 7.5):
        assert "a whole number" in str(catch_error(service, **good, at=at))
    assert catch_error(service, **good | {"candidates": ["1"]}, at=1).where == "candidates"
    assert catch_error(service, **good | {"user": 1}, at=1).where == "user"


def test_a_machine_that_computes_other_scores_does_not_serve(steps: Any) -> None:
    bundle = Bundle.open(steps.bundle)
    one = bundle.golden[0]
    bundle.golden[0] = type(one)(one.request, [score + 2e-4 for score in one.scores])
    with pytest.raises(BundleError, match="golden request 0: scores differ by 0.0002 on this machine"):
        Service(bundle).check()


def test_serving_needs_no_torch(full: Any) -> None:
    code = (
        "import sys, orjson\n"
        "import longrec.serve.app, longrec.serve.client, longrec.serve.server\n"
        "from longrec.serve.service import Service\n"
        f"service = Service({str(full.bundle)!r}); service.check()\n"
        "service.answer(orjson.dumps(service.example()))\n"
        "names = ('torch', 'longrec.training', 'longrec.data', 'longrec.models.core.base')\n"
        "wrong = [name for name in names if name in sys.modules]\n"
        "assert not wrong, wrong"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
