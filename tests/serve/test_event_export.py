"""Recorded events as rows of the next log: training reads what the server read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live_shop import MODEL, RANK, RECORD, SCHEMA, STARS, Clock, Trained, rank, record, serve

import longrec
from longrec.cli import main
from longrec.errors import StoreError
from longrec.features.schema import Schema
from longrec.serve.event_export import build_log_table, build_time_column
from longrec.serve.recorded_events import RecordedEvent, RecordedEvents, locate_recorded

START = 1_700_000_000_000


def serve_and_record(trained: Trained, state: str, rows: list[dict[str, Any]]) -> list[float]:
    """Rank every row, then record it with its label, every fourth one late, and its stars. Return the scores."""
    clock, scores = Clock(), {}
    timeline = [(row["at"], RANK, number) for number, row in enumerate(rows)]
    timeline += [(row["at"] + 90_000 * (number % 4 == 0), RECORD, number) for number, row in enumerate(rows)]
    stars = [(row["starred_at"], STARS, number) for number, row in enumerate(rows) if row["stars"] is not None]
    timeline += [one for one in stars if one[2] % 4]
    with serve(trained, state, clock) as service:
        for clock.now, step, number in sorted(timeline):
            row = rows[number]
            if step == RANK:
                scores[number] = rank(service, row)
            elif step == RECORD:
                context = {name: row[name] for name in ("place", "price", "mood")}
                label = {"label": row["click"]}
                record(service, row, context=context, feedback=label)
                record(service, row, context=context, feedback=label)  # a retry is the same event
            else:
                record(service, row, context=None, feedback={"stars": row["stars"]})
    return [scores[number] for number in range(len(rows))]


def test_training_reads_the_recorded_events_as_the_server_did(trained: Trained, state: str, tmp_path: Path) -> None:
    rows = trained.rows[:80]
    served = serve_and_record(trained, state, rows)
    assert longrec.export_events(state, tmp_path / "events.parquet") == len(rows)
    written = pq.read_table(tmp_path / "events.parquet")
    for column in ("user_id", "item_id", "at", "place", "price", "mood", "click"):
        assert written[column].to_pylist() == [row[column] for row in rows]
    late = [row["at"] + 90_000 * (number % 4 == 0) for number, row in enumerate(rows)]
    assert written["arrived"].to_pylist() == late
    expected = [row["starred_at"] if number % 4 else None for number, row in enumerate(rows)]
    assert written["starred_at"].to_pylist() == expected
    scores = pq.read_table(longrec.predict(trained.run, log=str(tmp_path / "events.parquet"), into=tmp_path / "scores"))
    np.testing.assert_allclose(served, scores["score"].to_numpy(), atol=2e-6)


def test_the_next_log_is_the_log_and_the_recorded_events(trained: Trained, tmp_path: Path) -> None:
    rows, state = trained.rows[:12], str(tmp_path / "state")
    serve_and_record(trained, state, rows)
    assert main(["events", state, "--output", str(tmp_path / "events.parquet")]) == 0
    folder = trained.bundle.parent
    log = pq.read_table(folder / "log.parquet")
    whole = pa.concat_tables([log, pq.read_table(tmp_path / "events.parquet")], promote_options="permissive")
    assert whole.schema.names == log.schema.names
    pq.write_table(whole, tmp_path / "log.parquet")
    data = {name: str(folder / f"{name}.parquet") for name in ("items", "users")}
    data |= {"log": str(tmp_path / "log.parquet"), "folder": str(tmp_path / "prepared"), "schema": SCHEMA}
    assert longrec.prepare({"data": data, "model": MODEL}).rows == len(log) + len(rows)


def test_a_state_without_events_is_refused(trained: Trained, tmp_path: Path) -> None:
    with serve(trained, tmp_path / "state"):
        pass
    with pytest.raises(StoreError, match="no recorded events"):
        longrec.export_events(tmp_path / "state", tmp_path / "events.parquet")
    with pytest.raises(StoreError):
        longrec.export_events(tmp_path / "other", tmp_path / "events.parquet")


def test_a_record_of_any_length_is_read_as_written(state: str) -> None:
    """A record that becomes shorter leaves no slice of the longer one."""
    store = RecordedEvents.open(locate_recorded(state), "digest", Schema.model_validate(SCHEMA))
    try:
        for length, item in itertools.product((2_000, 3, 256, 0, 5_000), ("a", "b")):
            event = RecordedEvent(7, item, START, START, {"text": "é" * length}, START, START)
            store.write([7], [ord(item)], [event])
            assert store.find(7, START, ord(item)) == event
        assert store.find(7, START, 3) is None
        assert store.find(8, START, ord("a")) is None
        assert sorted(event.item for event in store.scan()) == ["a", "b"]
    finally:
        store.close()
    with pytest.raises(StoreError, match="events of another bundle"):
        RecordedEvents.open(locate_recorded(state), "other", Schema.model_validate(SCHEMA))


@pytest.mark.parametrize(
    ("unit", "pattern", "expected"),
    [
        ("ms", None, [START, None]),
        ("s", None, [START // 1_000, None]),
        ("us", None, [START * 1_000, None]),
        ("auto", "%Y-%m-%d %H:%M:%S", ["2023-11-14 22:13:20", None]),
    ],
    ids=["ms", "s", "us", "format"],
)
def test_times_are_those_of_the_log(unit: str, pattern: str | None, expected: list[Any]) -> None:
    assert build_time_column([START, None], unit, pattern).to_pylist() == expected


def test_times_and_values_without_one_type() -> None:
    assert build_time_column([START + 250], "s", None).to_pylist() == [START / 1_000 + 0.25]
    assert build_time_column([START], "auto", None).type == pa.timestamp("ms", "UTC")
    schema = Schema.model_validate({**SCHEMA, "time": "at"})
    values: list[dict[str, Any]] = [{"a": 1, "b": 1, "c": [1, 2]}, {"a": 0.5, "b": "x"}]
    events = [RecordedEvent(7, "i1", n, n, own, n + 5, n + 5) for n, own in enumerate(values)]
    table = build_log_table(reversed(events), schema)
    assert table.select(["a", "b", "c"]).to_pylist() == [
        {"a": 1.0, "b": "1", "c": [1, 2]},
        {"a": 0.5, "b": "x", "c": None},
    ]
    assert [one.timestamp() for one in table["available_at"].to_pylist()] == [0.005, 0.006]  # no column is configured
