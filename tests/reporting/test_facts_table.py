"""Facts of a log as text tables."""

from __future__ import annotations

from typing import Any

import pytest

from longrec.reporting.facts_table import build_features, facts_text


def split(rows: int, **changes: Any) -> dict[str, Any]:
    span = {"first": "2026-01-01T00:00:00.000Z", "last": "2026-01-30T12:30:00.000Z"}
    counts = {"rows": rows, "positives": rows // 4, "users": rows // 10, "items": rows // 20}
    return {**counts, "new_users": 0.12345, "new_items": 0.0001, **span, **changes}


def feature(**changes: Any) -> dict[str, Any]:
    base = {"kind": "id", "side": "context", "nulls": {"train": 0.0}, "distinct": 3, "top": "home", "top_share": 0.5}
    return {**base, "unseen": {"train": 0.0, "valid": 0.1, "test": 0.2}, "low": None, "high": None, **changes}


@pytest.fixture
def facts() -> dict[str, Any]:
    return {
        "events": 1_000_000,
        "users": 100_000,
        "items": 5_000,
        "first": "2026-01-01T00:00:00.000Z",
        "last": "2026-01-30T12:30:00.000Z",
        "tied": 0.25,
        "repeated": 17,
        "splits": {"train": split(900_000), "valid": split(0), "test": split(100_000)},
        "histories": {
            "seen": {
                "max_length": 50,
                "mean": 12.34,
                "p10": 0,
                "p50": 8,
                "p90": 50,
                "full": 0.11,
                "empty": {"train": 0.05, "test": 0.0},
            }
        },
        "features": {
            "page": feature(),
            "price": feature(kind="numeric", top=1.0, top_share=0.0001, low=0.5, high=900.0, unseen={}),
            "cross": feature(kind="cross", top=None, unseen={}),
        },
        "warnings": ["feature page: odd"],
    }


def test_tables_of_a_log(facts: dict[str, Any]) -> None:
    text = facts_text(facts)
    assert text.startswith("1,000,000 events, 100,000 users, 5,000 items, 2026-01-01 00:00 to 2026-01-30 12:30\n25.0%")
    assert "\nvalid" not in text  # it has no samples
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["test"][1:7] == ["100,000", "25.0%", "10,000", "5,000", "12.3%", "<0.1%"]
    assert rows["seen"][1:] == ["12.3", "0", "8", "50", "11.0%", "(50)", "5.0%", "0%"]
    assert rows["page"][1:] == ["id", "context", "0%", "3", "20.0%", "home", "(50.0%)"]
    assert text.splitlines()[-1] == "warning: feature page: odd"
    features = {row[0]: row[-1] for row in build_features(facts)[1]}
    assert features == {"page": "home (50.0%)", "price": "0.5 to 900", "cross": "hashed (50.0%)"}


def test_no_line_is_wider_than_100_columns(facts: dict[str, Any]) -> None:
    big = {"rows": 999_999_999, "positives": 5, "users": 99_999_999, "items": 99_999_999}
    facts["splits"] = {name: split(1) | big for name in ("train", "valid", "test")}
    long = feature(kind="bucketized", side="candidate", distinct=9_999_999, top="v" * 99, nulls={"train": 0.9999})
    facts["features"] = {"f" * 80: long}
    facts["histories"]["seen"]["empty"] = {"train": 0.05, "valid": 0.0, "test": 0.0}
    facts["histories"]["h" * 80] = facts["histories"]["seen"]
    assert max(map(len, facts_text(facts).splitlines())) <= 100


def test_a_log_without_timestamps(facts: dict[str, Any]) -> None:
    facts |= {"first": None, "last": None, "tied": None, "repeated": None, "histories": {}}
    for one in facts["splits"].values():
        one |= {"first": None, "last": None}
    text = facts_text(facts)
    assert text.splitlines()[0] == "1,000,000 events, 100,000 users, 5,000 items"
    assert "from" not in text
    assert "history" not in text


def test_owners_that_rows_do_not_share_are_left_out(facts: dict[str, Any]) -> None:
    text = facts_text(facts | {"items": 0, "users": facts["events"]})
    assert text.startswith("1,000,000 events, 2026-01-01")
    assert "users" not in text
    assert "items" not in text
