"""Facts of a prepared log: counted by hand on small logs, and warned of where they are alarming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.data import fact_counts
from longrec.data.facts import LogFacts, read_facts
from longrec.data.log import Log
from longrec.data.row_counts import sample_rows
from longrec.errors import DataError
from longrec.reporting.facts_table import describe_log

Prepared = Callable[..., Log]

SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "page": {"kind": "id"},
        "price": {"kind": "numeric", "side": "item", "missing": 3.0},
        "wait": {"kind": "numeric", "scale": "log"},
        "tags": {"kind": "multi_id", "side": "item"},
        "word": {"kind": "multi_id", "separator": " "},
        "size": {"kind": "bucketized", "edges": [1, 2]},
        "cross": {"kind": "cross", "features": ["page", "item"], "hash": 100},
    },
    "histories": {"all": {"features": ["item"], "max_length": 3}},
}
LOG: dict[str, list[Any]] = {
    # user 1 sees a and b at one time, and a twice at another; the last two rows are of a new user and a new item
    "user": [1, 1, 1, 1, 2, 2, 2, 1, 2, 3],
    "item": ["a", "b", "a", "a", "b", "c", "a", "b", "d", "a"],
    "t": [1, 1, 2, 2, 3, 4, 5, 8, 8, 9],
    "click": [1, 0, 0, 1, 0, None, 1, 0, 1, 0],
    "page": ["x", "x", "y", None, "x", "x", "x", "x", "z", None],
    "wait": [1.0, float("nan"), 2.0, 2.0, None, 1.0, 4.0, 1.0, 1.0, None],
    "word": ["p q", "", "p", "p", "q", "q", "q", "p", "r p", None],
    "size": [0, 1, 1, 1, 2, 3, 1, 0, 0, None],
}
ITEMS = {"item": ["a", "b", "c", "d"], "price": [1.0, None, 2.0, 4.0], "tags": [[1, 2], [2], [], [9]]}


@pytest.fixture(scope="module")
def facts(prepared: Prepared) -> LogFacts:
    split = {"by": "time", "valid_from": "8", "test_from": "9"}
    return read_facts(prepared(pa.table(LOG), SCHEMA, items=pa.table(ITEMS), split=split).folder)


def test_rows_users_items_and_ties(facts: LogFacts) -> None:
    assert (facts.events, facts.users, facts.items, facts.first, facts.last) == (10, 3, 4, 1, 9)
    assert facts.tied == pytest.approx(0.4)  # user 1: two rows at 1, two at 2; at 8 the users differ
    assert facts.repeated == 1  # a at 2
    train, valid, test = (facts.splits[name] for name in ("train", "valid", "test"))
    assert (train.rows, train.positives, train.users, train.items) == (6, 3, 2, 2)  # c has no label
    assert (train.new_users, train.new_items, train.first, train.last) == (0, 0, 1, 5)
    assert (valid.rows, valid.users, valid.new_users, valid.new_items) == (2, 2, 0, 0.5)
    assert (test.rows, test.new_users, test.new_items, test.rate) == (1, 1, 0, 0)


def test_lengths_of_histories(facts: LogFacts) -> None:
    history = facts.histories["all"]
    # Labeled rows of train: user 1 has 0, 0, 2, 2 events strictly before, user 2 has 0 and 2.
    assert (history.mean, history.p10, history.p50, history.p90) == (1, 0, 0, 2)
    assert history.full == 0
    assert history.empty == {"train": 0.5, "valid": 0, "test": 1}


def test_values_of_ids(facts: LogFacts) -> None:
    page = facts.features["page"]
    assert page.nulls == {"train": pytest.approx(1 / 6), "valid": 0, "test": 1}
    assert (page.distinct, page.top, page.top_share) == (2, "x", pytest.approx(4 / 5))
    assert page.unseen == {"train": 0, "valid": 0.5, "test": 0}
    item = facts.features["item"]
    assert (item.side, item.distinct, item.top) == ("item", 2, "a")  # by the rows that read them
    assert item.unseen == {"train": 0, "valid": 0.5, "test": 0}
    assert facts.features["user"].unseen == {"train": 0, "valid": 0, "test": 1}
    size = facts.features["size"]
    assert (size.distinct, size.top, size.unseen) == (3, 1.0, {})
    cross = facts.features["cross"]
    assert (cross.top, cross.top_share, cross.unseen) == (None, pytest.approx(2 / 5), {})


def test_nulls_of_numbers_are_those_of_the_raw_columns(facts: LogFacts) -> None:
    price, wait = facts.features["price"], facts.features["wait"]
    assert price.nulls == {"train": pytest.approx(2 / 6), "valid": 0.5, "test": 0}  # b, without a price
    assert wait.nulls == {"train": pytest.approx(2 / 6), "valid": 0, "test": 1}  # null and NaN
    assert (wait.low, wait.high) == (0, 4)  # null counts as missing, 0
    assert (price.low, price.high, price.top) == (1, 3, 1)


def test_lists(facts: LogFacts) -> None:
    tags, word = facts.features["tags"], facts.features["word"]
    assert (tags.distinct, tags.top, tags.nulls["train"]) == (2, "2", 0)
    assert tags.unseen["valid"] == 0.5  # 9 of the new item, and 2
    assert word.nulls == {"train": pytest.approx(1 / 7), "valid": 0, "test": 1}  # of six values and one empty list
    assert word.unseen["valid"] == pytest.approx(1 / 3)


def test_prejoined_rows_have_the_lengths_of_their_lists(prepared: Prepared) -> None:
    rows = {
        "user": [1, 2, 3, 4],
        "item": [5, 6, 7, 5],
        "click": [1, 0, 1, 0],
        "split": ["train", "train", "train", "test"],
        "seen": [[5, 6, 7, 8], [], [5], []],
    }
    schema = {
        "user": "user",
        "item": "item",
        "label": "click",
        "features": {"item": {"kind": "id"}},
        "histories": {"h": {"features": ["item"], "columns": {"item": "seen"}, "max_length": 3}},
    }
    log = prepared(pa.table(rows), schema, split={"by": "column", "column": "split"})
    facts = read_facts(log.folder)
    assert facts.histories["h"].mean == pytest.approx(4 / 3)
    assert facts.histories["h"].empty == {"train": pytest.approx(1 / 3), "test": 1}
    assert (facts.first, facts.tied, facts.repeated) == (None, None, None)


def test_versions_are_read_as_of_the_row(prepared: Prepared) -> None:
    items = {"item": ["a", "a", "b"], "since": [0, 4, 0], "price": [1.0, None, 2.0], "tags": [[1], [2], [3]]}
    log = {name: LOG[name] for name in ("user", "item", "t", "click")}
    features = {"item": {"kind": "id"}, "price": SCHEMA["features"]["price"], "tags": SCHEMA["features"]["tags"]}
    split = {"by": "time", "valid_from": "8", "test_from": "9"}
    opened = prepared(
        pa.table(log),
        SCHEMA | {"features": features},
        items=pa.table(items),
        as_of={"items": "since"},
        split=split,
    )
    facts = read_facts(opened.folder)
    assert facts.features["price"].nulls["train"] == pytest.approx(1 / 6)  # the row of a at 5
    assert facts.features["tags"].distinct == 3


def test_facts_are_stored_and_can_be_computed_later(prepared: Prepared, tmp_path: Path) -> None:
    log = prepared(pa.table(LOG), SCHEMA, items=pa.table(ITEMS), split={"by": "time", "test_from": "8"})
    stored = read_facts(log.folder)
    assert json.loads((log.folder / "facts.json").read_text())["splits"]["test"]["rows"] == 3
    (log.folder / "facts.json").unlink()  # as earlier versions prepared
    computed = read_facts(log.folder)
    assert computed.splits == stored.splits
    assert computed.histories == stored.histories
    assert computed.features["page"] == stored.features["page"]
    assert computed.features["wait"].nulls == {}  # not in the prepared columns
    (log.folder / "facts.json").write_text('{"format": "longrec-facts-9"}')
    with pytest.raises(DataError, match="longrec-facts-9"):
        read_facts(log.folder)


def test_chunks_of_users_change_nothing(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    log = prepared(pa.table(LOG), SCHEMA, items=pa.table(ITEMS), split={"by": "time", "test_from": "8"})
    whole = fact_counts.compute_facts(log, {})
    monkeypatch.setattr(fact_counts, "_ROWS", 1)
    monkeypatch.setattr("longrec.data.feature_facts._ROWS", 1)
    monkeypatch.setattr("longrec.data.row_counts._ROWS", 3)
    assert fact_counts.compute_facts(log, {}) == whole


def test_alarming_facts_are_warned_of(prepared: Prepared) -> None:
    n, random = 2_000, np.random.default_rng(0)
    late = np.arange(n) >= 1_600
    log = {
        "user": random.integers(0, 20, n),
        "item": np.where(late, 100, 0) + random.integers(0, 5, n),
        "t": np.arange(n) // 200,  # a coarse clock
        "click": (random.random(n) < np.where(late, 0.5, 0.1)).astype(int),
        "page": ["home"] * n,
        "price": pa.array(random.random(n), mask=late),
        "word": pa.nulls(n, pa.string()),
    }
    features = {name: {"kind": "id"} for name in ("user", "item", "page", "word")} | {"price": {"kind": "numeric"}}
    histories = {"clicks": {"features": ["item"], "where": {"page": "home"}, "max_length": 9}}
    schema = SCHEMA | {"features": features, "histories": histories}
    warnings = read_facts(prepared(pa.table(log), schema, split={"by": "time", "test_from": "8"}).folder).warnings
    for text in (
        "share their timestamp with another event of their user",
        "repeat the user, item and timestamp",
        "split test: 5",
        "in train, so probabilities",
        "split test: 100% of the rows are of items without an event in train",
        "feature page: one value in every training row",
        "feature word: null in every training row",
        "feature price: null in 0% of the rows of train and in 100% of test",
    ):
        assert any(text in sentence for sentence in warnings), (text, warnings)
    assert not any("feature item" in sentence for sentence in warnings)  # said once, by split


def test_ordinary_logs_are_not_warned_of(prepared: Prepared) -> None:
    n, random = 2_000, np.random.default_rng(0)
    log = {
        "user": random.integers(0, 20, n),
        "item": random.integers(0, 9, n),
        "t": np.arange(n),
        "click": random.integers(0, 2, n),
    }
    schema = SCHEMA | {"features": {"user": {"kind": "id"}, "item": {"kind": "id"}}}
    for split in ({"by": "time"}, {"by": "user", "test": 0.2}, {"by": "leave_one_out"}):
        assert read_facts(prepared(pa.table(log), schema, split=split).folder).warnings == ()


def test_sampled_rows_are_evenly_spaced_over_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.array([0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1], np.int8)
    rows = np.flatnonzero(codes == 0)
    for chunk in (1, 3, 100):
        monkeypatch.setattr("longrec.data.row_counts._ROWS", chunk)
        assert sample_rows(codes, 0, 8, 8).tolist() == rows.tolist()
        assert sample_rows(codes, 0, 8, 3).tolist() == rows[::3].tolist()
        assert sample_rows(codes, 2, 0, 3).tolist() == []


def test_ties_are_of_users_and_repeated_rows_of_users_and_items(prepared: Prepared) -> None:
    bare = {"time": {"column": "t", "unit": "step"}, "label": "click", "features": {"page": {"kind": "id"}}}
    split = {"by": "time", "valid_from": "8", "test_from": "9"}
    for keys, tied, repeated in (
        ({}, None, None),
        ({"item": "item"}, None, None),
        ({"user": "user"}, 0.4, None),
        ({"user": "user", "item": "item"}, 0.4, 1),
    ):
        features = {**bare["features"], **{key: {"kind": "id"} for key in keys}}
        facts = read_facts(prepared(pa.table(LOG), {**bare, **keys, "features": features}, split=split).folder)
        assert (facts.tied, facts.repeated) == (tied, repeated), keys
        assert not any("repeat" in warning for warning in facts.warnings) or repeated
        lines = describe_log(facts.to_dict())
        assert [len(lines), "users" in lines[0], "items" in lines[0]] == [
            1 + (tied is not None) + (repeated is not None),
            "user" in keys,
            "item" in keys,
        ]
