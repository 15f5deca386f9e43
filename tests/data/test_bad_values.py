"""An id, time, number or label that cannot be used raises a DataError and leaves no file behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_logs import START, Case, N, csv, feature, late_text, parquet_log, under, with_one

WRONG: dict[str, tuple[Callable[[Path], Case], str]] = {
    # ---- ids
    "float ids above 2**53": (
        parquet_log(user=[float(2**53 + 2)] * N),
        r"column 'user': ids stored as floats \(DOUBLE\), the largest 9007199254740994; expected 64-bit .*\n  Write",
    ),
    "fractions as ids": (
        parquet_log(item=with_one([1.0] * N, 2.5)),
        r"column 'item': ids stored as floats \(DOUBLE\), such as 2\.5 in row 18",
    ),
    "float feature ids": (feature({"kind": "id"}, x=[1.5] * N), r"column 'x': ids stored as floats"),
    "ids beyond 64 bits": (
        parquet_log(user=pa.array([2**63 + 5] * N, pa.uint64())),
        r"column 'user': the id 9223372036854775813, which needs more than 64 bits",
    ),
    "feature ids beyond 64 bits": (
        feature({"kind": "id"}, x=pa.array([2**63] * N, pa.uint64())),
        r"column 'x': integers above 2\*\*63 - 1",
    ),
    "dates as ids": (
        parquet_log(item=pa.array(np.arange(N).astype("datetime64[D]"))),
        r"column 'item': ids of type DATE; expected 64-bit",
    ),
    "lists as ids": (
        feature({"kind": "id"}, x=[[1]] * N),
        r"column 'x': ids of type BIGINT\[\].*\n  Declare the feature multi_id",
    ),
    # ---- nulls
    "a null user": (
        parquet_log(user=with_one([1] * N, None)),
        r"column 'user': 1 null value, first in row 18; expected a user in every event\n  Drop or fill these rows",
    ),
    "null users": (parquet_log(user=[None] * 2 + ["a"] * (N - 2)), r"column 'user': 2 null values, first in row 1"),
    "a null time": (
        parquet_log(t=with_one(range(START, START + N), None)),
        r"column 't': 1 null value, first in row 18; expected a time in every event",
    ),
    # ---- times
    "times in mixed units": (
        parquet_log(t=with_one(range(START, START + N), START * 1000)),
        r"column 't': times in mixed units: 1600000000 reads as s, 1600000000000 as ms; expected one unit",
    ),
    "a zero among times": (
        parquet_log(t=with_one(range(START, START + N), 0)),
        r"times in mixed units: 0 reads as near 1970, \d+ as s",
    ),
    "times of another unit": (
        under({"time": {"column": "t", "unit": "ms"}}),
        r"column 't': values up to \d+, which read as s; expected ms, as set in the schema\n  Correct time\.unit",
    ),
    "text that is no time": (
        parquet_log(t=with_one(["2026-01-01"] * N, "soon")),
        r"column 't': the text 'soon'; expected ISO 8601 such as 2026-01-31T12:00:00Z",
    ),
    "an infinite time": (
        parquet_log(t=with_one(START + np.arange(N) / 2, float("inf"))),
        r"column 't': 1 null or not finite value, first in row 18; expected a time in every event",
    ),
    "a time that is not a number": (
        parquet_log(t=with_one(START + np.arange(N) / 2, float("nan"))),
        r"column 't': 1 null or not finite value, first in row 18",
    ),
    "times of no kind": (
        parquet_log(t=[[1]] * N),
        r"column 't': times of type BIGINT\[\]; expected whole numbers, timestamps or ISO text",
    ),
    "dates for steps": (
        under({"time": {"column": "t", "unit": "step"}}, t=pa.array([START] * N, pa.timestamp("s"))),
        r"column 't': times of type TIMESTAMP.*; expected whole numbers for unit: step",
    ),
    "amendments in another unit": (
        feature(
            {"kind": "id", "feedback": True, "available_at": "fixed"},
            x=[1] * N,
            fixed=with_one([START] * N, START * 1000),
        ),
        r"column 'fixed': times in mixed units",
    ),
    # ---- numbers
    "text in a dense column": (
        parquet_log(price=with_one(["1.5"] * N, "cheap")),
        r"column 'price': text, first 'cheap' in row 18; expected numbers\n  Clean the column",
    ),
    "text in a bucket column": (
        parquet_log(size=with_one(["1"] * N, "big")),
        r"column 'size': text, first 'big' in row 18; expected numbers",
    ),
    "numbers stored as text": (
        parquet_log(price=["1"] * N),
        r"column 'price': numbers stored as text; expected numbers",
    ),
    "text in the label": (
        parquet_log(click=with_one(["1"] * N, "yes")),
        r"column 'click': text, first 'yes' in row 18; expected numbers",
    ),
    "text in a number column of CSV": (
        csv(price=with_one(["1.5"] * N, "cheap")),
        r"log\.csv: column 'price': text, first 'cheap' in row 18; expected numbers",
    ),
    "late text in a dense column": (late_text("price"), r"'price': text, first 'oops' in row 5996"),
    "late text in the time": (late_text("t"), r"'t': the text 'oops' among numbers"),
    "late text in the label": (late_text("click"), r"'click': text, first 'oops' in row 5996"),
    "an infinite number": (
        parquet_log(price=with_one([1.0] * N, float("inf"))),
        r"column 'price': an infinite value at row \d+; expected finite numbers or null",
    ),
    "dates as numbers": (
        parquet_log(price=pa.array(np.arange(N).astype("datetime64[D]"))),
        r"column 'price': values of type DATE; expected numbers\n  Convert it with a query",
    ),
    "lists as numbers": (
        parquet_log(price=[[1.0]] * N),
        r"column 'price': values of type DOUBLE\[\]; expected numbers\n  Set width",
    ),
    # ---- labels
    "a label of one class": (
        parquet_log(click=[0] * N),
        r"column 'click': every training label is 0; expected both classes\n  Check the condition of the label",
    ),
    "no label at all": (
        parquet_log(click=pa.array([None] * N, pa.int64())),
        r"column 'click': no training row has a label; expected labeled rows before the split cutoff",
    ),
    "a label column of nothing": (parquet_log(click=pa.nulls(N)), r"column 'click': no training row has a label"),
    "a label that is not 0 or 1": (
        parquet_log(click=with_one([0, 1] * (N // 2), 5)),
        r"column 'click': the label 5; expected 0, 1 or null\n  Set label: \{column: \.\.\., at_least",
    ),
    "a label that equals nothing": (
        under({"label": {"column": "click", "equals": "yes"}}),
        r"column 'click': values of type int64; expected values that can equal 'yes'",
    ),
    "everything on the test side": (parquet_log(t=[START] * N), r"column 'click': no training row has a label"),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_with_its_message(name: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    write, says = WRONG[name]
    refused(tmp_path, *write(tmp_path), says)
