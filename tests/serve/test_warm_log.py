"""``longrec warm --log``: what is stored, the states and the scores equal those of events that came to ``/events``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from live_shop import Clock, Trained, rank, record, serve, train_shop
from test_streams import Killed, interrupt, list_stored
from test_user_states import MODELS, WHOLE, get_states, without_states

import longrec
from longrec.cli import main
from longrec.errors import DataError
from longrec.serve import log_recorder
from longrec.serve.log_recorder import LogClock, LogRecorder, RefusedRows
from longrec.serve.service import Service
from longrec.serve.settings import build_settings
from longrec.warm_command import _open_log

LATER = 10_000_000
"""Time from the last event of the shop to the requests."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    histories = {name: WHOLE["histories"][name] for name in ("seen", "liked")}
    schema = {**WHOLE, "histories": histories}
    return train_shop(tmp_path_factory.mktemp("warm"), schema, MODELS["sdim"], states=True)


def list_rows(trained: Trained) -> list[dict[str, Any]]:
    """Return the rows of a log, every fourth of which came late."""
    return [{**row, "arrived": row["at"] + 90_000 * (n % 4 == 0)} for n, row in enumerate(trained.rows)]


def post(trained: Trained, state: str | Path, rows: list[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    """Record each row when it arrived, and return what is stored."""
    with serve(trained, state, clock) as service:
        for row in sorted(rows, key=lambda one: one["arrived"]):
            clock.now, context = row["arrived"], {name: row[name] for name in ("place", "price", "mood")}
            record(service, row, context=context, feedback={"label": row["click"], "stars": row["stars"]})
        return list_stored(service)


def measure(trained: Trained, state: str | Path, at: int) -> tuple[dict[str, Any], dict[int, Any], dict[int, float]]:
    """Return what is stored, the states that are there, and the scores of the users at a time."""
    clock = Clock()
    clock.now = at
    with serve(trained, state, clock) as service:
        users = sorted({row["user_id"] for row in trained.rows})
        states = {user: one for user in users if (one := get_states(service).store.get(user)) is not None}
        scores = {user: rank(service, {**trained.rows[-1], "user_id": user}, at) for user in users}
        with without_states(service):
            whole = {user: rank(service, {**trained.rows[-1], "user_id": user}, at) for user in users}
        np.testing.assert_allclose(list(scores.values()), list(whole.values()), atol=2e-6)
        return list_stored(service), states, scores


def test_a_log_is_recorded_as_its_events_would_be(shop: Trained, tmp_path: Path, redis_url: str) -> None:
    """So is what ``longrec events`` writes of them, into a state on a server too."""
    rows, clock = list_rows(shop), Clock()
    at = rows[-1]["at"] + LATER
    expected = post(shop, tmp_path / "posted", rows, clock)
    longrec.warm(shop.bundle, state=tmp_path / "posted", at=at)
    stored, states, scores = measure(shop, tmp_path / "posted", at)
    assert stored == expected
    assert len(states) > 10
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "log.parquet")
    assert longrec.export_events(tmp_path / "posted", tmp_path / "events.parquet") == len(rows)
    logs = {str(tmp_path / "state"): "log.parquet", f"{redis_url}/warm-{tmp_path.name}": "events.parquet"}
    for state, name in logs.items():
        done = longrec.warm(shop.bundle, state=state, at=at, log=tmp_path / name)
        assert (done["events"], done["unchanged"], done["refused"]) == (len(rows), 0, 0)
        assert done["states"] == len(states)
        recorded, own, warm = measure(shop, state, at)
        assert recorded == stored
        assert {user: one.until for user, one in own.items()} == {user: one.until for user, one in states.items()}
        for user, one in own.items():
            packed = (np.frombuffer(content, np.float32) for content in (one.content, states[user].content))
            np.testing.assert_allclose(*packed, atol=1e-6)
        np.testing.assert_allclose(list(warm.values()), list(scores.values()), atol=2e-6)
        again = longrec.warm(shop.bundle, state=state, at=at, log=tmp_path / name)
        assert (again["events"], again["unchanged"], again["states"]) == (0, len(rows), len(states))
        assert measure(shop, state, at)[0] == stored


def test_feedback_of_a_log_is_recorded_when_it_became_available(trained: Trained, tmp_path: Path) -> None:
    """A value whose time is missing never became available, and a later one comes after its event."""
    rows, clock, stars = list_rows(trained), Clock(), 0
    for number, row in enumerate(rows):
        row["starred_at"] = None if number % 5 == 0 else row["starred_at"]
    timeline = [(row["arrived"], 0, number) for number, row in enumerate(rows)]
    timeline += [(max(r["starred_at"], r["arrived"]), 1, n) for n, r in enumerate(rows) if r["starred_at"] is not None]
    with serve(trained, tmp_path / "posted", clock) as service:
        for clock.now, step, number in sorted(timeline):
            row = rows[number]
            if step:
                record(service, row, context=None, feedback={"stars": row["stars"]})
                stars += 1
            else:
                context = {name: row[name] for name in ("place", "price", "mood")}
                record(service, row, context=context, feedback={"label": row["click"]})
        expected = list_stored(service)
    assert stars > 30
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    settings, log_clock = build_settings(events=True, state=tmp_path / "state"), LogClock()
    service = Service(trained.bundle, settings, log_clock)
    try:
        recorder = LogRecorder(service, log_clock)
        with _open_log(service.bundle, tmp_path / "log.parquet") as log, RefusedRows(tmp_path / "refused") as refused:
            recorder.record(log, refused)
        assert list_stored(service) == expected
        assert recorder.counts.events == len(rows)
    finally:
        service.close()


def test_a_log_whose_recording_ends_at_any_step(shop: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording it again completes it, with nothing doubled."""
    rows, clock = list_rows(shop), Clock()
    expected = post(shop, tmp_path / "posted", rows, clock)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    monkeypatch.setattr(log_recorder, "_TOGETHER", 10)
    at, rng, ends = rows[-1]["at"] + LATER, np.random.default_rng(2), 0
    options: dict[str, Any] = {"state": tmp_path / "state", "at": at, "log": tmp_path / "log.parquet"}
    with monkeypatch.context() as patched:
        interrupt(patched, lambda: Killed() if rng.random() < 0.1 else None)
        while ends < 4:
            try:
                longrec.warm(shop.bundle, **options)
            except Killed:
                ends += 1
            else:
                break
    assert ends > 1
    longrec.warm(shop.bundle, **options)
    stored, states, _ = measure(shop, tmp_path / "state", at)
    assert stored == expected
    assert len(states) > 10


def test_refused_rows(shop: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are written with the reason. Corrected, the same file is a log."""
    rows = [
        {"user": row["user_id"], "item": row["item_id"], "at": row["at"], "label": row["click"], "stars": row["stars"]}
        | {"place": row["place"], "price": str(row["price"]), "more": "x"}
        for row in shop.rows[:30]
    ]
    rows[3]["item"], rows[5]["at"], rows[7]["price"], rows[9]["user"] = "new", None, "much", None
    pacsv.write_csv(pa.Table.from_pylist(rows), tmp_path / "log.csv")
    command = ["warm", str(shop.bundle), "--state", str(tmp_path / "state"), "--json", "-"]
    own = [*command, "--log", str(tmp_path / "log.csv"), "--refused", str(tmp_path / "refused.parquet")]
    assert main(own) == 0
    done = orjson.loads(capsys.readouterr().out)
    assert (done["events"], done["unchanged"], done["refused"]) == (26, 0, 4)
    refused = pq.read_table(tmp_path / "refused.parquet").to_pylist()
    reasons = {row["refused_row"]: row["refused_reason"].split(";")[0] for row in refused}
    assert sorted(reasons) == [4, 6, 8, 10]
    assert reasons[4].startswith("item: 1 unknown item: 'new'")
    assert (reasons[6], reasons[10]) == ("at: nothing", "user: nothing")
    assert reasons[8].startswith("context.price: ")
    corrected = {6: {"at": rows[4]["at"] + 1}, 8: {"price": "1"}, 10: {"user_id": 3}}
    fixed = [row | corrected.get(row["refused_row"], {}) for row in refused]
    pq.write_table(pa.Table.from_pylist(fixed), tmp_path / "fixed.parquet")
    done = longrec.warm(
        shop.bundle,
        tmp_path / "state",
        log=str(tmp_path / "fixed.parquet"),
        allow_unknown=True,
        refused=tmp_path / "refused.parquet",
    )
    assert (done["events"], done["refused"]) == (4, 0)
    assert not (tmp_path / "refused.parquet").exists()
    text = [*command[:-2], "--log", str(tmp_path / "log.csv")]
    assert main(text) == 0
    assert f"0 events, 26 recorded before, 4 refused, see {shop.bundle}.refused.parquet\n" in capsys.readouterr().out
    assert main([*command, "--allow-unknown"]) == 2


def test_a_log_without_a_column_of_every_event(shop: Trained, tmp_path: Path) -> None:
    rows = [{name: row[name] for name in ("user_id", "item_id", "at", "price")} for row in shop.rows[:3]]
    with pytest.raises(DataError, match="no column 'place'"):
        longrec.warm(shop.bundle, tmp_path / "state", log=pa.Table.from_pylist(rows))
    with pytest.raises(DataError, match="no column 'item_id'"):
        longrec.warm(shop.bundle, tmp_path / "state", log=pa.Table.from_pylist(rows).drop_columns("item_id"))
    with_column = [row | {"place": "top"} for row in rows]  # without the price, which the item table has
    table = pa.Table.from_pylist(with_column).drop_columns("price")
    assert longrec.warm(shop.bundle, tmp_path / "state", log=table)["events"] == 3
