"""A late event enters nothing before it is available: histories, labels, fits, training histories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.config import parse
from longrec.data import targets
from longrec.data.availability import select_last_available
from longrec.data.entity_batches import build_user_batch
from longrec.data.gather import gather
from longrec.data.loader import Loader
from longrec.data.log import Log
from longrec.data.training_histories import iterate_training_histories
from longrec.errors import ConfigError
from longrec.features.fields import AVAILABLE
from longrec.features.schema import Schema

DELAY = 3
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step", "available_at": "told"},
    "label": "click",
    "label_delay": DELAY,
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id", "vocab": list(range(400))},
        "page": {"kind": "id"},
        "click": {"kind": "id", "vocab": [0, 1], "feedback": True},
    },
    "histories": {
        "all": {"features": ["item", "click"], "max_length": 5},
        "clicks": {"features": ["item"], "where": {"click": 1}, "max_length": 3},
        "home": {"features": ["item"], "where": {"page": "home"}, "max_length": 4},
    },
}
SPLIT = {"by": "time", "valid_from": 60, "test_from": 80}


def events(count: int = 300, late: float = 0.5, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, 100, count))
    available_at = t + np.where(random.random(count) < late, random.integers(0, 40, count), 0)
    return pa.table({
        "user": random.integers(0, 4, count),
        "item": np.arange(count),  # tells the events apart
        "t": t,
        "told": available_at,
        "page": np.array(["home", "shelf"])[random.integers(0, 2, count)],
        "click": random.integers(0, 2, count),
    })  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return events()


@pytest.fixture(scope="module")
def log(prepared: Callable[..., Log], table: pa.Table) -> Log:
    return prepared(table, SCHEMA, split=SPLIT)


def items_of(log: Log, name: str, at: np.ndarray) -> list[Any]:
    return [log.items.key(int(item)) for item in log.events.columns["item"].take(at)]


def select_slowly(table: pa.Table, user: int, timestamp: int, name: str) -> list[int]:
    """A history by a search from end to end."""
    rows = [row for row in table.to_pylist() if row["user"] == user and row["told"] < timestamp]
    delay = DELAY if name == "clicks" else 0
    rows = [row for row in rows if row["t"] + delay < timestamp]
    if name == "clicks":
        rows = [row for row in rows if row["click"] == 1]
    if name == "home":
        rows = [row for row in rows if row["page"] == "home"]
    return [row["item"] for row in rows][-SCHEMA["histories"][name]["max_length"] :]


@pytest.mark.parametrize("name", SCHEMA["histories"])
def test_a_history_holds_the_last_events_that_were_available(log: Log, table: pa.Table, name: str) -> None:
    rows = np.arange(len(log))
    at, offsets = log.select_history(name, rows)
    items, timestamps = items_of(log, name, at), log.timestamps.tolist()
    for row in rows.tolist():
        user = log.users.key(int(log.user(np.array([row]))[0]))
        assert items[offsets[row] : offsets[row + 1]] == select_slowly(table, user, timestamps[row], name)
    assert gather(log, rows).histories[name].offsets.tolist() == offsets.tolist()
    assert log.compute_history_lengths(name, rows).tolist() == np.diff(offsets).tolist()


def test_users_by_themselves_have_the_history_that_was_available(log: Log, table: pa.Table) -> None:
    keys = [log.users.key(row) for row in range(1, 5)]
    for timestamp in (20, 55, 99):
        batch = build_user_batch(log, np.arange(1, 5), timestamp)
        for name, history in batch.histories.items():
            lengths = [len(select_slowly(table, key, timestamp, name)) for key in keys]
            assert history.offsets.diff().tolist() == lengths


def test_feedback_of_a_late_event_is_shown_once_both_are_available(log: Log, table: pa.Table) -> None:
    batch, timestamps = gather(log, np.arange(len(log))), log.timestamps
    raw = {row["item"]: row for row in table.to_pylist()}
    at, offsets = log.select_history("all", np.arange(len(log)))
    now = np.repeat(timestamps, np.diff(offsets))
    codes = batch.histories["all"].columns["click"].tolist()  # type: ignore[union-attr]
    for item, timestamp, code in zip(items_of(log, "all", at), now.tolist(), codes):
        is_available = raw[item]["t"] + DELAY < timestamp
        assert code == (2 + raw[item]["click"] if is_available else 4)


def test_a_label_is_available_no_earlier_than_its_event(log: Log, table: pa.Table) -> None:
    raw = {row["item"]: row for row in table.to_pylist()}
    rows = np.arange(len(log))
    wanted = [max(raw[item]["t"] + DELAY, raw[item]["told"]) for item in items_of(log, "all", rows)]
    assert log.label_time(rows).tolist() == wanted
    assert targets.compute_available_at(log, "click", rows).tolist() == wanted
    assert gather(log, rows).label_time.tolist() == wanted  # type: ignore[union-attr]


def test_what_is_learned_of_the_training_window_was_available_in_it(prepared: Callable[..., Log]) -> None:
    table = events(seed=3)
    kind = np.array([f"p{n}" for n in range(len(table))])
    table = table.set_column(4, "page", pa.array(kind))  # a value a row: the fit tells which rows it saw
    schema = {**SCHEMA, "histories": {"all": SCHEMA["histories"]["all"]}}
    log = prepared(table, schema, split=SPLIT)
    is_available = {row["page"] for row in table.to_pylist() if row["t"] < 60 and row["told"] < 60}
    assert set(log.fitted.encoders["page"].keys.values.to_pylist()) == is_available  # type: ignore[union-attr]
    n_events = sum(int(piece["all"].offsets[-1]) for piece in iterate_training_histories(log))
    assert n_events == len(is_available)


def test_length_buckets_use_histories_that_were_available(log: Log) -> None:
    rows = log.rows_of("train")
    order = Loader(log, rows, 8, bucket_by_length=True, seed=1).order(0)
    assert sorted(order.tolist()) == sorted(rows.tolist())


def test_a_log_without_late_events_is_as_without_the_key(prepared: Callable[..., Log]) -> None:
    table = events(late=0)
    plain = {**SCHEMA, "time": {"column": "t", "unit": "step"}}
    with_key, without = prepared(table, SCHEMA, split=SPLIT), prepared(table, plain, split=SPLIT)
    assert with_key.available is None
    assert AVAILABLE not in with_key.events.columns
    for name in SCHEMA["histories"]:
        for one, two in zip(*(log.select_history(name, np.arange(300)) for log in (with_key, without))):
            assert one.tolist() == two.tolist()
    assert with_key.warnings == without.warnings


def test_null_is_the_time_of_the_event_and_an_earlier_timestamp_is_raised_with_a_warning(
    prepared: Callable[..., Log],
) -> None:
    table = events(10, late=0)
    t = np.array(table["t"])
    available_at: list[int | None] = (t + 7).tolist()
    available_at[0], available_at[1] = None, int(t[1]) - 5
    log = prepared(table.set_column(3, "told", pa.array(available_at)), SCHEMA, split={"by": "user"})
    assert log.available is not None
    by_item = dict(zip(items_of(log, "all", np.arange(10)), log.available.tolist()))
    assert [by_item[n] for n in range(10)] == [t[0], t[1], *(t[2:] + 7)]
    (warning,) = [one for one in log.warnings if "available_at" in one]
    assert "column 'told' (time.available_at) 1 of 10 events became available before they happened" in warning


def test_the_column_is_read_as_times_are(prepared: Callable[..., Log]) -> None:
    """One rule for both: text with a zone, and timestamps of another unit than the time's numbers."""
    start = 1_600_000_000
    table = events(4, late=0)
    table = table.set_column(2, "t", pa.array([start + n for n in range(4)]))
    schema = {**SCHEMA, "time": {"column": "t", "available_at": "told"}, "label_delay": "0s"}
    columns = {
        "timestamps": pa.array([(start + n + 60) * 1_000_000 for n in range(4)], pa.timestamp("us", "UTC")),
        "numbers": pa.array([start + n + 60 for n in range(4)]),
        "text": pa.array([f"2020-09-13T12:27:{40 + n}Z" for n in range(4)]),
    }
    for column in columns.values():
        log = prepared(table.set_column(3, "told", column), schema, split={"by": "user"})
        assert log.available is not None
        assert sorted(log.available.tolist()) == [(start + n + 60) * 1_000 for n in range(4)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"features": {**SCHEMA["features"], "told": {"kind": "numeric"}}},
            "features.told: reads the available_at column",
        ),
        (
            {"features": {**SCHEMA["features"], "x": {"kind": "bucketized", "column": "told", "quantiles": 3}}},
            "features.x",
        ),
        (
            {"features": {**SCHEMA["features"], "x": {"kind": "cross", "features": ["page", "told"], "hash": 9}}},
            "features.x: reads the available_at column 'told', which leaks the answer",
        ),
        ({"time": {"column": "t", "available_at": "t"}}, "available_at is the time column itself"),
    ],
)
def test_what_an_impression_cannot_know_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(Schema, {**SCHEMA, **change}, "schema")


def test_a_missing_column_is_named(refused: Callable[..., None], tmp_path: Path) -> None:
    from small_logs import parquet_log as log_of

    data, _ = log_of()(tmp_path)
    refused(tmp_path, data, {"time": {"column": "t", "available_at": "told"}}, "told")


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12),
    st.lists(st.integers(0, 12), max_size=6),
    st.integers(1, 4),
)
def test_the_last_available_are_those_of_a_search_from_end_to_end(
    pairs: list[tuple[int, int]], timestamps: list[int], n: int
) -> None:
    times = np.array(sorted(a for a, _ in pairs), np.int64)
    available = np.maximum(times, np.array([b for _, b in pairs], np.int64))
    now = np.array(timestamps, np.int64)
    stop = np.searchsorted(times, now)
    at, offsets = select_last_available(np.zeros(len(now), np.int64), stop, now, n, available)
    for k, timestamp in enumerate(timestamps):
        own = [
            position
            for position in range(len(times))
            if times[position] < timestamp and available[position] < timestamp
        ]
        assert at[offsets[k] : offsets[k + 1]].tolist() == own[-n:]
