"""Every tensor of a batch against a slow reference: plain loops over plain rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.features.batch import Batch, Jagged

Row = dict[str, Any]
START = 1_600_000_000
PLAIN = ("visit", "click", "page", "price", "dwell", "fix", "part")


# ---- random logs -------------------------------------------------------------------------------------------------


def event(users: int, items: int, ticks: int) -> st.SearchStrategy[Row]:
    maybe = st.none()
    return st.fixed_dictionaries(
        {
            "user": st.integers(0, users - 1),
            "item": st.one_of(maybe, st.integers(0, items - 1), st.integers(0, items - 1)),
            "t": st.integers(0, ticks),
            "visit": st.one_of(maybe, st.integers(0, 2)),
            "click": st.sampled_from([0, 1, 1, None]),
            "page": st.sampled_from(["home", "find", None]),
            "price": st.one_of(maybe, st.integers(-2, 9)),
            "dwell": st.one_of(maybe, st.integers(0, 4)),
            "fix": st.one_of(maybe, st.integers(0, 3)),
            "fixed_after": st.one_of(maybe, st.integers(-2, 6)),
            "ads": st.lists(st.one_of(maybe, st.integers(0, 3)), max_size=3),
            "part": st.sampled_from(["train", "train", "valid", "test"]),
        }
    )


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Rows, how ids are written, and the choices of a schema."""
    rows = draw(st.lists(event(4, 6, 12), max_size=28))
    rows += [  # both classes, whatever else is drawn
        {**draw(event(4, 6, 12)), "click": click, "part": "train"} for click in (0, 1)
    ]
    return {
        "rows": rows,
        "text": draw(st.booleans()),
        "steps": draw(st.booleans()),
        "visits": draw(st.booleans()),
        "user_table": draw(st.booleans()),
        "item_table": draw(st.booleans()),
        "label_delay": draw(st.sampled_from([0, 1, 4])),
        "dwell_delay": draw(st.sampled_from([None, 0, 3])),
        "available_at": draw(st.booleans()),
        "max_length": draw(st.integers(1, 5)),
        "min_count": draw(st.integers(1, 3)),
        "ages": draw(st.lists(st.one_of(st.none(), st.integers(10, 70)), min_size=6, max_size=6)),
        "kinds": draw(st.lists(st.sampled_from(["a", "b", None]), min_size=8, max_size=8)),
        "tags": draw(st.lists(st.lists(st.sampled_from(["x", "y", "z"]), max_size=3), min_size=8, max_size=8)),
    }


def build(case: dict[str, Any]) -> tuple[pa.Table, dict[str, Any], pa.Table | None, pa.Table | None]:
    """The log, the schema, and the tables of users and items."""
    name = (lambda kind, n: None if n is None else f"{kind}{n}") if case["text"] else (lambda kind, n: n)
    key = pa.string() if case["text"] else pa.int64()
    rows, zero = case["rows"], 0 if case["steps"] else START
    log = {
        "user": pa.array([name("u", row["user"]) for row in rows], key),
        "item": pa.array([name("i", row["item"]) for row in rows], key),
        "t": pa.array([row["t"] + zero for row in rows]),
        "fixed_at": pa.array([None if (m := fixed_at(row)) is None else m + zero for row in rows], pa.int64()),
        "ad_weights": pa.array([[0.5 + k for k in range(len(row["ads"]))] for row in rows], pa.list_(pa.float64())),
        "ads": pa.array([row["ads"] for row in rows], pa.list_(pa.int64())),
        **{column: pa.array([row[column] for row in rows]) for column in PLAIN},
    }
    users = items = None
    if case["user_table"]:  # users 1 to 5: user 0 has no row, users 4 and 5 are in no log
        own = range(1, 6)
        users = pa.table({"user": pa.array([name("u", n) for n in own], key), "age": [case["ages"][n] for n in own]})
    else:
        log["age"] = pa.array([case["ages"][row["user"]] for row in rows], pa.int64())
    joined = ["|".join(tags) for tags in case["tags"]]
    if case["item_table"]:
        columns = {"kind": [case["kinds"][n] for n in range(1, 8)], "tags": joined[1:]}
        items = pa.table({"item": pa.array([name("i", n) for n in range(1, 8)], key), **columns})
    else:
        # a null item's columns describe nothing, and need not agree
        at = [n % 8 if row["item"] is None else row["item"] for n, row in enumerate(rows)]
        log["kind"] = pa.array([case["kinds"][n] for n in at], pa.string())
        log["tags"] = pa.array([joined[n] for n in at])
    return pa.table(log), schema_of(case), users, items


def fixed_at(row: Row) -> int | None:
    return None if row["fixed_after"] is None else row["t"] + row["fixed_after"]


def schema_of(case: dict[str, Any]) -> dict[str, Any]:
    dwell = {} if case["dwell_delay"] is None else {"available_after": case["dwell_delay"]}
    fix = {"available_at": "fixed_at"} if case["available_at"] else {}
    hour = {} if case["steps"] else {"hour": {"kind": "calendar", "component": "hour_of_week"}}
    return {
        "user": "user",
        "item": "item",
        "time": {"column": "t", "unit": "step" if case["steps"] else "s"},
        **({"request": "visit"} if case["visits"] else {}),
        "label": "click",
        "label_delay": case["label_delay"],
        "features": {
            "user": {"kind": "id"},
            "age": {"kind": "bucketized", "side": "user", "edges": [18, 40]},
            "item": {"kind": "id", "min_count": case["min_count"]},
            "kind": {"kind": "id", "side": "item"},
            "tags": {"kind": "multi_id", "side": "item", "separator": "|", "min_count": case["min_count"]},
            "page": {"kind": "id"},
            "price": {"kind": "numeric", "missing": 3},
            "ads": {"kind": "multi_id", "weights": "ad_weights"},
            "click": {"kind": "id", "feedback": True},
            "dwell": {"kind": "bucketized", "edges": [1, 3], "feedback": True, **dwell},
            "fix": {"kind": "id", "feedback": True, **fix},
            **hour,
        },
        "histories": {
            "all": {
                "features": ["item", "kind", "tags", "page", "click", "dwell", "fix", "time_gap"],
                "max_length": case["max_length"],
            },
            "clicks": {
                "features": ["item", "click", "time_gap", "time_since_previous", "session_recency"],
                "where": {"click": 1},
                "max_length": case["max_length"],
                "session_gap": "2s",
            },
            "found": {"features": ["page", "tags"], "where": {"page": ["find"], "dwell": {"at_least": 1}}},
        },
    }


# ---- the oracle --------------------------------------------------------------------------------------------------


class SlowReference:
    """What every row should show, one value at a time. Nothing is shared with the package."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case, self.rows = case, case["rows"]
        self.order = sorted(range(len(self.rows)), key=lambda n: (self.rows[n]["user"], self.rows[n]["t"], n))
        train = [row for row in self.rows if row["part"] == "train"]
        least = case["min_count"]
        self.vocabulary = {
            "user": self.learn([row["user"] for row in train], 1),
            "item": self.learn([row["item"] for row in train], least),
            "kind": self.learn([self.kind(row) for row in train], 1),
            "tags": self.learn([tag for row in train for tag in self.tags(row)], least),
            "page": self.learn([row["page"] for row in train], 1),
            "ads": self.learn([ad for row in train for ad in row["ads"]], 1),
            "click": self.learn([row["click"] for row in train], 1),
            "fix": self.learn([row["fix"] for row in train], 1),
        }

    @staticmethod
    def learn(values: list[Any], least: int) -> list[Any]:
        counts = Counter(value for value in values if value is not None)
        return sorted(value for value, n in counts.items() if n >= least)

    def code(self, name: str, value: Any) -> int:
        if value is None:
            return 0
        vocabulary = self.vocabulary[name]
        return vocabulary.index(value) + 2 if value in vocabulary else 1

    def kind(self, row: Row) -> str | None:
        item = row["item"]
        return None if item is None or (self.case["item_table"] and item == 0) else self.case["kinds"][item]

    def tags(self, row: Row) -> list[str]:
        item = row["item"]
        return [] if item is None or (self.case["item_table"] and item == 0) else self.case["tags"][item]

    def age(self, row: Row) -> int:
        age = None if self.case["user_table"] and row["user"] == 0 else self.case["ages"][row["user"]]
        return 0 if age is None else 2 + (age >= 18) + (age >= 40)

    def timestamp(self, row: Row) -> int:
        if not self.case["visits"] or row["visit"] is None:
            return row["t"]
        same = [r["t"] for r in self.rows if (r["user"], r["visit"]) == (row["user"], row["visit"])]
        return min(same)

    def features(self, row: Row) -> dict[str, Any]:
        expected = {
            "user": self.code("user", row["user"]),
            "age": self.age(row),
            # a null item is an item nobody knows
            "item": 1 if row["item"] is None else self.code("item", row["item"]),
            "kind": self.code("kind", self.kind(row)),
            "tags": [self.code("tags", tag) for tag in self.tags(row)],
            "page": self.code("page", row["page"]),
            "price": 3.0 if row["price"] is None else float(row["price"]),
            "ads": [self.code("ads", ad) for ad in row["ads"]],
        }
        if not self.case["steps"]:
            timestamp = datetime.fromtimestamp(START + self.timestamp(row), UTC)
            expected["hour"] = 2 + timestamp.weekday() * 24 + timestamp.hour
        return expected

    def select_history(self, row: Row) -> list[Row]:
        own = [self.rows[n] for n in self.order if self.rows[n]["user"] == row["user"]]
        return [event for event in own if event["t"] < self.timestamp(row)]

    def history(self, name: str, row: Row) -> list[Row]:
        now, label = self.timestamp(row), self.case["label_delay"]
        dwell = label if self.case["dwell_delay"] is None else self.case["dwell_delay"]
        events = self.select_history(row)
        if name == "clicks":
            events = [p for p in events if p["click"] == 1 and p["t"] + label < now]
        if name == "found":
            events = [p for p in events if p["page"] == "find" and (p["dwell"] or 0) >= 1 and p["t"] + dwell < now]
        return events[-50 if name == "found" else -self.case["max_length"] :]

    def samples(self, split: str) -> list[int]:
        """Places of the rows that take part: their labels were known before what is measured of the user, or of all
        users where the parts follow each other in time.
        """
        labeled = [row for row in self.rows if row["click"] is not None]
        measured = {"train": ("valid", "test"), "valid": ("test",), "test": ()}[split]
        later = [row for row in labeled if row["part"] in measured]
        first = min((self.timestamp(row) for row in later), default=10**9)
        in_turn = all(row["t"] < first for row in labeled if row["part"] == split)
        positions = []
        for position, row in enumerate(self.rows[n] for n in self.order):
            own = [self.timestamp(other) for other in later if in_turn or other["user"] == row["user"]]
            in_time = all(row["t"] + self.case["label_delay"] < timestamp for timestamp in own)
            if row["click"] is not None and row["part"] == split and in_time:
                positions.append(position)
        return positions

    @staticmethod
    def computed_column(name: str, events: list[Row], at: int) -> int:
        """Columns that tell how events of a history stand to each other; sessions are parted by more than 2 s."""
        gaps = [later["t"] - earlier["t"] for earlier, later in zip(events, events[1:])]
        if name == "session_recency":
            return min(2 + sum(gap > 2 for gap in gaps[at:]), 65)
        return 2 + (1 + gaps[at - 1]).bit_length() - 1 if at else 0

    def column(self, name: str, event: Row, now: int) -> Any:
        label = self.case["label_delay"]
        if name == "time_gap":
            return 2 + (1 + now - event["t"]).bit_length() - 1
        if name in ("item", "kind", "tags", "page"):
            return self.features(event)[name]
        if name == "click":
            available, rows = event["t"] + label < now, 2 + len(self.vocabulary["click"])
            return self.code("click", event["click"]) if available else rows
        if name == "dwell":
            delay = label if self.case["dwell_delay"] is None else self.case["dwell_delay"]
            value = event["dwell"]
            seen = 0 if value is None else 2 + (value >= 1) + (value >= 3)
            return seen if event["t"] + delay < now else 5
        since = fixed_at(event) if self.case["available_at"] else event["t"] + label
        available, rows = since is not None and since < now, 2 + len(self.vocabulary["fix"])
        return self.code("fix", event["fix"]) if available else rows


def plain(column: torch.Tensor | Jagged) -> list[Any]:
    """A column as Python values, one a row."""
    if isinstance(column, Jagged):
        bounds = column.offsets.tolist()
        return [column.values[a:b].tolist() for a, b in zip(bounds, bounds[1:])]
    assert column.dtype in (torch.int32, torch.float32)
    return column.tolist()


def compare(reference: SlowReference, log: Log, batch: Batch, at: np.ndarray[Any, Any]) -> None:
    rows = [reference.rows[reference.order[n]] for n in at]
    assert batch.size == len(rows)
    assert batch.layout.kind == "single"
    assert batch.rows is not None
    assert batch.label is not None
    assert batch.rows.tolist() == at.tolist()
    labels = [float("nan") if row["click"] is None else row["click"] for row in rows]
    np.testing.assert_array_equal(batch.label.numpy(), labels)
    shown = [reference.features(row) for row in rows]
    assert set(batch.features) == set(shown[0])
    for name, column in batch.features.items():
        assert plain(column) == [values[name] for values in shown], name
    ads = batch.features["ads"]
    assert isinstance(ads, Jagged)
    assert ads.weights is not None
    assert ads.weights.tolist() == [0.5 + k for row in rows for k in range(len(row["ads"]))]
    for name, history in batch.histories.items():
        histories = [reference.history(name, row) for row in rows]
        assert history.offsets.dtype == torch.int64
        assert history.offsets.tolist() == np.cumsum([0, *map(len, histories)]).tolist(), name
        assert list(history.columns) == list(log.schema.histories[name].features)
        for column_name, column in history.columns.items():
            if column_name in ("time_since_previous", "session_recency"):
                expected = [
                    reference.computed_column(column_name, own, at) for own in histories for at in range(len(own))
                ]
            else:
                pairs = [(p, reference.timestamp(row)) for row, own in zip(rows, histories) for p in own]
                expected = [reference.column(column_name, p, now) for p, now in pairs]
            assert plain(column) == expected, (name, column_name)


@settings(deadline=None, max_examples=25)
@given(case=cases(), random=st.randoms(use_true_random=False))
def test_every_tensor_equals_the_slow_way(case: dict[str, Any], random: Any, prepared: Callable[..., Log]) -> None:
    table, schema, users, items = build(case)
    log = prepared(table, schema, users=users, items=items, split={"by": "column", "column": "part"})
    reference = SlowReference(case)
    at = list(range(len(reference.rows)))
    random.shuffle(at)
    assert len(log) == len(at)
    compare(reference, log, gather(log, np.array(at)), np.array(at))
    compare(reference, log, gather(log, np.array(at[:1])), np.array(at[:1]))
    for rows in (np.array(at), np.arange(len(at))):
        grouped = gather(log, rows, group=True)
        compare(reference, log, grouped.ungroup(), rows)
        ordered = [reference.rows[reference.order[row]] for row in rows]
        apart = [a["user"] != b["user"] or a["t"] != b["t"] for a, b in pairwise(ordered)]
        assert grouped.layout.requests >= 1 + sum(apart)  # more where context features differ
    expected_users = {row["user"] for row in reference.rows} | (set(range(1, 6)) if case["user_table"] else set())
    assert len(log.users) == 1 + len(expected_users)  # those of the table who never came are known too
    if case["user_table"]:
        row = log.users.rows(pa.array(["u5" if case["text"] else 5]), "user")
        assert log.users.columns["age"][row[0]] == reference.age({"user": 5})  # type: ignore[index]
    for split in ("train", "valid", "test"):
        assert log.rows_of(split).tolist() == reference.samples(split)
