"""Tables with versions: every feature comes from the newest version strictly before its timestamp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.entity_batches import build_item_batch, build_user_batch
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.data.training_histories import iterate_training_histories
from longrec.errors import DataError
from longrec.features.batch import Jagged
from longrec.features.entity_versions import Versions
from longrec.features.feature_encoders import dump_encoder
from longrec.features.schema import Schema
from longrec.metrics import auc

Row = dict[str, Any]
USERS, ITEMS, TICKS = 3, 4, 12
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "request": "visit",
    "label": "click",
    "features": {
        "number": {"kind": "numeric"},  # tells the rows apart
        "user": {"kind": "id", "vocab": list(range(USERS))},
        "item": {"kind": "id", "vocab": list(range(ITEMS))},
        "brand": {"kind": "id", "side": "item", "vocab": ["a", "b", "c"]},
        "cut": {"kind": "bucketized", "side": "item", "column": "price", "edges": [2, 5]},
        "price": {"kind": "numeric", "side": "item", "missing": -1},
        "sizes": {"kind": "numeric", "side": "item", "width": 2},
        "tags": {"kind": "multi_id", "side": "item", "vocab": [0, 1, 2], "weights": "tag_weights"},
        "shelf": {"kind": "id", "side": "item", "vocab": [0, 1]},  # a column of the log, the same in all its rows
        "land": {"kind": "id", "side": "user", "vocab": ["x", "y"]},
        "likes": {"kind": "multi_id", "side": "user", "vocab": [0, 1, 2]},
    },
    "histories": {
        "seen": {"features": ["item", "brand", "cut", "tags", "shelf"], "max_length": 4},
        "clicked": {"features": ["brand", "time_gap"], "max_length": 3, "where": {"page": 1}},
    },
}
VALUES = {"brand": ["a", "b", "c", "z"], "land": ["x", "y", "z"]}
TAGS = st.lists(st.integers(0, 3), max_size=3)


def event() -> st.SearchStrategy[Row]:
    return st.fixed_dictionaries(
        {
            "user": st.integers(0, USERS - 1),
            "item": st.integers(0, ITEMS - 1),
            "t": st.integers(1, TICKS),
            "visit": st.one_of(st.none(), st.integers(0, 1)),
            "page": st.integers(0, 1),
        }
    )


def versions(key: str, count: int, **columns: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    """Dated rows, some of keys that no event knows; several entities without any."""
    row = st.fixed_dictionaries({key: st.integers(0, count + 1), "since": st.integers(-3, TICKS + 2), **columns})
    return st.lists(row, min_size=1, max_size=25, unique_by=lambda one: (one[key], one["since"]))


ITEM_ROWS = versions(
    "item",
    ITEMS,
    brand=st.one_of(st.none(), st.sampled_from(VALUES["brand"])),
    price=st.one_of(st.none(), st.integers(0, 9)),
    tags=TAGS,
    sizes=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
USER_ROWS = versions("user", USERS, land=st.sampled_from(VALUES["land"]), likes=TAGS)
IDS, NUMBERS = pa.list_(pa.int64()), pa.list_(pa.float64())
TYPES = {"visit": pa.int64(), "brand": pa.string(), "price": pa.float64(), "tags": IDS, "likes": IDS}
TYPES |= {"tag_weights": NUMBERS, "sizes": NUMBERS}


def table(rows: list[Row]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], TYPES.get(name)) for name in rows[0]})


def newest(rows: list[Row], key: str, which: Any, now: int) -> Row | None:
    """By a look at every row."""
    own = [row for row in rows if row[key] == which and row["since"] < now]
    return max(own, key=lambda row: row["since"]) if own else None


def code(vocabulary: list[Any], value: Any) -> int:
    return 0 if value is None else vocabulary.index(value) + 2 if value in vocabulary else 1


def expected_item(item: Row | None, which: int) -> dict[str, Any]:
    """What a batch must hold of an item."""
    row = item or {"brand": None, "price": None, "tags": [], "sizes": None}
    price = row["price"]
    return {
        "item": which + 2,
        "brand": code(["a", "b", "c"], row["brand"]),
        "cut": 0 if price is None else 2 + (price >= 2) + (price >= 5),
        "price": -1.0 if price is None else float(price),
        "sizes": [0.0, 0.0] if row["sizes"] is None else [float(one) for one in row["sizes"]],
        "tags": [(code([0, 1, 2], tag), index + 0.5) for index, tag in enumerate(row["tags"])],
        "shelf": which % 2 + 2,
    }


def owner(user: Row | None) -> dict[str, Any]:
    row = user or {"land": None, "likes": []}
    return {"land": code(["x", "y"], row["land"]), "likes": [code([0, 1, 2], one) for one in row["likes"]]}


def plain(column: torch.Tensor | Jagged) -> list[Any]:
    if not isinstance(column, Jagged):
        return column.tolist()
    values = (
        column.values.tolist() if column.weights is None else list(zip(column.values.tolist(), column.weights.tolist()))
    )
    cuts = column.offsets.tolist()
    return [values[first:stop] for first, stop in zip(cuts, cuts[1:])]


def prepare_log(
    prepared: Callable[..., Log], rows: list[Row], items: list[Row], users: list[Row], schema: Row = SCHEMA
) -> Log:
    log = [{**row, "number": n, "click": n % 2, "shelf": row["item"] % 2} for n, row in enumerate(rows)]
    items = [{**row, "tag_weights": [index + 0.5 for index in range(len(row["tags"]))]} for row in items]
    return prepared(
        table(log).append_column("part", pa.array(["train"] * len(log))),
        schema,
        users=table(users),
        items=table(items),
        as_of={"users": "since", "items": "since"},
        split={"by": "column", "column": "part"},
    )


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(event(), min_size=2, max_size=25), items=ITEM_ROWS, users=USER_ROWS)
def test_every_feature_is_of_the_newest_version_before_its_timestamp(
    rows: list[Row], items: list[Row], users: list[Row], prepared: Callable[..., Log]
) -> None:
    log = prepare_log(prepared, rows, items, users)
    batch = gather(log, np.random.default_rng(0).permutation(len(log)))
    features = {name: plain(column) for name, column in batch.features.items()}
    for index, number in enumerate(features["number"]):
        row = rows[int(number)]
        same = [
            r["t"] for r in rows if r["visit"] is not None and (r["user"], r["visit"]) == (row["user"], row["visit"])
        ]
        now = min([row["t"], *same])
        expected = expected_item(newest(items, "item", row["item"], now), row["item"])
        expected |= owner(newest(users, "user", row["user"], now))
        assert {name: features[name][index] for name in expected} == expected
        # A past item is told as it stands at the impression, whatever it was at its own event.
        earlier = sorted((r for r in rows if r["user"] == row["user"] and r["t"] < now), key=lambda r: r["t"])
        for name, kept, last in (("seen", earlier, 4), ("clicked", [r for r in earlier if r["page"] == 1], 3)):
            seen = [expected_item(newest(items, "item", r["item"], now), r["item"]) for r in kept[-last:]]
            history = batch.histories[name]
            first, stop = history.offsets[index : index + 2].tolist()
            for column in set(history.columns) - {"time_gap"}:
                assert plain(history.columns[column])[first:stop] == [one[column] for one in seen], (name, column)


@settings(deadline=None, max_examples=5)
@given(items=ITEM_ROWS, users=USER_ROWS)
def test_users_and_items_by_themselves_stand_as_at_any_timestamp(
    items: list[Row], users: list[Row], prepared: Callable[..., Log]
) -> None:
    rows = [{"user": n % USERS, "item": n % ITEMS, "t": n, "visit": None, "page": 0} for n in range(TICKS)]
    log = prepare_log(prepared, rows, items, users)
    brands, lands = log.items.keys.values.to_pylist(), log.users.keys.values.to_pylist()
    for now in range(-4, TICKS + 4):
        batch_columns = build_item_batch(log, np.arange(1, len(brands) + 1), now).features
        values_by_name = {name: plain(column) for name, column in batch_columns.items()}
        for index, key in enumerate(brands):
            expected = expected_item(newest(items, "item", key, now), key)
            for name in ("brand", "cut", "price", "sizes", "tags"):
                assert values_by_name[name][index] == expected[name]
        batch_columns = build_user_batch(log, np.arange(1, len(lands) + 1), now).features
        values_by_name = {name: plain(column) for name, column in batch_columns.items()}
        for index, key in enumerate(lands):
            expected = owner(newest(users, "user", key, now))
            assert {name: values_by_name[name][index] for name in expected} == expected


# ---- coins -------------------------------------------------------------------------------------------------------

COINS: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "s"},
    "label": "click",
    "features": {"item": {"kind": "id"}, "ctr": {"kind": "numeric", "side": "item"}},
}
N, START = 2_000, 1_600_000_000


@pytest.mark.parametrize("after", [0, 1, 3_600])
def test_a_version_of_the_timestamp_or_later_reveals_no_coin(after: int, prepared: Callable[..., Log]) -> None:
    random = np.random.default_rng(after)
    coin, times = random.integers(0, 2, N), START + np.arange(N) * 60
    log = pa.table({"user": np.arange(N) % 40, "item": np.arange(N) % 200, "t": times, "click": coin})
    rows = {"item": np.arange(N) % 200, "ctr": coin * 0.9 + random.random(N) * 0.1, "since": times + after}
    dated = prepared(log, COINS, items=pa.table(rows), as_of={"items": "since"})
    assert dated.warnings == []

    def area(prepare_log: Log) -> float:
        batch = gather(prepare_log, np.arange(len(prepare_log)))
        ctr = batch.features["ctr"]
        assert isinstance(ctr, torch.Tensor)
        return float(auc(batch.label.numpy(), ctr.numpy()))

    assert abs(area(dated) - 0.5) < 5 * 0.29 / np.sqrt(N) * 2
    # The same numbers without their dates: the mean of the whole log, which has the coin in it.
    means = [rows["ctr"][rows["item"] == item].mean() for item in range(200)]
    static = prepared(log, COINS, items=pa.table({"item": np.arange(200), "ctr": means}))
    assert area(static) > 0.6
    assert static.warnings == [
        "items.parquet has no as_of: feature ctr is used unchanged for every impression; "
        "if it changes over time, keep one row per version and set as_of to the column with its timestamp"
    ]


def test_only_a_table_that_some_feature_reads_is_reported(prepared: Callable[..., Log]) -> None:
    log = pa.table({"user": [1, 2] * 20, "item": [3, 4] * 20, "t": range(40), "click": [0, 1, 1, 0] * 10})
    schema_dict = {
        **COINS,
        "features": {"item": {"kind": "id"}, "user": {"kind": "id"}},
        "time": {"column": "t", "unit": "step"},
    }
    items = pa.table({"item": [3, 4], "ctr": [0.5, 0.6], "a": ["x", "y"]})
    assert prepared(log, schema_dict, items=items).warnings == []
    both = {
        **schema_dict,
        "features": {"ctr": {"kind": "numeric", "side": "item"}, "b": {"kind": "id", "side": "item", "column": "a"}},
    }
    (warnings,) = prepared(log, both, items=items).warnings
    assert warnings.startswith("items.parquet has no as_of: features ctr, b are used unchanged for every")


def test_timestamps_that_all_lie_late_are_reported(prepared: Callable[..., Log]) -> None:
    log = pa.table({"user": [1, 2] * 20, "item": [3, 4] * 20, "t": range(40), "click": [0, 1, 1, 0] * 10})
    schema_dict = {**COINS, "time": {"column": "t", "unit": "step"}}
    for since, share in ((9, None), (40, "100%"), (24, "78%")):
        items = pa.table({"item": [3, 4], "ctr": [0.5, 0.6], "since": [since, since]})
        warnings = prepared(log, schema_dict, items=items, as_of={"items": "since"}).warnings
        assert len(warnings) == (share is not None)
        if share is not None:
            assert warnings[0].startswith(
                f"items.parquet has no version before {share} of the training rows, where feature ctr"
            )


def test_versions_of_a_log_without_time_are_refused(prepared: Callable[..., Log]) -> None:
    schema_dict = {
        "user": "user",
        "item": "item",
        "label": "click",
        "features": {"ctr": {"kind": "numeric", "side": "item"}},
    }
    schema_dict |= {"histories": {"past": {"features": ["item"], "columns": {"item": "past"}}}}
    schema_dict["features"]["item"] = {"kind": "id"}  # type: ignore[index]
    log = pa.table({"user": [1, 2] * 9, "item": [3, 4] * 9, "click": [0, 1] * 9, "past": [[3]] * 18})
    items = pa.table({"item": [3], "ctr": [0.5], "since": [0]})
    with pytest.raises(DataError, match="column 'since': as_of, but the schema has no time column"):
        prepared(log, schema_dict, items=items, as_of={"items": "since"}, split={"by": "user"})


# ---- the fit -----------------------------------------------------------------------------------------------------

LEARNED: dict[str, Any] = {
    "brand": {"kind": "id", "min_count": 3},
    "same": {"kind": "id", "column": "brand", "share": "brand"},
    "tags": {"kind": "multi_id"},
    "price": {"kind": "numeric", "scale": "standard"},
    "wide": {"kind": "numeric", "scale": "minmax", "column": "price"},
    "cuts": {"kind": "bucketized", "quantiles": 4, "column": "price"},
    "square": {"kind": "bucketized", "log_square": True, "column": "price"},
    "hashed": {"kind": "id", "column": "brand", "hash": 20},
}


def test_what_is_learned_is_what_training_rows_read(prepared: Callable[..., Log]) -> None:
    """As if every row of the log carried the values of its version."""
    random = np.random.default_rng(3)
    count, items = 300, list[Row]()
    for n, since in enumerate(random.choice(400, 90, replace=False)):
        values = {"brand": f"b{random.integers(0, 30)}", "price": float(random.integers(0, 90))}
        items.append({"item": n % 8, "since": int(since), **values, "tags": random.integers(0, 40, 2).tolist()})
    rows = [{"user": n % 5, "item": int(random.integers(0, 9)), "t": n, "click": n % 2} for n in range(count)]
    nothing = {"brand": None, "price": None, "tags": None}
    joined = []
    for row in rows:
        values_by_name = newest(items, "item", row["item"], row["t"]) or nothing
        joined.append({**row, **{name: values_by_name[name] for name in nothing}})
    base = {"user": "user", "item": "item", "time": {"column": "t", "unit": "step"}, "label": "click"}
    ids = {"user": {"kind": "id"}, "item": {"kind": "id"}}
    schema_dict = [
        {**base, "features": ids | {n: {**f, "side": owns} for n, f in LEARNED.items()}}
        for owns in ("item", "candidate")
    ]
    dated = prepared(table(rows), schema_dict[0], items=table(items), as_of={"items": "since"})
    beside = prepared(table(joined), schema_dict[1])
    for name in LEARNED:
        one, other = (log.fitted.encoders[name] for log in (dated, beside))
        states = [dump_encoder(encoder) for encoder in (one, other)]
        spreads = [state.pop("spread", 0.0) for state in states]  # sums in another order
        assert states[0] == states[1], name
        assert spreads[0] == pytest.approx(spreads[1], rel=1e-12)
        keys = [getattr(encoder, "keys", None) for encoder in (one, other)]
        assert (keys[0] is None) == (keys[1] is None)
        if keys[0] is not None and keys[1] is not None:
            assert keys[0].values.equals(keys[1].values), name
    everything = np.arange(count)
    for name, column in gather(dated, everything).features.items():
        other = plain(gather(beside, everything).features[name])
        assert plain(column) == (pytest.approx(other) if name == "price" else other), name


def test_one_version_a_key_before_everything_is_a_table_without_versions(prepared: Callable[..., Log]) -> None:
    random = np.random.default_rng(4)
    log = pa.table(
        {"user": random.integers(0, 5, 200), "item": random.integers(0, 9, 200), "t": START + np.arange(200),
         "click": random.integers(0, 2, 200)}
    )  # fmt: skip
    items = pa.table(
        {"item": np.arange(9), "brand": [f"b{n % 4}" for n in range(9)], "price": random.random(9) * 50,
         "tags": [[n % 3, n % 5] for n in range(9)], "since": pa.array([START - 1] * 9, pa.timestamp("s"))}
    )  # fmt: skip
    schema_dict = {
        **COINS,
        "features": {"item": {"kind": "id"}} | {n: {**f, "side": "item"} for n, f in LEARNED.items()},
    }
    schema_dict["histories"] = {"past": {"features": ["item", "brand", "tags", "cuts"], "max_length": 5}}
    dated, static = (
        prepared(log, schema_dict, items=items, as_of={"items": "since"}),
        prepared(log, schema_dict, items=items),
    )
    one, other = (gather(one_log, np.arange(200)) for one_log in (dated, static))
    for name in one.features:
        assert plain(one.features[name]) == plain(other.features[name]), name
    for column, values in one.histories["past"].columns.items():
        assert plain(values) == plain(other.histories["past"].columns[column]), column
    assert not (static.folder / "items" / "versions").exists()
    assert "dated" not in (static.folder / "items" / "table.json").read_text()


def test_the_dates_of_a_table_may_be_of_another_type_than_those_of_the_log(prepared: Callable[..., Log]) -> None:
    day = 86_400
    timestamps = START // day * day + np.arange(40) * (day // 4)
    log = pa.table({"user": [1] * 40, "item": [3] * 40, "t": timestamps, "click": [0, 1] * 20})
    seconds = START // day * day + np.arange(10) * day
    when = pa.array(seconds, pa.timestamp("s", "UTC"))
    east = np.datetime_as_string((seconds + 2 * 3600).astype("datetime64[s]"))
    dates: dict[str, Any] = {
        "seconds": seconds,
        "milliseconds": seconds * 1_000,
        "with a zone": when.cast(pa.timestamp("us", "Asia/Tokyo")),
        "naive": when.cast(pa.timestamp("ns")),
        "days": when.cast(pa.date32()),
        "text with an offset": [f"{text}+02:00" for text in east],
    }
    expected = [0.0] + [float(n // 4 + 1) for n in range(39)]
    for kind, since in dates.items():
        items = pa.table({"item": [3] * 10, "ctr": np.arange(10) + 1.0, "since": since})
        schema_dict = {**COINS, "time": "t"}
        ctr = gather(prepared(log, schema_dict, items=items, as_of={"items": "since"}), np.arange(40)).features["ctr"]
        assert plain(ctr) == expected, kind


def test_another_column_of_dates_is_another_log(tmp_path: Path) -> None:
    count = 40
    log = {"user": [0, 1] * 20, "item": [0, 1] * 20, "t": range(count), "click": [0, 1, 1, 0] * 10}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    items = {"item": [0, 1], "ctr": [0.1, 0.9], "early": [-1, -1], "late": [count, count]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    schema = Schema.model_validate({**COINS, "time": {"column": "t", "unit": "step"}})
    folders = set()
    for as_of in (None, "early", "late"):
        for schema_dict in ({"files": str(tmp_path / "items.parquet")}, {"query": f"FROM '{tmp_path}/items.parquet'"}):
            source = {**schema_dict, **({} if as_of is None else {"as_of": as_of})}
            if as_of is None and "files" in schema_dict:
                source["files"] = str(tmp_path / "ite*.parquet")
            data = {"log": str(tmp_path / "log.parquet"), "items": source, "folder": str(tmp_path / "prepared")}
            folder = prepare(DataConfig.model_validate(data), schema)
            folders.add(folder)
            log_of = Log.open(folder)
            named = f"{tmp_path.name}/ite*.parquet" if "files" in schema_dict else "the query of items"
            warnings = "" if not log_of.warnings else log_of.warnings[0].split(" has ")[0]
            assert warnings == {None: named, "early": "", "late": named.replace("*", "ms").rpartition("/")[2]}[as_of]
            batch = gather(log_of, np.arange(count))
            assert set(plain(batch.features["ctr"])) == (
                {0.0} if as_of == "late" else {np.float32(0.1), np.float32(0.9)}
            )
    assert len(folders) == 6


def test_what_users_did_in_training_is_reported_as_of_its_end(prepared: Callable[..., Log]) -> None:
    rows = [{"user": 0, "item": n % 2, "t": n, "click": n // 2 % 2} for n in range(40)]
    items = [{"item": n, "since": since, "brand": f"{n} from {since}"} for n in (0, 1) for since in (-1, 10, 35)]
    schema_dict = {
        **COINS,
        "time": {"column": "t", "unit": "step"},
        "histories": {"past": {"features": ["brand"], "max_length": 5}},
    }
    schema_dict["features"] = {
        "item": {"kind": "id"},
        "brand": {"kind": "id", "side": "item", "vocab": ["0 from 10", "1 from 10"]},
    }
    rows = [{**row, "part": "train" if row["t"] < 30 else "test"} for row in rows]
    for split in ({"test_from": "30"}, {"by": "column", "column": "part"}):
        log = prepared(table(rows), schema_dict, items=table(items), as_of={"items": "since"}, split=split)
        (piece,) = iterate_training_histories(log)
        assert set(plain(piece["past"].columns["brand"])) == {2, 3}, split


def test_a_table_without_rows_and_columns_of_both_sides(prepared: Callable[..., Log]) -> None:
    """Dated values with weights of the log, the other way round, a feature of the dates themselves, and no row."""
    rows = [{"user": 0, "item": n % 2, "t": n, "click": n // 2 % 2} for n in range(40)]
    log = table(rows).append_column("given", pa.array([[n % 2, 5] for n in range(40)]))
    log = log.append_column("strength", pa.array([[0.5, 1.5 + n % 2] for n in range(40)]))
    items = pa.table({"item": [0, 0], "since": [3, 8], "tags": [[1, 2], [3, 4]], "heavy": [[1.0, 2.0], [3.0, 4.0]]})
    schema_dict = {**COINS, "time": {"column": "t", "unit": "step"}}
    schema_dict["features"] = {
        "dated": {"kind": "multi_id", "side": "item", "column": "tags", "weights": "strength", "vocab": [1, 2, 3, 4]},
        "fixed": {"kind": "multi_id", "side": "item", "column": "given", "weights": "heavy", "vocab": [0, 1, 5]},
        "since": {"kind": "numeric", "side": "item", "missing": -1},
    }
    values_by_name = gather(prepared(log, schema_dict, items=items, as_of={"items": "since"}), np.arange(40)).features
    dated, fixed, since = (plain(values_by_name[name]) for name in schema_dict["features"])
    assert dated == [[], [], [], []] + [
        [] if n % 2 else [(2, 0.5), (3, 1.5)] if n <= 8 else [(4, 0.5), (5, 1.5)] for n in range(4, 40)
    ]
    early, late = [(2, 1.0), (4, 2.0)], [(2, 3.0), (4, 4.0)]
    assert fixed[3:11] == [[], early, [], early, [], early, [], late]
    assert since[:11] == [-1.0, -1.0, -1.0, -1.0, 3.0, -1.0, 3.0, -1.0, 3.0, -1.0, 8.0]
    none = prepared(log, schema_dict, items=items.slice(0, 0), as_of={"items": "since"})
    empty = gather(none, np.arange(40)).features
    assert plain(empty["dated"]) == [[]] * 40
    assert plain(empty["since"]) == [-1.0] * 40
    start = "items.parquet has no version before 100% of the training rows, where features dated, fixed, since read as"
    assert any(sentence.startswith(start) for sentence in none.warnings)


def test_the_last_row_of_a_narrow_type_has_its_versions() -> None:
    versions = Versions(np.arange(257) - 1, np.zeros(255, np.int64))
    assert versions.rows(np.array([1, 255, 0], np.uint8), 1).tolist() == [1, 255, 0]
