"""New rows in an extended log have the features and histories that they have in a log prepared from all rows at once.

The schemas have vocabularies of their own, so that both logs encode alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec.data.extended_log import ExtendedLog, extend_log
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.new_rows import NewInputs, encode_new_rows
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig, Source
from longrec.errors import DataError
from longrec.features.batch import Jagged
from longrec.features.schema import Schema
from longrec.store.knowledge_store import KnowledgeInfo, KnowledgeStore, SideVectors
from longrec.store.token_store import TokenInfo, TokenStore, Version

START = 1_600_000_000
PAGES = ["home", "search", "cart"]
PLAIN: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "s"},
    "label": "click",
    "label_delay": "20s",
    "features": {
        "user": {"kind": "id", "vocab": [0, 1, 2, 3]},
        "item": {"kind": "id", "vocab": [0, 1, 2, 3, 4]},
        "price": {"kind": "numeric"},
        "page": {"kind": "id", "vocab": PAGES},
        "tags": {"kind": "multi_id", "vocab": [1, 2, 3], "side": "context"},
        "click": {"kind": "id", "vocab": [0, 1], "feedback": True},
    },
    "histories": {
        "all": {"features": ["item", "page", "click", "time_gap"], "max_length": 5},
        "clicked": {"features": ["item", "time_gap"], "max_length": 3, "where": {"click": 1}},
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**PLAIN, **changes}


def with_features(**features: Any) -> dict[str, Any]:
    return changed(features={**PLAIN["features"], **features})


SCHEMAS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "late events": changed(time={"column": "t", "unit": "s", "available_at": "arrived"}),
    "declared order": changed(time={"column": "t", "unit": "s", "order": "seq"}, label_delay="0s"),
    "requests": changed(request="visit"),
    "steps": changed(time={"column": "t", "unit": "step"}, label_delay="20s"),
    "feedback with a timestamp": {
        **with_features(dwell={"kind": "bucketized", "edges": [1, 2], "feedback": True, "available_at": "seen_at"}),
        "histories": {"all": {"features": ["item", "dwell"], "max_length": 4}},
    },
    "pre-joined": {
        **{key: value for key, value in PLAIN.items() if key not in ("histories", "time", "label_delay")},
        "histories": {"listed": {"features": ["item"], "max_length": 3, "columns": {"item": "last"}}},
    },
}


def make_rows(seed: int, n: int, first: int, last: int, users: int, items: int) -> pa.Table:
    """Return random rows with many equal timestamps."""
    random = np.random.default_rng(seed)
    t = START + random.integers(first, last, n) * 10
    return pa.table(
        {
            "user": random.integers(0, users, n),
            "item": random.integers(0, items, n),
            "t": t,
            "click": pa.array(random.integers(0, 2, n), mask=random.random(n) < 0.1),
            "price": random.normal(size=n),
            "page": [PAGES[k] for k in random.integers(0, 3, n)],
            "tags": [[int(k) for k in random.integers(1, 5, size)] for size in random.integers(0, 3, n)],
            "arrived": t + random.integers(0, 4, n) * 10,
            "seq": 1_000 * seed + np.arange(n),
            "visit": 1_000 * seed + t // 30,
            "dwell": random.integers(0, 4, n),
            "seen_at": t + random.integers(0, 6, n) * 10,
            "last": [[int(k) for k in random.integers(0, 7, size)] for size in random.integers(0, 5, n)],
        }
    )


def drop_common(new: pa.Table, old: pa.Table) -> pa.Table:
    """Return the new rows whose user, item and timestamp are not those of an old row."""
    keys = set(zip(*(old[name].to_pylist() for name in ("user", "item", "t"))))
    own = zip(*(new[name].to_pylist() for name in ("user", "item", "t")))
    return new.filter(pa.array([key not in keys for key in own]))


class Logs:
    """Prepares rows and extends the log by others."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0

    def write(self, rows: pa.Table) -> str:
        self.number += 1
        path = self.folder / f"{self.number}.parquet"
        pq.write_table(rows, path)
        return str(path)

    def config(self, rows: pa.Table, **data: Any) -> DataConfig:
        return DataConfig.model_validate(
            {"log": self.write(rows), "folder": str(self.folder / "prepared"), "threads": 1, **data}
        )

    def prepare(self, rows: pa.Table, schema: dict[str, Any], **data: Any) -> tuple[Log, DataConfig]:
        config = self.config(rows, split={"by": "user"}, **data)
        return Log.open(prepare(config, Schema.model_validate(schema))), config

    def extend(
        self, log: Log, config: DataConfig, new: pa.Table, *, candidates: bool = False, **tables: Source
    ) -> tuple[ExtendedLog, np.ndarray[Any, Any]]:
        """Return the extended log, and the row of each new row in it."""
        self.number += 1
        scratch = self.folder / f"scratch-{self.number}"
        scratch.mkdir()
        inputs = NewInputs(
            log=Source(files=(self.write(new),)), **{f"{role}s": table for role, table in tables.items()}
        )
        rows = encode_new_rows(log, config, inputs, scratch)
        extended = extend_log(log, rows, scratch / "extended", candidates=candidates)
        at = np.empty(len(new), np.int64)
        at[rows.numbers] = extended.new
        return extended, at


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def find_rows(log: Log, rows: pa.Table) -> list[int]:
    """Return the row of each of these rows in a prepared log, by its values. Equal rows are interchangeable."""
    index: dict[Any, list[int]] = {}
    every = np.arange(len(log))
    users = log.users.keys.values.take(pa.array(log.user(every) - 1)).to_pylist()
    items = log.items.keys.values.take(pa.array(log.events.columns["item"].astype(np.int64) - 1)).to_pylist()
    unit = 1 if log.schema.time is None or log.schema.time.unit == "step" else 1_000
    times = (log.events.times // unit).tolist()
    prices = log.events.columns["price"].tolist()
    for row, key in enumerate(zip(users, items, times, prices)):
        index.setdefault(key, []).append(row)
    own = [rows[name].to_pylist() for name in ("user", "item", "t")]
    if log.schema.time is None:
        own[2] = [0] * len(rows)
    prices = rows["price"].to_numpy().astype(np.float32).tolist()
    return [index[key].pop() for key in zip(*own, prices)]


def same_batches(one: Log, rows: Any, other: Log, other_rows: Any) -> None:
    """Assert that rows of two logs have equal features and histories, timestamps and labels."""
    left, right = (gather(log, np.asarray(at, np.int64)) for log, at in ((one, rows), (other, other_rows)))
    assert left.features.keys() == right.features.keys()
    for name, column in left.features.items():
        same_column(name, column, right.features[name])
    for name, history in left.histories.items():
        torch.testing.assert_close(history.offsets, right.histories[name].offsets, msg=f"lengths of {name}")
        for column, values in history.columns.items():
            same_column(f"{name}.{column}", values, right.histories[name].columns[column])
    torch.testing.assert_close(left.timestamps, right.timestamps)
    torch.testing.assert_close(left.label, right.label, equal_nan=True)


def same_column(name: str, one: Any, other: Any) -> None:
    if isinstance(one, Jagged):
        torch.testing.assert_close(one.values, other.values, msg=name)
        torch.testing.assert_close(one.offsets, other.offsets, msg=name)
    else:
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("name", SCHEMAS)
def test_new_rows_have_the_histories_of_a_log_prepared_at_once(logs: Logs, name: str) -> None:
    # New users, new items, rows older than the log, and timestamps that both have.
    old = make_rows(1, 120, 0, 40, 4, 5)
    new = drop_common(make_rows(2, 90, 20, 60, 7, 9), old)
    if name == "declared order":  # what an order says about equal timestamps of two inputs is another test
        new = new.set_column(2, "t", pa.array(new["t"].to_numpy() + 5))
    log, config = logs.prepare(old, SCHEMAS[name])
    extended, at = logs.extend(log, config, new)
    whole, _ = logs.prepare(pa.concat_tables([old, new]), SCHEMAS[name])
    same_batches(extended, at, whole, find_rows(whole, new))
    lengths = [int(np.diff(gather(extended, at).histories[h].offsets).max()) for h in extended.schema.histories]
    assert min(lengths) > 0  # the comparison was not one of empty histories
    assert (extended.repeated, extended.hidden) == (0, None)


@pytest.mark.parametrize("name", ["plain", "late events", "declared order"])
def test_a_row_that_the_log_has_counts_once(logs: Logs, name: str) -> None:
    old, later = make_rows(1, 120, 0, 40, 4, 5), make_rows(2, 40, 45, 60, 4, 5)
    old = pa.concat_tables([old, old.slice(3, 4)])  # the log itself has copies
    repeated = old.take(pa.array([*range(30, 60), 3, 4, 5, 6, 120, 121, 122, 123]))
    log, config = logs.prepare(old, SCHEMAS[name])
    extended, at = logs.extend(log, config, pa.concat_tables([repeated, later]))
    whole, _ = logs.prepare(pa.concat_tables([old, later]), SCHEMAS[name])
    assert extended.repeated == len(repeated)
    rows = [*find_rows(whole, repeated), *find_rows(whole, later)]
    if name == "declared order":  # of two events of a user and item at one timestamp, either may be a new row
        keys = list(zip(*(old[column].to_pylist() for column in ("user", "item", "t"))))
        kept = [k for k in range(30) if keys.count(keys[30 + k]) == 1]
        at, rows = at[kept], np.array(rows)[kept].tolist()
    same_batches(extended, at, whole, rows)
    # One copy more than the log has is another event.
    again = pa.concat_tables([old.slice(0, 1), old.slice(0, 1)])
    assert logs.extend(log, config, again)[0].repeated == 1


def test_a_repeated_row_is_scored_with_its_new_values_and_read_with_those_of_the_log(logs: Logs) -> None:
    old = make_rows(1, 120, 0, 40, 4, 5)
    log, config = logs.prepare(old, PLAIN)
    row = old.slice(7, 1)
    other_page = next(page for page in PAGES if page != row["page"][0].as_py())
    changed_row = row.set_column(row.column_names.index("page"), "page", pa.array([other_page]))
    later = row.set_column(2, "t", pa.array([START + 10_000]))
    extended, at = logs.extend(log, config, pa.concat_tables([changed_row, later]))
    assert gather(extended, at).features["page"].tolist() == [
        PAGES.index(p) + 2 for p in (other_page, row["page"][0].as_py())
    ]
    whole, _ = logs.prepare(pa.concat_tables([old, later]), PLAIN)
    same_batches(extended, at[1:], whole, find_rows(whole, later))


def test_the_order_of_a_new_row_among_equal_timestamps_of_the_log_is_not_assumed(logs: Logs) -> None:
    schema = SCHEMAS["declared order"]
    old = make_rows(1, 60, 0, 20, 2, 5)
    log, config = logs.prepare(old, schema)
    new = make_rows(2, 30, 10, 20, 2, 9)
    extended, at = logs.extend(log, config, new)
    times = extended.events.times
    tied = 0
    old_keys = set(zip(old["user"].to_pylist(), (old["t"].to_numpy() * 1_000).tolist()))
    for row, key in zip(at.tolist(), new["user"].to_pylist()):
        if (key, int(times[row])) in old_keys and not extended.hidden[row]:
            own, _ = extended.select_history("all", np.array([row]))
            assert (times[own] < times[row]).all()
            tied += 1
    assert tied > 3
    # Among themselves, new rows at a timestamp that the log does not have follow their order.
    new = make_rows(2, 30, 30, 33, 2, 5)
    extended, at = logs.extend(log, config, new)
    first = extended.select_history("all", at[np.argsort(new["seq"].to_numpy())[-1:]])[0]
    assert len(first) == 5


def test_candidates_are_in_no_history(logs: Logs) -> None:
    old, new = make_rows(1, 120, 0, 40, 4, 5), make_rows(2, 60, 20, 60, 5, 5)
    log, config = logs.prepare(old, PLAIN)
    extended, at = logs.extend(log, config, new, candidates=True)
    for index in (0, 17, 40):  # each as if it were the only new row
        alone, own = logs.extend(log, config, new.slice(index, 1), candidates=True)
        same_batches(extended, at[index : index + 1], alone, own)
    both = [
        len(logs_.select_history("all", rows)[0]) for logs_, rows in ((extended, at), logs.extend(log, config, new))
    ]
    assert both[0] < both[1]


def test_feedback_that_new_rows_do_not_have_is_missing(logs: Logs) -> None:
    old, new = make_rows(1, 120, 0, 40, 4, 5), make_rows(2, 60, 45, 60, 4, 5)
    late = SCHEMAS["late events"]
    log, config = logs.prepare(old, late)
    bare = new.drop_columns(["click", "arrived", "dwell", "seen_at", "last"])
    extended, at = logs.extend(log, config, bare)
    # As if every value were null.
    nulls = {"click": pa.nulls(60, pa.int64()), "arrived": new["t"]}
    whole_new = new
    for column, values in nulls.items():
        whole_new = whole_new.set_column(new.column_names.index(column), column, values)
    whole, _ = logs.prepare(pa.concat_tables([old, whole_new]), late)
    same_batches(extended, at, whole, find_rows(whole, new))
    assert not extended.has_label


def test_a_column_that_every_impression_needs_is_required(logs: Logs) -> None:
    old = make_rows(1, 120, 0, 40, 4, 5)
    log, config = logs.prepare(old, PLAIN)
    with pytest.raises(DataError, match=r"no column 'price' \(feature price\); no column 'page' \(feature page\)"):
        logs.extend(log, config, old.drop_columns(["price", "page"]))
    with pytest.raises(DataError, match=r"text, for example '1'.*\n?.*expected integers"):
        logs.extend(log, config, old.set_column(0, "user", pa.array(["1"] * 120)))


def test_users_of_other_rows_are_not_copied(logs: Logs) -> None:
    old = make_rows(1, 400, 0, 40, 50, 5)
    log, config = logs.prepare(old, PLAIN)
    one = old.slice(0, 1).set_column(2, "t", pa.array([START + 10_000]))
    extended, _ = logs.extend(log, config, one)
    user = one["user"][0].as_py()
    assert len(extended) == 1 + (old["user"].to_numpy() == user).sum()


def test_groups_of_users_are_merged_alike(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make_rows(1, 200, 0, 40, 30, 5), make_rows(2, 90, 20, 60, 40, 9)
    log, config = logs.prepare(old, PLAIN)
    extended, at = logs.extend(log, config, new)
    monkeypatch.setattr("longrec.data.extended_log._CHUNK", 16)
    small, same = logs.extend(log, config, new)
    assert at.tolist() == same.tolist()
    same_batches(extended, at, small, same)


ITEMS = pa.table({"item": [0, 1, 2], "brand": ["a", "b", "a"]})
NEW_ITEMS = pa.table({"item": [2, 6], "brand": ["b", "b"]})
BRAND = {"kind": "id", "side": "item", "vocab": ["a", "b"]}
LISTED = {"kind": "multi_id", "side": "item", "vocab": ["a", "b"], "column": "brand", "separator": "|"}


def read_brands(extended: ExtendedLog, at: Any, new: pa.Table) -> dict[int, int]:
    return dict(zip(new["item"].to_pylist(), gather(extended, at).features["brand"].tolist()))


def test_a_new_table_has_features_of_new_items_and_replaces_those_of_others(logs: Logs) -> None:
    old, new = make_rows(1, 60, 0, 20, 4, 5), make_rows(2, 60, 20, 40, 4, 8)
    schema = with_features(brand=BRAND, brands=LISTED)
    log, config = logs.prepare(old, schema, items=logs.write(ITEMS))
    extended, at = logs.extend(log, config, new)
    assert read_brands(extended, at, new) == {0: 2, 1: 3, 2: 2, 3: 0, 4: 0, 5: 0, 6: 0, 7: 0}
    extended, at = logs.extend(log, config, new, item=Source(files=(logs.write(NEW_ITEMS),)))
    assert read_brands(extended, at, new) == {0: 2, 1: 3, 2: 3, 3: 0, 4: 0, 5: 0, 6: 3, 7: 0}
    brands = gather(extended, at).features["brands"]
    lists = [brands.values[brands.offsets[k] : brands.offsets[k + 1]].tolist() for k in range(len(new))]
    assert dict(zip(new["item"].to_pylist(), lists))[6] == [3]
    assert gather(extended, at).features["item"].max() == 6  # items that were not in training read as unseen
    whole_items = logs.write(pa.table({"item": [0, 1, 2, 6], "brand": ["a", "b", "b", "b"]}))
    whole, _ = logs.prepare(pa.concat_tables([old, new]), schema, items=whole_items)
    rows = [k for k, item in enumerate(new["item"].to_pylist()) if item in (0, 1, 2, 6)]
    same_batches(extended, at[rows], whole, np.array(find_rows(whole, new))[rows])


def test_versions_of_a_new_table_are_added(logs: Logs) -> None:
    old, new = make_rows(1, 60, 0, 20, 4, 5), make_rows(2, 60, 20, 40, 4, 8)
    schema = with_features(brand=BRAND)
    versions = pa.table(
        {"item": [0, 1, 2, 2], "brand": ["a", "b", "a", "b"], "since": [START, START, START, START + 50]}
    )
    newer = pa.table({"item": [2, 6, 2], "brand": ["a", "b", "a"], "since": [START + 300, START + 250, START + 50]})
    both = pa.concat_tables([versions.slice(0, 3), newer])
    table = {"files": logs.write(versions), "as_of": "since"}
    log, config = logs.prepare(old, schema, items=table)
    extended, at = logs.extend(log, config, new, item=Source(files=(logs.write(newer),), as_of="since"))
    whole, _ = logs.prepare(pa.concat_tables([old, new]), schema, items={"files": logs.write(both), "as_of": "since"})
    same_batches(extended, at, whole, find_rows(whole, new))
    with pytest.raises(DataError, match="a table with no as_of; expected as_of, as in the run's data.items"):
        logs.extend(log, config, new, item=Source(files=(logs.write(ITEMS),)))
    extended, at = logs.extend(log, config, new)  # a new item has no version
    assert {brand for item, brand in read_brands(extended, at, new).items() if item > 2} == {0}


def test_columns_of_the_log_give_features_of_new_items(logs: Logs) -> None:
    old, new = (
        rows.append_column("brand", pa.array(["ab"[item % 2] for item in rows["item"].to_pylist()]))
        for rows in (make_rows(1, 60, 0, 20, 4, 5), make_rows(2, 60, 20, 40, 4, 8))
    )
    schema = with_features(brand=BRAND)
    log, config = logs.prepare(old, schema)
    extended, at = logs.extend(log, config, new)
    whole, _ = logs.prepare(pa.concat_tables([old, new]), schema)
    same_batches(extended, at, whole, find_rows(whole, new))
    extended, at = logs.extend(log, config, new.drop_columns(["brand"]))
    assert read_brands(extended, at, new) == {0: 2, 1: 3, 2: 2, 3: 3, 4: 2, 5: 0, 6: 0, 7: 0}


def test_sparse_reads_of_a_hashed_key_are_unseen_as_in_serving(logs: Logs) -> None:
    schema = with_features(user={"kind": "id", "hash": 1_000})
    log, config = logs.prepare(make_rows(1, 60, 0, 20, 4, 5), schema)
    new = make_rows(2, 60, 20, 40, 6, 3)
    extended, at = logs.extend(log, config, new)
    ids: dict[int, int] = dict(zip(new["user"].to_pylist(), gather(extended, at).features["user"].tolist()))
    assert {user for user, value in ids.items() if value == 1} == {4, 5}


def test_tokens_and_knowledge_are_those_of_the_stores(logs: Logs) -> None:
    random, n = np.random.default_rng(5), 200
    user, at = random.integers(0, 6, n), (START + np.sort(random.integers(0, 60, n)) * 10) * 1_000
    vectors = random.normal(size=(n, 3)).astype(np.float32)
    tokens = str(logs.folder / "tokens")
    info = TokenInfo(width=3, sides={"label": 3}, unit="ms", versions=(Version(0),), standardized=True)
    with TokenStore.create(tokens, info) as store:
        columns: dict[str, Any] = {"instance": np.arange(n), "visible": at, "version": np.zeros(n, np.int64)}
        sides = {"sides": {"label": np.arange(n) % 3}, "available_at": {"label": at + 40_000}}
        store.append(user, at, vectors=vectors, **columns, **sides)
    knowledge = str(logs.folder / "knowledge")
    keys = np.arange(6)
    with KnowledgeStore.create(
        knowledge, KnowledgeInfo({"user": 2, "item": 2}, "ms", {"user": "int64", "item": "int64"})
    ) as vectors_store:
        for published in (START * 1_000 + 100_000, START * 1_000 + 300_000):
            numbers = random.normal(size=(6, 2)).astype(np.float32)
            vectors_store.publish(published, published, SideVectors(keys, numbers), SideVectors(keys, -numbers))
    schema = {
        **with_features(who={"kind": "embedding", "from": knowledge, "side": "user"}),
        "histories": {
            "all": {"features": ["item"], "max_length": 4},
            "tokens": {"from": tokens, "features": ["token", "label", "time_gap"], "max_length": 5},
        },
    }
    old = make_rows(1, 60, 0, 20, 4, 5)
    new = drop_common(make_rows(2, 60, 10, 60, 8, 9), old)
    log, config = logs.prepare(old, schema)
    extended, rows = logs.extend(log, config, new)
    whole, _ = logs.prepare(pa.concat_tables([old, new]), schema)
    same_batches(extended, rows, whole, find_rows(whole, new))
    batch = gather(extended, rows)
    assert np.diff(batch.histories["tokens"].offsets).max() == 5
    assert batch.features["who"][:, 0].unique().tolist() == [0.0, 1.0]
