"""Events that reach ordinary histories through ``/events``: the same scores as of a log that contains them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import orjson
import pipelines
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import row_shop
from live_shop import RANK, RECORD, ROWS, STARS, USERS, Clock, Trained, make_rows, rank, record, serve

import longrec
from longrec.errors import BundleError, RequestError, StoreError
from longrec.serve.client import client
from longrec.serve.service import Service
from longrec.serve.settings import Settings, build_settings


def test_scores_equal_those_of_a_log_with_the_events(trained: Trained, state: str, tmp_path: Path) -> None:
    """Every impression is ranked, then recorded. Its stars follow when they are known, after a restart too."""
    clock, online = Clock(), dict[int, float]()
    timeline = [(row["at"], step, number) for number, row in enumerate(trained.rows) for step in (RANK, RECORD)]
    timeline += [(row["starred_at"], STARS, n) for n, row in enumerate(trained.rows) if row["stars"] is not None]
    timeline.sort()
    for half in (timeline[: len(timeline) // 2], timeline[len(timeline) // 2 :]):
        with serve(trained, state, clock) as service:
            for clock.now, step, number in half:
                row = trained.rows[number]
                if step == RANK:
                    online[number] = rank(service, row)
                elif step == RECORD:
                    first = record(service, row)
                    again = record(service, row)
                    assert (first["replaced"], again["replaced"]) == (False, True)
                    assert first["visible"] == again["visible"]
                else:
                    assert record(service, row, context=None, feedback={"stars": row["stars"]})["replaced"]
    pq.write_table(pa.Table.from_pylist(trained.rows), tmp_path / "new.parquet")
    scores = pq.read_table(longrec.predict(trained.run, log=str(tmp_path / "new.parquet"), into=tmp_path / "scores"))
    offline = scores.sort_by([("timestamp", "ascending")]) if "timestamp" in scores.column_names else scores
    served = np.array([online[number] for number in range(len(trained.rows))])
    np.testing.assert_allclose(served, offline["score"].to_numpy(), atol=2e-6)
    assert any(
        row["user_id"] >= USERS for row in trained.rows
    )  # users whom the bundle does not know have histories too
    with contextlib.closing(Service(trained.bundle)) as frozen:
        plain = [rank(frozen, row) for row in trained.rows]
    assert np.mean(np.abs(np.array(plain) - served) > 1e-3) > 0.5  # without the events, most scores differ


def test_events_of_the_bundle_are_not_doubled(trained: Trained, tmp_path: Path) -> None:
    row = next(row for row in reversed(make_rows()[: ROWS - 20]) if row["stars"] is not None)
    clock = Clock()
    clock.now = row["at"] + 10_000_000
    with serve(trained, tmp_path / "state", clock) as service:
        before = rank(service, row, clock.now + 1)
        record(service, row, feedback={"stars": row["stars"]})
        assert rank(service, row, clock.now + 1) == pytest.approx(before, abs=1e-6)


def test_a_bundle_without_stored_histories_records_nothing(tmp_path: Path) -> None:
    bundle = row_shop.export_log(tmp_path, {**row_shop.SCHEMA, "histories": {}}).bundle
    with pytest.raises(BundleError, match="no history of events that a bundle stores"):
        Service(bundle, Settings(record=True, state=str(tmp_path / "state")))


def test_every_bundle_of_a_pipeline_reads_the_events(tmp_path: Path) -> None:
    path = pipelines.write(tmp_path)
    settings = Settings(record=True, state=str(tmp_path / "state"))
    request = orjson.dumps(pipelines.request(k=10))
    with contextlib.closing(Service(path, settings)) as service:
        before = orjson.loads(service.answer(request, "/recommend"))["items"]
        assert len(service._state.live) == len({model.bundle.digest for model in service.models}) > 1  # type: ignore[union-attr]
        names = list(service._events.reader.context.required)  # type: ignore[union-attr]
        event = {"user": orjson.loads(request)["user"], "item": before[0]["id"], "context": dict.fromkeys(names)}
        with pytest.raises(RequestError, match="the unknown key 'x'"):
            service.record(orjson.dumps({**event, "context": {**event["context"], "x": 1}}))
        at = orjson.loads(service.record(orjson.dumps(event)).json())["at"]
        later = orjson.dumps({**orjson.loads(request), "at": at + 1 if isinstance(at, int) else "2090-01-01T00:00:00Z"})
        after = orjson.loads(service.answer(later, "/recommend"))["items"]
        # Both retrievers leave out what their own live histories hold now.
        assert before[0]["id"] not in [item["id"] for item in after]
    with contextlib.closing(Service(path)) as frozen:
        answer = orjson.loads(frozen.answer(later, "/recommend"))["items"]
        recent = [{"item": before[0]["id"], "at": at, "context": dict.fromkeys(names)}]
        sent = orjson.loads(frozen.answer(orjson.dumps({**orjson.loads(later), "recent": recent}), "/recommend"))
    assert before[0]["id"] in [item["id"] for item in answer]
    assert [item["id"] for item in sent["items"]] == [item["id"] for item in after]
    other = pipelines.write(tmp_path, recall={"mean": {"bundle": pipelines.bundles()["mean"], "count": 12}}, rerank=[])
    with pytest.raises(StoreError, match="the events of another bundle"):
        Service(other, settings)


def test_a_client_and_the_command_record_without_a_source(trained: Trained, tmp_path: Path) -> None:
    with client(trained.bundle, events=True, state=tmp_path / "state") as shop:
        assert not shop.event(user=3, item="i1", context={"place": "side"}).new_user
    settings = build_settings(events=True)
    assert (settings.events, settings.record, settings.records_events) == (None, True, True)
    assert build_settings(events="x").records_events
    assert not build_settings().records_events
