"""A retriever and a ranker in one service: each stage encodes the request for its own bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import retrievers
import torch

import longrec
from longrec.errors import BundleError, ConfigError, RequestError, RunError
from longrec.exporting.bundle import INDEX, Bundle
from longrec.exporting.write import export
from longrec.pipeline.candidates import Candidates
from longrec.serve.client import Client, client
from longrec.serve.rank_stage import RankStage
from longrec.serve.request_json import decode_request
from longrec.serve.server import run_server
from longrec.serve.service import Service, replay
from longrec.serve.settings import Settings


@pytest.fixture(scope="module", params=["in process", "over HTTP"])
def both(request: pytest.FixtureRequest, full: Any) -> Iterator[Client]:
    recall = retrievers.vectors().bundle
    if request.param == "in process":
        with client(full.bundle, recall=recall) as opened:
            yield opened
        return
    with run_server(full.bundle, settings=Settings(recall=str(recall))) as url, client(url) as opened:
        yield opened


def test_retrieved_items_are_ranked(both: Client, full: Any) -> None:
    request = {**retrievers.vectors().golden[1].request, "k": 4, "exclude_seen": False}
    items = [full.items.key(row) for row in range(1, len(full.items))]
    ranked = both.rank(request["user"], items, request["at"], request["context"])
    answer = both.recommend(**request)
    assert [(item.id, item.score) for item in answer] == [(item.id, pytest.approx(item.score)) for item in ranked[:4]]
    assert {item.via for item in answer} == {"mean1"}
    assert (answer.at, answer.new_user) == (request["at"], False)
    unseen = both.recommend(**request | {"exclude_seen": True, "k": 1_000})
    assert 0 < len(unseen) < len(items)
    with pytest.raises(RequestError, match="the unknown user 5"):
        both.recommend(**request | {"user": 5})
    assert both.recommend(**request | {"user": 5, "allow_unknown": True}).new_user


def test_each_stage_takes_its_own_columns_of_the_context(full: Any) -> None:
    with contextlib.closing(Service(full.bundle, Settings(recall=str(retrievers.vectors().bundle)))) as service:
        stages = service.pipelines["/recommend"].stages
        assert [stage.name for stage in stages] == ["recall.mean1", "rank", "top"]
        assert service.check() < 1e-5
        request = {**retrievers.vectors().golden[1].request}
        request["context"] = {**request["context"], "campain": 3}
        with pytest.raises(RequestError, match="context: the unknown key 'campain'"):
            service.answer(orjson.dumps(request), "/recommend")


def test_retrieved_items_that_the_ranker_does_not_know_are_dropped(full: Any, service: Service) -> None:
    query = decode_request(orjson.dumps(full.golden[0].request)).build_query(1_600_000_010_000)
    candidates = Candidates.of(["i1", "nobody", "i3"], "mean1")
    ranked = RankStage(service.served, drop_unknown=True)(candidates, query)
    assert sorted(ranked.keys.tolist()) == ["i1", "i3"]
    assert query.unknown.items == []
    with pytest.raises(RequestError, match="1 unknown item: 'nobody'"):
        RankStage(service.served)(candidates, query)
    assert len(RankStage(service.served)(candidates.take(np.zeros(0, np.int64)), query)) == 0


def test_bundles_that_do_not_fit_are_refused(full: Any, steps: Any, prejoined: Any) -> None:
    mean, count = retrievers.vectors().bundle, retrievers.counts().bundle
    cases = [
        (mean, count, "is a bundle of a retriever; expected one of a ranker"),
        (full.bundle, steps.bundle, "is a bundle of a ranker; expected one of a retriever"),
        (full.bundle, count, "times as timestamps; expected steps, as in recall.count.bundle"),
        (prejoined.bundle, mean, "times as none; expected timestamps"),
    ]
    for ranker, recall, message in cases:
        with pytest.raises(ConfigError, match=message):
            Service(ranker, Settings(recall=str(recall)))


def test_a_retriever_over_http(full: Any) -> None:
    retrieval = retrievers.vectors()
    with run_server(retrieval.bundle, workers=2) as url, client(url) as shop:
        for golden in retrieval.golden:
            answer = shop.recommend(**golden.request)
            assert [item.score for item in answer] == pytest.approx(golden.scores, abs=1e-4)
        assert shop.health()["model"] == "mean1"
        example = orjson.loads(shop._call("GET", "/example"))  # type: ignore[attr-defined]
        assert shop.recommend(**example)
        text = shop._call("GET", "/metrics").decode()  # type: ignore[attr-defined]
        assert 'longrec_requests_total{route="/recommend",status="200"}' in text
        with pytest.raises(RequestError, match="/rank: a bundle of a retriever") as caught:
            shop.rank(**full.golden[0].request)
        assert caught.value.status == 404


def test_an_export_with_other_items_fails(tmp_path: Any) -> None:
    retrieval = retrievers.counts()
    one = retrieval.golden[0]
    wrong = type(one)(one.request, [score + 1 for score in one.scores], items=one.items)
    with pytest.raises(BundleError, match="golden request 0: the exported program differs from the model"):
        export(retrieval.model, retrieval.shop.log, tmp_path / "out", [wrong], replay, name="count")
    assert list(tmp_path.iterdir()) == []


def test_semantic_ids_of_a_bundle_quantize_the_vectors_of_its_index(full: Any, tmp_path: Path) -> None:
    bundle = retrievers.vectors().bundle
    method = {"name": "rq_kmeans", "levels": 2, "size": 4}
    config = {"vectors": {"run": str(bundle), "item": "film"}, "method": method}
    ids = longrec.tokenize(config, into=tmp_path / "ids", quiet=True)
    assert ids.items.to_pylist() == Bundle.open(bundle).items.keys.values.to_pylist()
    assert ids.codes.tolist() == ids.tokenizer.codes(torch.from_numpy(np.load(bundle / INDEX))).tolist()
    with pytest.raises(RunError, match="ranker, which has no vectors of items"):
        longrec.tokenize({"vectors": {"run": str(full.bundle)}}, into=tmp_path / "no")
