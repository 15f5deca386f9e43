"""Events that reach ordinary histories through ``/events``: the same scores as of a log that contains them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pipelines
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import row_shop

import longrec
from longrec.errors import BundleError, RequestError, StoreError
from longrec.features.token_columns import compute_instance_ids
from longrec.serve.client import client
from longrec.serve.knowledge_features import key_number
from longrec.serve.service import Service
from longrec.serve.settings import Settings, build_settings

START, USERS, ITEMS, ROWS, NEW = 1_700_000_000_000, 12, 15, 400, 120
SCHEMA: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "ms", "available_at": "arrived"},
    "label": "click",
    "features": {
        "user_id": {"kind": "id"},
        "item_id": {"kind": "id"},
        "kind": {"kind": "id", "side": "item"},
        "place": {"kind": "id"},
        "stars": {"kind": "bucketized", "edges": [2, 4], "feedback": True, "available_at": "starred_at"},
    },
    "histories": {
        "seen": {"features": ["item_id", "kind", "place", "stars", "time_gap"], "max_length": 6},
        "aside": {"features": ["item_id"], "max_length": 3, "where": {"place": "side"}},
    },
}
RANK, RECORD, STARS = range(3)
MODEL = {"name": "din", "embedding_dim": 4, "attention": [6], "mlp": [8], "init_std": 0.5}


class Trained(NamedTuple):
    """A run on the first rows of a log, its bundle, and the rows after them."""

    run: longrec.Run
    bundle: Path
    rows: list[dict[str, Any]]


def make_rows() -> list[dict[str, Any]]:
    """Return impressions in the order of time, with many shared timestamps, new users, late arrivals and late stars."""
    random, rows = np.random.default_rng(3), []
    for number in range(ROWS + NEW):
        at = START + 60_000 * (number // 3)
        stars = None if random.random() < 0.4 else float(random.integers(0, 6))
        rows.append({
            "user_id": int(random.integers(0, USERS if number < ROWS else USERS + 3)),
            "item_id": f"i{random.integers(0, ITEMS)}",
            "at": at,
            "arrived": at,
            "place": ("top", "side", "foot")[random.integers(0, 3)],
            "stars": stars,
            "starred_at": None if stars is None else at + int(random.integers(0, 4)) * 45_000,
            "click": int(random.random() < 0.5),
        })  # fmt: skip
    once = {(row["user_id"], row["item_id"], row["at"]): row for row in rows}  # one event has one user, item and time
    users, items, times = (
        np.array([key_number(key[at]) if at < 2 else key[at] for key in once], np.int64) for at in range(3)
    )
    order = np.lexsort((compute_instance_ids(users, items, times), times))  # of one timestamp as the server has them
    return [list(once.values())[at] for at in order]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, rows = tmp_path_factory.mktemp("live"), make_rows()
    kinds = pa.table({"item_id": [f"i{n}" for n in range(ITEMS)], "kind": [n % 4 for n in range(ITEMS)]})
    pq.write_table(pa.Table.from_pylist(rows[: ROWS - 20]), folder / "log.parquet")
    pq.write_table(kinds, folder / "items.parquet")
    data = {"log": str(folder / "log.parquet"), "items": str(folder / "items.parquet"), "schema": SCHEMA}
    fit = {"max_steps": 4, "runs": str(folder / "runs"), "tensorboard": "off"}
    config = {"name": "live", "data": {**data, "folder": str(folder / "prepared")}, "model": MODEL, "fit": fit}
    run = longrec.train({**config, "evaluate": {"n_resamples": 2}}, quiet=True)
    longrec.export(run, folder / "live.bundle")
    return Trained(run, folder / "live.bundle", rows[ROWS - 20 :])


class Clock:
    """Clock with a settable time."""

    now = START

    def __call__(self) -> int:
        return self.now


@contextlib.contextmanager
def serve(trained: Trained, state: str | Path, clock: Clock | None = None) -> Iterator[Service]:
    settings = build_settings(events=True, state=state)
    with contextlib.closing(Service(trained.bundle, settings, clock or Clock())) as service:
        yield service


def rank(service: Service, row: dict[str, Any], at: int | None = None) -> float:
    request = {"user": row["user_id"], "candidates": [row["item_id"]], "at": row["at"] if at is None else at}
    request |= {"context": {"place": row["place"]}, "allow_unknown": True}
    return float(orjson.loads(service.answer(orjson.dumps(request)))["items"][0]["score"])


def record(service: Service, row: dict[str, Any], **change: Any) -> dict[str, Any]:
    event = {"user": row["user_id"], "item": row["item_id"], "at": row["at"], "context": {"place": row["place"]}}
    event |= {"allow_unknown": True, **change}
    answer: dict[str, Any] = orjson.loads(
        service.record(orjson.dumps({key: value for key, value in event.items() if value is not None})).json()
    )
    return answer


@pytest.fixture(params=["folder", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "state")
    return f"{request.getfixturevalue('redis_url')}/live-{abs(hash(str(tmp_path))):x}"


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
    rows = make_rows()[: ROWS - 20]
    clock = Clock()
    clock.now = rows[-1]["at"] + 10_000_000
    with serve(trained, tmp_path / "state", clock) as service:
        before = rank(service, rows[-1], clock.now + 1)
        record(service, rows[-1], feedback={"stars": rows[-1]["stars"]})
        assert rank(service, rows[-1], clock.now + 1) == pytest.approx(before, abs=1e-6)


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
        names = list(service._events.reader.context)  # type: ignore[union-attr]
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
    assert before[0]["id"] in [item["id"] for item in answer]
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
