"""Filters, splits, lists and tables that do not fit raise a DataError and leave no file behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_logs import START, Case, N, feature, table, under, with_one

THEN = np.datetime64("2020-09-13T12:26:40.000001")
WRONG: dict[str, tuple[Callable[[Path], Case], str]] = {
    # ---- filters and splits
    "a filter of the wrong type": (
        under({"histories": {"all": {"features": ["item"], "where": {"size": "big"}}}}),
        r"column 'size', filter of all: values of type .*; expected values that can equal 'big'",
    ),
    "a filter by amount on text": (
        under({"histories": {"all": {"features": ["item"], "where": {"page": {"at_least": 1}}}}}),
        r"column 'page', filter of all: text, for example 'home'; expected numbers",
    ),
    "a bad split value": (
        under(data={"split": {"by": "column", "column": "part"}}, part=with_one(["train"] * N, "tset")),
        r"column 'part': the split 'tset' \(did you mean 'test'\?\); expected train, valid or test",
    ),
    "a null split value": (
        under(data={"split": {"by": "column", "column": "part"}}, part=with_one(["train"] * N, None)),
        r"column 'part': the split None; expected train, valid or test",
    ),
    "a split column of numbers": (
        under(data={"split": {"by": "column", "column": "size"}}),
        r"column 'size': the split [012]; expected train, valid or test",
    ),
    "a split column of lists": (
        under(data={"split": {"by": "column", "column": "part"}}, part=[["train"]] * N),
        r"column 'part': values of type list<.*>; expected train, valid or test",
    ),
    "a split by days in steps": (
        under({"time": {"column": "t", "unit": "step"}}, {"split": {"test_days": 1}}),
        r"a split by days; expected shares or timestamps",
    ),
    "a split at no moment": (
        under(data={"split": {"test_from": "soon"}}),
        r"the timestamp 'soon'; expected an ISO date or time",
    ),
    # ---- several values
    "separated numbers": (
        feature({"kind": "multi_id", "separator": "|"}, x=[1] * N),
        r"column 'x': values of type int64; expected a list column, or text with a separator",
    ),
    "text without a separator": (
        feature({"kind": "multi_id"}, x=["a|b"] * N),
        r"column 'x': text; expected a list column\n  Or name the separator",
    ),
    "lists of floats": (feature({"kind": "multi_id"}, x=[[1.5]] * N), r"column 'x': ids stored as floats"),
    "weights of other lengths": (
        feature({"kind": "multi_id", "weights": "w"}, x=[[1, 2]] * N, w=[[1.0]] * N),
        r"column 'x': weights: lists of other lengths than the values",
    ),
    "weights that are null": (
        feature({"kind": "multi_id", "weights": "w"}, x=[[1]] * N, w=[[None]] * (N - 1) + [[1.0]]),
        r"column 'x': weights: \d+ null",
    ),
    # ---- users and items
    "an item twice": (
        table("items", {"item": [1, 2, 1], "x": [1, 2, 3]}),
        r"table\.parquet: column 'item': 1 is in 2 rows; expected one row per key\n  Remove the copies",
    ),
    "two versions of a moment": (
        table("items", {"item": [1, 2, 1], "x": [1, 2, 3], "since": [START] * 3}, as_of="since"),
        r"table\.parquet: column 'since': 1 has 2 rows as of 16\d+; expected one row per key and timestamp\n  Remove",
    ),
    "two versions of a millisecond": (
        table("items", {"item": [1, 1], "x": [1, 2], "since": [THEN, THEN + np.timedelta64(1, "us")]}, as_of="since"),
        r"table\.parquet: column 'since': 1 has 2 rows as of 2020",
    ),
    "a version without a moment": (
        table("users", {"user": [1, 2], "x": [1, 2], "since": [START, None]}, as_of="since"),
        r"column 'since': 1 null value, first in row 2; expected a time in every row of a table with as_of",
    ),
    "versions of no column": (
        table("items", {"item": [1], "x": [1], "since": [START]}, as_of="sinc"),
        r"table\.parquet: no column 'sinc' \(as_of\), did you mean 'since'\?",
    ),
    "versions at no moments": (
        table("items", {"item": [1], "x": [1], "since": ["soon"]}, as_of="since"),
        r"table\.parquet: column 'since': the text 'soon'; expected ISO 8601",
    ),
    "versions in another unit": (
        table("items", {"item": [1], "x": [1], "since": [START * 1_000]}, as_of="since", unit="s"),
        r"table\.parquet: column 'since': values up to \d+, which read as ms; expected s, as set in the schema",
    ),
    "keys of another type": (
        table("items", {"item": ["1"], "x": [1]}),
        r"table\.parquet: column 'item': VARCHAR keys; expected BIGINT, as in the log",
    ),
    "float keys": (table("users", {"user": [1.5], "x": [1]}), r"table\.parquet: column 'user': ids stored as floats"),
    "no key column": (
        table("items", {"itm": [1], "x": [1]}),
        r"table\.parquet: no column 'item' \(key of the item table\), did you mean 'itm'\?",
    ),
    "a column nobody has": (table("items", {"item": [1]}), r"no column 'x' \(feature x, table item\)"),
    "text in a table's numbers": (
        table("items", {"item": [1, 2], "x": ["1", "a"]}, {"kind": "numeric"}),
        r"table\.parquet: column 'x': text, first 'a' in row 2; expected numbers",
    ),
    "an attribute that varies": (
        feature({"kind": "id", "side": "item"}, x=list(range(N))),
        r"column 'x': several values, or a value and null, for the item \d; expected .*\n  Set side: context",
    ),
    "an attribute filled in later": (
        feature({"kind": "id", "side": "user"}, x=[None] * 20 + [1] * 20),
        r"column 'x': several values, or a value and null, for the user \d",
    ),
    "a null in a vocabulary's place": (
        feature({"kind": "id", "vocab": [1, "a"]}, x=[1] * N),
        r"vocabulary of feature 'x': values of the types int, str",
    ),
    "a vocabulary of another type": (
        feature({"kind": "id", "vocab": ["a"]}, x=[1] * N),
        r"feature 'x': the value 'a'; expected whole numbers in plain digits, since the column holds integers",
    ),
    "no vocabulary file": (
        feature({"kind": "id", "vocab": "gone.csv"}, x=[1] * N),
        r"vocabulary of feature 'x': gone\.csv: no such file",
    ),
    "nothing to cut into buckets": (
        feature({"kind": "bucketized", "quantiles": 3}, x=pa.array([None] * N, pa.float64())),
        r"feature 'x': no value in the training window",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_with_its_message(name: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    write, says = WRONG[name]
    refused(tmp_path, *write(tmp_path), says)
