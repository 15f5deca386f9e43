"""The data section of a config."""

from __future__ import annotations

from typing import Any

import pytest

from longrec.config import parse
from longrec.data.settings import DataConfig
from longrec.errors import ConfigError


def test_short_forms_of_a_source() -> None:
    one = parse(DataConfig, {"log": "a.parquet"}, "job.yaml")
    assert one.log.files == ("a.parquet",)
    assert str(one.log) == "a.parquet"
    assert one.split.by == "time"
    many = parse(DataConfig, {"log": ["a.csv", "b.csv"], "items": {"query": "SELECT 1"}}, "job.yaml")
    assert many.log.files == ("a.csv", "b.csv")
    assert many.items is not None
    assert str(many.items) == "query 'SELECT 1'"


def test_timestamps_may_be_plain_numbers() -> None:
    config = parse(DataConfig, {"log": "a", "split": {"valid_from": 40, "test_from": 50}}, "job.yaml")
    assert (config.split.valid_from, config.split.test_from) == ("40", "50")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "log: is required"),
        ({"log": 5}, "log: must be a mapping, got 5"),
        ({"log": []}, "log.files: tuple should have at least 1 item"),
        ({"log": {"files": ["a"], "query": "b"}}, "log: needs exactly one of files, splits, query"),
        ({"log": {}}, "log: needs exactly one of files, splits, query"),
        (
            {"log": {"files": "a", "as_of": "t"}},
            "config: log.as_of: as_of is for users and items; the schema's time is the timestamp of an event",
        ),
        ({"log": "a", "items": {"files": "b", "as_off": "t"}}, "items.as_off: unknown key; did you mean 'as_of'?"),
        ({"log": "a", "item": "b"}, "item: unknown key; did you mean 'items'?"),
        ({"log": "a", "threads": 0}, "threads: input should be greater than or equal to 1, got 0"),
        ({"log": "a", "memory": "lots"}, "memory: must be a size such as '500MB' or '2GB', got 'lots'"),
        ({"log": "a", "split": {"by": "tme"}}, "split.by: must be one of 'time', 'user', 'leave_one_out', 'column'"),
        ({"log": "a", "split": {"by": "user", "test_days": 1}}, "split: a split by user takes no test_days"),
        ({"log": "a", "split": {"by": "leave_one_out", "test": 0.1}}, "split: a split by leave_one_out takes no test"),
        ({"log": "a", "split": {"valid": 0.5, "test": 0.5}}, "split: valid 0.5 and test 0.5 leave nothing to train on"),
        ({"log": "a", "split": {"by": "column"}}, "split: a split by column needs column"),
        ({"log": "a", "split": {"column": "x"}}, "split: a split by time takes no column"),
        ({"log": "a", "split": {"test": 0.1, "test_days": 1}}, "split: shares, days and timestamps cannot be mixed"),
        ({"log": "a", "split": {"valid_from": "2026-01-01"}}, "split: set the start of test too"),
        ({"log": "a", "split": {"valid_days": 1}}, "split: set the start of test too"),
        ({"log": "a", "split": {"test": 1.5}}, "split.test: input should be less than 1, got 1.5"),
    ],
)
def test_faults(content: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(DataConfig, content, "job.yaml")
    assert any(fault.startswith(says) for fault in raised.value.faults), raised.value.faults
