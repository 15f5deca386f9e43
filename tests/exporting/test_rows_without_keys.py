"""Rows without user, item and time: prepared, split at random, scored alike offline and by a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
import torch

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig, find_schema_faults
from longrec.errors import RequestError
from longrec.exporting.write import export
from longrec.exports import build_offline_request
from longrec.features.schema import Schema
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.serve.service import Service, replay

N = 400
ROWS = {
    "columns": {"click": "int", "spend": "int", "site": "text", "banner": "text"},
    "separator": "\t",
    "quote": None,
}
SCHEMA: dict[str, Any] = {
    "label": "click",
    "features": {
        "spend": {"kind": "bucketized", "log_square": True},
        "site": {"kind": "id"},
        "banner": {"kind": "id", "side": "candidate"},
    },
}
CONTEXT = {"spend": 3, "site": "00000001"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    folder, random = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    with (folder / "rows.txt").open("w") as file:
        for _ in range(N):
            spend = "" if random.random() < 0.2 else str(random.integers(0, 50))
            site, banner = (f"{value:08x}" for value in random.integers(0, 5, 2))
            file.write(f"{random.integers(0, 2)}\t{spend}\t{site}\t{banner}\n")
    source = {"files": str(folder / "rows.txt"), "rows": ROWS}
    data = {"log": source, "folder": str(folder / "prepared"), "threads": 1, "split": {"by": "user"}}
    return Log.open(prepare(DataConfig.model_validate(data), Schema.model_validate(SCHEMA)))


@pytest.fixture(scope="module")
def model(log: Log) -> Ranker:
    torch.manual_seed(0)
    built = build({"name": "fm", "embedding_dim": 4, "init_std": 0.5}, log.fields())
    assert isinstance(built, Ranker)
    return built.eval()


@pytest.fixture(scope="module")
def service(log: Log, model: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Service:
    bundle = tmp_path_factory.mktemp("bundle") / "rows.bundle"
    golden = [build_offline_request(log, model, row, ()) for row in (0, 7)]
    assert golden[0].request.keys() == {"at", "context", "candidate_context"}
    export(model, log.folder, bundle, golden, replay)
    return Service(bundle)


def test_every_row_is_a_user_in_the_order_of_the_file(log: Log) -> None:
    assert log.events.offsets.tolist() == [0, *range(N + 1)]  # no event has the unknown user, row 0
    assert not log.events.columns["item"].any()
    sizes = [len(log.rows_of(split)) for split in ("train", "valid", "test")]
    assert sum(sizes) == N
    assert all(abs(size - share * N) < 25 for size, share in zip(sizes, (0.8, 0.1, 0.1)))
    assert log.rows_of("test").std() > N / 5  # rows of the whole file, and not its end


def test_the_bundle_has_no_users_and_scores_as_offline(log: Log, model: Ranker, service: Service) -> None:
    assert service.health()["users"] == 0
    assert service.check() < 1e-6
    with torch.no_grad():
        expected = torch.sigmoid(model(gather(log, np.arange(1)))).tolist()
    request = build_offline_request(log, model, 0, ()).request
    answer = orjson.loads(service.answer(orjson.dumps(request)))
    scores = {item["id"]: item["score"] for item in answer["items"]}
    assert sorted(scores) == [0, 1, 2, 3]
    assert scores[0] == pytest.approx(expected[0], abs=1e-6)
    assert (answer["user"], answer["unknown"]) == (None, {"user": False, "candidates": []})


def rank_rows(service: Service, **request: Any) -> list[dict[str, Any]]:
    body = {"context": CONTEXT, "candidate_context": {"banner": ["00000001"]}, **request}
    items: list[dict[str, Any]] = orjson.loads(service.answer(orjson.dumps(body)))["items"]
    return items


@pytest.mark.parametrize(
    ("request_keys", "where", "expected"),
    [
        ({"user": 3}, "user", "no user: the schema has none"),
        ({"candidates": [1]}, "candidates", "none: the schema has no item"),
        ({"candidate_context": {"banner": []}}, "candidate_context", "1 to 100,000"),
        ({"at": 3}, "at", "nothing: the schema has no time column"),
    ],
)
def test_a_request_has_only_columns(service: Service, request_keys: dict[str, Any], where: str, expected: str) -> None:
    assert [item["id"] for item in rank_rows(service)] == [0]
    assert [item["id"] for item in rank_rows(service, candidate_context={"banner": None})] == [0]
    with pytest.raises(RequestError) as raised:
        rank_rows(service, **request_keys)
    assert (raised.value.where, raised.value.expected) == (where, expected)


@pytest.mark.parametrize(
    ("data", "schema", "says"),
    [
        ({}, {}, "split: by time needs the time column of the schema; set by: user, which without a user puts rows"),
        ({}, {"user": "u"}, "set by: user, which puts whole users at random"),
        ({"split": {"by": "leave_one_out"}}, {}, "split: leave_one_out tests on the last row of each user"),
        ({"items": "items.csv"}, {}, "items: a table needs its key; set item in the schema"),
    ],
)
def test_settings_that_need_a_missing_column(data: dict[str, Any], schema: dict[str, Any], says: str) -> None:
    config = DataConfig.model_validate({"log": "log.csv", **data})
    faults = find_schema_faults(config, Schema.model_validate(SCHEMA | schema))
    assert any(says in fault for fault in faults)
