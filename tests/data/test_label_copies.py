"""Copies of the label: features that reveal the label of their own row are named, honest strong ones are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.data.label_copies import LabelCopy, filter_warning
from longrec.data.log import Log

N = 3_000
random = np.random.default_rng(0)
USER, ITEM = random.integers(0, 150, N), random.integers(0, 60, N)
# Items of very different popularity, a strong place, and users of different moods: AUC .8 and more, honestly.
LOGIT = np.linspace(-3, 3, 60)[ITEM] + np.linspace(-1, 1, 150)[USER]
CLICK = (random.random(N) < 1 / (1 + np.exp(-LOGIT))).astype(int)
LIKE = CLICK * (random.random(N) < 0.3)
NOISY = np.where(random.random(N) < 0.03, 1 - CLICK, CLICK)
BASE: dict[str, Any] = {
    "user": USER,
    "item": ITEM,
    "t": 1_700_000_000 + 60 * np.arange(N),
    "click": CLICK,
    "buy": (random.random(N) < 0.2).astype(int),
}
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "s"},
    "label": "click",
    "label_delay": "1h",
}
IDS: dict[str, Any] = {"user": {"kind": "id"}, "item": {"kind": "id"}}


def opened(prepared: Callable[..., Log], columns: dict[str, Any], features: dict[str, Any], **schema: Any) -> Log:
    return prepared(pa.table({**BASE, **columns}), {**SCHEMA, "features": {**IDS, **features}, **schema})


def named(log: Log) -> list[str]:
    """The features (or histories) that warnings name."""
    return sorted(warning.split("'")[1] for warning in log.warnings if warning.startswith(("feature '", "history '")))


def test_copies_of_every_kind_are_named(prepared: Callable[..., Log]) -> None:
    null = [None if value == 0 else int(value) for value in CLICK]
    order = pa.array([f"order {row}" if CLICK[row] else None for row in range(N)])
    columns: dict[str, Any] = {
        "number": CLICK,
        "inverted": 1 - CLICK,
        "text": np.where(CLICK, "yes", "no"),
        "seconds": CLICK * random.random(N) * 40,
        "dwell": np.where(CLICK, 5 + random.random(N), random.random(N)),
        "far": np.where(CLICK, random.random(N) + np.where(random.random(N) < 0.5, 9, -9), random.random(N)),
        "tags": [[3, 5 + value] for value in CLICK.tolist()],
        "some": [[1] if value else [] for value in CLICK.tolist()],
        "null": null,
        "order": order,
        "stay": [None if value == 0 else float(seconds) for value, seconds in zip(CLICK, random.random(N))],
        "noisy": NOISY,
        "like": LIKE,
        "not_like": 1 - LIKE,
        "map": [f"a:{value},b:7" for value in CLICK],
        "key": ["a"] * N,
        "bought": BASE["buy"],
        "shown_click": CLICK,
        "pair": [[float(value), 0.5] for value in CLICK],
        "wide": [[0.5] * 40 + [float(value)] for value in CLICK],
        "tag": [[3]] * N,
        "tag_weight": [[0.1 + value] for value in CLICK.tolist()],
    }
    leaks: dict[str, Any] = {
        "number": {"kind": "id"},
        "inverted": {"kind": "id"},
        "text": {"kind": "id"},
        "hashed": {"kind": "id", "column": "text", "hash": 50},
        "seconds": {"kind": "numeric"},
        "dwell": {"kind": "bucketized", "quantiles": 10},
        "far": {"kind": "numeric", "scale": "standard"},
        "tags": {"kind": "multi_id"},
        "some": {"kind": "multi_id"},
        "null": {"kind": "id"},
        "order": {"kind": "id", "hash": 5_000},
        "rare": {"kind": "id", "column": "order", "min_count": 5},
        "stay": {"kind": "numeric", "missing": -1},
        "noisy": {"kind": "id"},
        "like": {"kind": "id"},
        "not_like": {"kind": "id"},
        "found": {"kind": "lookup", "map": "map", "key": "key"},
        "crossed": {"kind": "cross", "features": ["item", "text"], "hash": 10_000},
        "bought": {"kind": "id"},
        "shown_click": {"kind": "id", "side": "candidate"},
        "pair": {"kind": "numeric", "width": 2},
        "wide": {"kind": "numeric", "width": 41},
        "tag": {"kind": "multi_id", "weights": "tag_weight", "pool": "sum"},
    }
    log = opened(prepared, columns, {**leaks, "buy": {"kind": "id", "feedback": True}})
    assert named(log) == sorted(leaks)
    warnings = {warning.split("'")[1]: warning for warning in log.warnings}
    assert warnings["number"] == (
        "feature 'number' alone predicts the label of its own row (AUC 1.000 on "
        f"{int((log.splits == 0).sum()):,} training rows), like a value that is available only after the event; "
        "if it is such a value, set feedback: true, which restricts it to histories, or remove the feature"
    )
    for name in ("seconds", "tags", "found"):  # of kinds that take no feedback
        assert warnings[name].endswith(
            "if it is such a value, remove the feature, or make it one of kind id or bucketized with feedback: true, "
            "which restricts it to histories"
        )
    assert "feature 'hashed' (column 'text') alone" in warnings["hashed"]
    assert "feature 'like' has a value that occurs with the label of its own row (" in warnings["like"]
    assert "feature 'bought' alone predicts the feedback 'buy' of its own row (AUC 1.000" in warnings["bought"]


def test_honest_features_are_not(prepared: Callable[..., Log]) -> None:
    position = random.integers(0, 20, N)
    columns: dict[str, Any] = {
        "rate": np.linspace(-3, 3, 60)[ITEM],
        "chance": LOGIT,
        "place": position,
        "constant": ["home"] * N,
        "row": np.arange(N),
        "tags": [[int(item) % 7, int(item)] for item in ITEM],
    }
    features = {
        "rate": {"kind": "numeric"},
        "chance": {"kind": "numeric", "scale": "standard"},
        "place": {"kind": "id"},
        "constant": {"kind": "id"},
        "row": {"kind": "id"},
        "hour": {"kind": "calendar"},
        "tags": {"kind": "multi_id"},
        "both": {"kind": "cross", "features": ["user", "item"], "hash": 10_000},
        "buy": {"kind": "id", "feedback": True},
        "click": {"kind": "id", "feedback": True},
    }
    histories = {"seen": {"features": ["item", "buy", "click"], "max_length": 5}}
    assert opened(prepared, columns, features, histories=histories).warnings == []


def test_few_rows_give_no_warning(prepared: Callable[..., Log]) -> None:
    few = pa.table({name: values[:200] for name, values in {**BASE, "again": CLICK}.items()})
    schema = {**SCHEMA, "features": {**IDS, "again": {"kind": "id"}}}
    assert prepared(few, schema).warnings == []


@pytest.mark.parametrize("feature", [{"kind": "id"}, {"kind": "bucketized", "edges": [1]}], ids=str)
def test_a_copy_in_the_table_of_users(prepared: Callable[..., Log], feature: dict[str, Any]) -> None:
    label = (USER % 2).astype(int)
    users = pa.table({"user": np.arange(150), "churned": np.arange(150) % 2})
    log = pa.table({**BASE, "click": label})
    prepared_log = prepared(log, {**SCHEMA, "features": {**IDS, "churned": {**feature, "side": "user"}}}, users=users)
    assert named(prepared_log) == ["churned"]


def test_lists_that_rows_bring(prepared: Callable[..., Log]) -> None:
    """The event itself at the end of its own history tells whether it was clicked."""
    seen_items = [[1, 2, 58 + value] for value in CLICK.tolist()]
    columns = {"past": seen_items, "old": [[1, int(value)] for value in USER % 60]}
    for column, expected in (("past", ["seen.item"]), ("old", [])):
        histories = {"seen": {"features": ["item"], "columns": {"item": column}}}
        assert named(opened(prepared, columns, {}, histories=histories)) == expected


@pytest.mark.parametrize(
    ("where", "features", "warned"),
    [
        ({"copy": 1}, {}, True),
        ({"copy": 0}, {}, True),
        ({"word": ["no", "perhaps"]}, {}, True),
        ({"score": {"at_least": 0.5}}, {}, True),
        ({"like": 1}, {}, True),
        ({"copy": 1, "click": 1}, {}, True),
        ({"copy": 1, "place": 1}, {}, True),
        ({"place": 1}, {}, False),
        ({"click": 1}, {}, False),
        ({"copy": 1}, {"copy": {"kind": "id", "feedback": True}}, False),
        ({"item": [58, 59]}, {}, False),
    ],
)
def test_filters(prepared: Callable[..., Log], where: dict[str, Any], features: dict[str, Any], warned: bool) -> None:
    columns = {
        "copy": CLICK,
        "like": LIKE,
        "word": np.where(CLICK, "yes", np.where(USER % 2, "no", "perhaps")),
        "score": CLICK * 0.6,
        "place": USER % 3,
    }
    log = opened(prepared, columns, features, histories={"past": {"features": ["item"], "where": where}})
    assert named(log) == (["past"] if warned else [])
    if warned:
        column = next(iter(where))
        assert f"history 'past': its filter on column {column!r} " in log.warnings[0]
        assert "add a feature of it with feedback: true, so that the filter waits" in log.warnings[0]


@pytest.mark.parametrize("delay", [{"available_after": "59m"}, {"available_at": "soon"}])
@pytest.mark.parametrize("read", ["of", "where", "nothing"])
def test_feedback_that_copies_the_label_and_is_available_before_it(
    prepared: Callable[..., Log], delay: dict[str, Any], read: str
) -> None:
    feature = {"kind": "id", "feedback": True, **delay}
    history: dict[str, Any] = {"features": ["item", "copy"]} if read == "of" else {"features": ["item"]}
    if read == "where":
        if "available_at" in delay:  # such a filter is refused
            return
        history["where"] = {"copy": 1}
    columns = {"copy": CLICK, "soon": BASE["t"] + 60}
    log = opened(prepared, columns, {"copy": feature}, histories={"past": history})
    assert named(log) == ([] if read == "nothing" else ["copy"])
    later = {**feature, "available_after": "1h"} if "available_after" in delay else feature
    columns["soon"] = BASE["t"] + 3_600
    assert named(opened(prepared, columns, {"copy": later}, histories={"past": history})) == []


def test_counts_of_a_filter_by_hand() -> None:
    assert filter_warning("h", "c", np.array([[900, 0], [0, 100]])).startswith("history 'h': its filter on column 'c'")
    assert filter_warning("h", "c", np.array([[99, 0], [0, 99]])) == ""  # too few rows
    assert filter_warning("h", "c", np.array([[800, 10], [100, 90]])) == ""  # AUC .89
    assert "has a value" in filter_warning("h", "c", np.array([[9_000, 900], [1, 99]]))
    assert filter_warning("h", "c", np.array([[9_000, 900], [20, 99]])) == ""  # 83 % of such rows
    assert filter_warning("h", "c", np.array([[100, 900], [1, 99]])) == ""  # no more than the rest
    assert (
        LabelCopy(0.953, 0, 1_000).phrase("it") == "alone predicts it of its own row (AUC 0.953 on 1,000 training rows)"
    )
