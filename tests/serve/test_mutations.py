"""Mutated requests: each is answered with finite scores, or refused with a short message, in little time."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
import retrievers
import row_shop
import shop
import token_shop
from mutations import Mutator

from longrec.errors import RequestError
from longrec.serve.service import Service
from longrec.serve.settings import Settings

SECONDS = 3.0
"""CPU time that no mutation takes: many times that of the slowest, and far below that of quadratic work."""
LONGEST = 2_000
"""Characters of the longest message."""
NEW = {"price": 3.5, "genres": ["b", "zz"], "actors": [4, 5], "fame": [1.0, 2.0], "year": 2031}


def answer_or_error(answer: Callable[[bytes], Any], body: bytes) -> Any:
    """Return the answer to a body, or its error."""
    try:
        return answer(body)
    except RequestError as error:
        return error


def check_error(error: RequestError) -> None:
    """Check that an error blames the request, in all fields and few characters."""
    assert 400 <= error.status < 500
    assert len(str(error)) <= LONGEST
    assert all([error.where, error.found, error.expected])
    orjson.dumps([error.where, error.found, error.expected, error.do])


def check_all(answer: Callable[[bytes], Any], valid: Mapping[str, Any], count: int, seed: int = 0) -> list[int]:
    """Send mutations of a valid request, and return the statuses.

    Args:
        answer: returns the answer to a body.
    """
    answer(orjson.dumps(valid))
    mutator, statuses = Mutator(seed, 10_000), list[int]()
    for number in range(count):
        body, began = mutator.mutate(valid), time.process_time()
        answered = answer_or_error(answer, body)
        assert time.process_time() - began < SECONDS, (number, body[:500])
        if isinstance(answered, RequestError):
            check_error(answered)
        elif isinstance(answered, bytes):
            assert all(math.isfinite(item["score"]) for item in orjson.loads(answered)["items"]), (number, body[:500])
        statuses.append(answered.status if isinstance(answered, RequestError) else 200)
    return statuses


def check_statuses(statuses: list[int]) -> None:
    """Check that mutations neither miss nor break every request."""
    assert statuses.count(200) > 0
    assert statuses.count(422) > 0.3 * len(statuses)


@pytest.fixture
def ranker(full: shop.Shop, tmp_path: Path) -> Iterator[Service]:
    """A service whose catalog belongs to one test."""
    shutil.copytree(full.bundle, tmp_path / "bundle")
    opened = Service(tmp_path / "bundle")
    yield opened
    opened.close()


def test_rankings(full: shop.Shop, service: Service) -> None:
    valid = full.golden[0].request
    before = service.answer(orjson.dumps(valid))
    check_statuses(check_all(service.answer, valid, 70))
    assert service.answer(orjson.dumps(valid)) == before


def test_rankings_of_columns_of_candidates(exported: row_shop.ExportedLog) -> None:
    service, raw = Service(exported.bundle), row_shop.sort_rows(exported)
    others = {row["item"]: row for row in raw[1:40] if row["item"] != raw[0]["item"]}
    valid = row_shop.build_request(service, raw[0], [*others.values()][:3])
    check_statuses(check_all(service.answer, valid, 70))


def test_rankings_of_histories_in_the_request(prejoined: shop.Shop) -> None:
    service = Service(prejoined.bundle)
    check_statuses(check_all(service.answer, prejoined.golden[0].request, 40))


def test_recommendations() -> None:
    retrieval = retrievers.vectors()
    service = Service(retrieval.bundle)
    statuses = check_all(lambda body: service.answer(body, "/recommend"), retrieval.golden[1].request, 30)
    check_statuses(statuses)


def test_events(tmp_path: Path) -> None:
    own = token_shop.shop()
    service = Service(own.bundle, Settings(events=str(own.source), state=str(tmp_path / "state")))
    valid: dict[str, Any] = {"user": "u1", "item": 104, "at": token_shop.START + 20 * token_shop.DAY}
    valid |= {"context": {"place": "side", "price": 2.25}, "allow_unknown": True}
    statuses = check_all(service.record, valid, 30)
    statuses += check_all(service.record, {**valid, "feedback": {"stars": 4.0, "click": 1}}, 30, seed=1)
    check_statuses(statuses)
    ranking = {"user": "u1", "candidates": [100, 101], "context": valid["context"]}
    assert all(0 < item["score"] < 1 for item in orjson.loads(service.answer(orjson.dumps(ranking)))["items"])
    service.close()


def test_changes_of_items(full: shop.Shop, ranker: Service) -> None:
    valid = {"items": [{"item_id": "n1", **NEW}, {"item_id": "i3", "price": 9.5}, {"item_id": "i5", "withdrawn": True}]}
    statuses = check_all(ranker.change_items, valid, 60)
    check_statuses(statuses)
    answer = orjson.loads(ranker.answer(orjson.dumps(full.golden[0].request)))
    assert all(0 < item["score"] < 1 for item in answer["items"])
