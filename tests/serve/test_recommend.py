"""Bundles of retrievers: the service returns the items that the model in torch ranks first."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
import retrievers
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from longrec.errors import BundleError, RequestError
from longrec.exporting.bundle import Bundle
from longrec.exporting.inputs import make_random_tensors
from longrec.serve import response_schemas
from longrec.serve.client import client
from longrec.serve.golden_scores import score_golden
from longrec.serve.open_api import build_document
from longrec.serve.request_json import decode_recommend_request
from longrec.serve.service import Service


@pytest.fixture(scope="module", params=["one interest", "three interests", "counts"])
def retrieval(request: pytest.FixtureRequest) -> retrievers.RetrievalShop:
    if request.param == "counts":
        return retrievers.counts()
    return retrievers.vectors(1 if request.param == "one interest" else 3)


@pytest.fixture(scope="module")
def mean() -> Service:
    return Service(retrievers.vectors().bundle)


@pytest.fixture
def good() -> dict[str, Any]:
    return {**retrievers.vectors().golden[1].request}


def recommend(service: Service, **request: Any) -> dict[str, Any]:
    content = service.answer(orjson.dumps(request), "/recommend")
    msgspec.json.decode(content, type=response_schemas.RecommendResponse)  # as the OpenAPI document says
    answer: dict[str, Any] = orjson.loads(content)
    return answer


def catch_error(service: Service, route: str = "/recommend", **request: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        service.answer(orjson.dumps(request), route)
    return caught.value


def test_the_document_has_an_example_of_every_program(mean: Service) -> None:
    document = build_document(mean, "1", 1_000)
    validate(document)
    paths = document["paths"]
    assert "example" not in paths["/rank"]["post"]["requestBody"]["content"]["application/json"]
    request = paths["/recommend"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert len(recommend(mean, **request)["items"]) > 0
    examples = paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert list(examples) == [f"{mean.model}.users", f"{mean.model}.items"]
    for name, example in examples.items():
        answer = mean.programs.infer(name, orjson.dumps(example["value"]))
        msgspec.json.decode(answer.content, type=response_schemas.InferResponse)


def test_every_impression_retrieves_online_as_offline(retrieval: retrievers.RetrievalShop) -> None:
    service = Service(retrieval.bundle)
    assert service.check() < 1e-6
    rows = range(0, len(retrieval.shop.segment), 9)
    wanted = [retrieval.retrieve(row, k, bool(row % 2)) for row in rows for k in (1, 5, 1_000)]
    for one, scores in zip(wanted, score_golden(service, wanted)):
        assert np.abs(np.array(one.scores) - scores).max(initial=0) < 1e-4
        items = [item["id"] for item in recommend(service, **one.request)["items"]]
        if retrieval.model.needs_training_window:  # counts have no rounding, and many ties
            assert items == one.items
        assert set(items) == set(one.items) or len(items) == one.request["k"]


@settings(deadline=None, max_examples=25)
@given(row=st.integers(0, 399), shift=st.integers(-3, 20))
def test_seen_items_are_those_of_events_strictly_before(row: int, shift: int) -> None:
    retrieval, service = retrievers.vectors(), Service(retrievers.vectors().bundle)
    at = int(retrieval.shop.segment.times[row]) + 500 * shift
    one = retrieval.retrieve(row, 1_000, True, at)
    user = int(np.searchsorted(retrieval.shop.segment.offsets, row, side="right")) - 1
    seen = {retrieval.shop.items.key(item) for item in retrieval.find_seen_items(user, at).tolist()}
    every = {retrieval.shop.items.key(item) for item in range(1, len(retrieval.shop.items))}
    items = [item["id"] for item in recommend(service, **one.request)["items"]]
    assert set(items) == every - seen
    assert len({item["id"] for item in recommend(service, **one.request | {"exclude_seen": False})["items"]}) == 40


def test_an_answer_says_all(mean: Service, good: dict[str, Any]) -> None:
    answer = recommend(mean, **good)
    assert list(answer) == ["model", "request", "user", "at", "items", "unknown", "fallbacks"]
    assert (answer["model"], answer["user"], answer["at"]) == ("mean1", good["user"], good["at"])
    assert answer["unknown"] == {"user": False}
    assert len(answer["items"]) == good["k"]
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert {item["via"] for item in answer["items"]} == {"mean1"}
    plain = {name: good[name] for name in ("user", "context")}
    assert len(recommend(mean, **plain)["items"]) == 10


def test_faults_have_their_status(mean: Service, good: dict[str, Any], full: Any) -> None:
    cases = [
        ({"k": 0}, 422, "k: 0 items; expected 1 to 1,000\n  Ask for one item or more"),
        ({"k": 1_001}, 422, "k: 1,001 items"),
        ({"k": "3"}, 422, "k: a value of type text"),
        ({"candidates": [1]}, 422, "body: the unknown key 'candidates'"),
        ({"user": "11"}, 422, "user: text, for example '11'"),
        ({"user": 5}, 404, "user: the unknown user 5"),
        ({"context": {}}, 422, "context: no 'device'"),
        ({"history": {}}, 422, "history: a history in the request"),
        ({"at": "noon"}, 422, "at: the text 'noon'"),
    ]
    for change, status, message in cases:
        error = catch_error(mean, **good | change)
        assert (error.status, str(error)[: len(message)]) == (status, message)
    new = recommend(mean, **good | {"user": 5, "allow_unknown": True})
    assert (new["unknown"]["user"], len(new["items"])) == (True, good["k"])
    error = catch_error(mean, "/rank", **full.golden[0].request)
    assert (error.status, error.where, error.found) == (404, "/rank", "a bundle of a retriever")
    assert "post to /recommend" in error.do
    error = catch_error(Service(full.bundle), **good)
    assert (error.status, error.where, error.found) == (404, "/recommend", "a bundle of a ranker")
    assert "--recall" in error.do


def test_a_machine_that_computes_other_scores_does_not_serve() -> None:
    bundle = Bundle.open(retrievers.counts().bundle)
    one = bundle.golden[0]
    bundle.golden[0] = type(one)(one.request, [score + 0.1 for score in one.scores], items=one.items)
    with pytest.raises(BundleError, match="golden request 0: scores differ"):
        Service(bundle).check()
    bundle.golden[0] = type(one)(one.request, [*one.scores, 0.0], items=[*one.items, 99])
    with pytest.raises(BundleError, match="golden request 0: scores differ"):
        Service(bundle).check()


def test_programs_are_models_of_the_protocol(mean: Service, service: Service) -> None:
    metadata = mean.programs.metadata("mean1.users")
    assert metadata["outputs"] == [{"name": "vectors", "datatype": "FP32", "shape": [1, 64]}]
    assert mean.programs.metadata("mean1.items")["inputs"][0]["shape"] == [-1]
    with pytest.raises(RequestError, match=r"the unknown model 'mean1'; expected mean1.users, mean1.items"):
        mean.programs.metadata("mean1")
    assert service.programs.metadata("din.score") == {**service.programs.metadata("din"), "name": "din.score"}
    with pytest.raises(RequestError, match="the unknown model 'x'; expected din"):
        service.programs.metadata("x")
    with client(mean.bundle.path) as shop:
        for name in ("users", "items"):
            tensors = make_random_tensors(mean.bundle.manifest.programs[name].inputs, 5, 4, 0)
            assert np.array_equal(shop.infer(tensors, name), mean.served.programs[name].run(tensors))
        assert shop.metadata("users") == metadata


def test_a_request_is_encoded_once_for_stages_of_one_bundle(mean: Service, good: dict[str, Any]) -> None:
    query = decode_recommend_request(orjson.dumps(good)).build_query(1_600_000_010_000)
    assert query.encode(mean.served.encoder) is query.encode(mean.served.encoder)
    assert list(query.memo) == [mean.served.encoder]
