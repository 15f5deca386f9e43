"""Whatever is wrong with the data is told by a DataError, in four parts, and leaves no file behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from longrec.config import parse
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.errors import DataError
from longrec.features.schema import Schema

N, START = 40, 1_600_000_000
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "price": {"kind": "dense"},
        "size": {"kind": "bucket", "edges": [1, 2]},
        "page": {"kind": "id"},
        "click": {"kind": "id", "feedback": True},
    },
    "histories": {"all": {"of": ["item", "click"], "last": 5}},
}
Case = tuple[dict[str, Any], dict[str, Any]]
"""The data section and what is replaced in the schema."""


def log(**columns: Any) -> pa.Table:
    random = np.random.default_rng(0)
    base: dict[str, Any] = {
        "user": random.integers(0, 4, N),
        "item": random.integers(0, 6, N),
        "t": START + np.arange(N) * 60,
        "click": np.arange(N) % 2,
        "price": np.arange(N) / 2,
        "size": np.arange(N) % 3,
        "page": ["home"] * N,
    }
    return pa.table({name: values for name, values in (base | columns).items() if values is not None})


def with_one(values: Any, odd: Any, at: int = 17) -> list[Any]:
    values = list(values)
    values[at] = odd
    return values


def given(**columns: Any) -> Callable[[Path], Case]:
    """A Parquet log with these columns instead."""

    def write(folder: Path) -> Case:
        pq.write_table(log(**columns), folder / "log.parquet")
        return {"log": str(folder / "log.parquet")}, {}

    return write


def under(schema: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **columns: Any) -> Callable[[Path], Case]:
    """A Parquet log under another schema or data section."""

    def write(folder: Path) -> Case:
        made, _ = given(**columns)(folder)
        return made | (data or {}), schema or {}

    return write


def feature(definition: dict[str, Any], **columns: Any) -> Callable[[Path], Case]:
    """A Parquet log under a schema with one feature more, ``x``."""
    return under({"features": {**SCHEMA["features"], "x": definition}}, **columns)


def csv(text: str | None = None, name: str = "log.csv", **columns: Any) -> Callable[[Path], Case]:
    """A CSV log: the base with other columns, or this text."""

    def write(folder: Path) -> Case:
        path = folder / name
        if text is None:
            pacsv.write_csv(log(**columns), path)
        else:
            path.write_text(text, encoding="utf-8")
        return {"log": str(path)}, {}

    return write


def late_text(column: str) -> Callable[[Path], Case]:
    """A CSV log whose one bad value stands far beyond what a reader looks at to guess types."""

    def write(folder: Path) -> Case:
        header = "user,item,t,click,price,size,page\n"
        lines = [f"{n % 9},{n % 7},{START + n},{n % 2},{n % 5}.5,{n % 3},home\n" for n in range(120_000)]
        words = dict(zip(header.strip().split(","), lines[-5].strip().split(","))) | {column: "oops"}
        lines[-5] = ",".join(words.values()) + "\n"
        (folder / "log.csv").write_text(header + "".join(lines))
        return {"log": str(folder / "log.csv")}, {}

    return write


def raw(name: str, content: bytes) -> Callable[[Path], Case]:
    def write(folder: Path) -> Case:
        (folder / name).write_bytes(content)
        return {"log": str(folder / name)}, {}

    return write


def cut(name: str, keep: float, column: str | None = None) -> Callable[[Path], Case]:
    """A file that ends too early; or with bytes of garbage in the middle."""

    def write(folder: Path) -> Case:
        path = folder / name
        if path.suffix == ".parquet":
            pq.write_table(log(), path)
        else:
            feather.write_feather(log(), str(path), compression="uncompressed")
        whole = path.read_bytes()
        middle = whole[:60] + bytes(200) + whole[260:]
        path.write_bytes(whole[: int(len(whole) * keep)] if keep < 1 else middle)
        return {"log": str(path)}, {}

    return write


def named(source: Any) -> Callable[[Path], Case]:
    def write(folder: Path) -> Case:
        given()(folder)
        at = [str(folder / name) for name in source] if isinstance(source, list) else source
        return {"log": {"query": at["query"].format(folder=folder)} if isinstance(at, dict) else at}, {}

    return write


def table(role: str, columns: dict[str, Any], x: dict[str, Any] | None = None) -> Callable[[Path], Case]:
    """The base log with a table of users or items, and a feature ``x`` of it."""

    def write(folder: Path) -> Case:
        data, _ = given()(folder)
        pq.write_table(pa.table(columns), folder / "table.parquet")
        extra = {"x": {"kind": "id", "table": role.removesuffix("s"), **(x or {})}}
        return data | {role: {"files": [str(folder / "table.parquet")]}}, {"features": {**SCHEMA["features"], **extra}}

    return write


BIG = 2**53 + 2
WRONG: dict[str, tuple[Callable[[Path], Case], str]] = {
    # ---- files
    "no such file": (named(["gone.parquet"]), r"gone\.parquet: no such file; expected a Parquet, CSV or Arrow file"),
    "pattern without match": (named(["*.csv"]), r"\*\.csv: no such file; expected .*pattern that matches some"),
    "truncated Parquet": (cut("log.parquet", 0.6), r"log\.parquet: cannot be read: .*; expected a complete Parquet"),
    "Parquet without an end": (cut("log.parquet", 0.1), r"log\.parquet: cannot be read: .*; expected a complete"),
    "Parquet with garbage": (cut("log.parquet", 1.0), r"log\.parquet: cannot be read: .*; expected a complete Parquet"),
    "not Parquet at all": (raw("log.parquet", b"user,item\n1,2\n" * 9), r"cannot be read: .*[Nn]o magic bytes"),
    "an empty Parquet file": (raw("log.parquet", b""), r"log\.parquet: cannot be read: .*; expected a complete Parquet"),
    "truncated Arrow": (cut("log.arrow", 0.6), r"log\.arrow: cannot be read: .*; expected a complete .*Arrow file"),
    "not Arrow at all": (raw("log.arrow", b"nothing of the kind"), r"log\.arrow: cannot be read: .*Arrow"),
    "another kind of file": (raw("log.xlsx", b"x"), r"log\.xlsx: a file of the kind '\.xlsx'; expected \.parquet, \.csv"),
    "two kinds of files": (named(["log.parquet", "../x.csv"]), r"x\.csv: no such file"),
    "an empty CSV file": (raw("log.csv", b""), r"log\.csv: (no rows|no column|cannot be read)"),
    "header-only CSV": (csv("user,item,t,click,price,size,page\n"), r"log\.csv: no rows; expected at least one event"),
    "an empty log": (given(**{n: pa.array([], t) for n, t in zip(log().column_names, log().schema.types)}), r"no rows; expected at least"),
    "CSV that is none": (raw("log.csv", bytes(range(256)) * 20), r"log\.csv: "),
    "CSV with a short row": (csv("user,item,t,click,price,size,page\n" + "1,2,3,0,1,1,a\n" * 30 + "1,2\n"), r"log\.csv: "),
    "a bad query": (named({"query": "SELECT nothing FROM nowhere"}), r"^query 'SELECT nothing FROM nowhere': cannot be read: .*nowhere.*\n  Write the file again, or mend the query"),
    "a query of two statements": (named({"query": "SELECT 1; SELECT 2"}), r"cannot be read: .*syntax error"),
    "a query of other columns": (named({"query": "SELECT 1 AS user"}), r"no column 'click' \(the label\).*the file has user"),
    # ---- columns
    "a missing column": (given(click=None, clic=[0] * N), r"no column 'click' \(the label\), did you mean 'clic'\?; expected columns of the schema; the file has user, item"),
    "several missing columns": (given(click=None, page=None), r"no column 'click' \(the label\).*no column 'page' \(feature page\)"),
    "the user's column is missing": (given(user=None, user_id=[1] * N), r"no column 'user' \(the user\), did you mean 'user_id'\?"),
    "a missing history filter": (under({"histories": {"all": {"of": ["item"], "where": {"knd": 1}}}}, kind=[1] * N), r"no column 'knd' \(history all\), did you mean 'kind'\?"),
    "a missing split column": (under(data={"split": {"by": "column", "column": "pat"}}, part=["train"] * N), r"no column 'pat' \(the split\), did you mean 'part'\?"),
    "a missing moment": (feature({"kind": "id", "feedback": True, "known_at": "fixd"}, x=[1] * N, fixed=[1] * N), r"no column 'fixd' \(known_at of x\)"),
    # ---- ids
    "float ids above 2**53": (given(user=[float(BIG)] * N), r"column 'user': ids stored as floats \(DOUBLE\), the largest 9007199254740994; expected 64-bit integers or strings.*\n  Write the column as integers"),
    "float ids with nulls": (given(item=with_one([1.0] * N, None)), r"column 'item': ids stored as floats"),
    "float feature ids": (feature({"kind": "id"}, x=[1.5] * N), r"column 'x': ids stored as floats"),
    "ids beyond 64 bits": (given(user=pa.array([2**63 + 5] * N, pa.uint64())), r"column 'user': the id 9223372036854775813, which needs more than 64 bits"),
    "feature ids beyond 64 bits": (feature({"kind": "id"}, x=pa.array([2**63] * N, pa.uint64())), r"column 'x': integers above 2\*\*63 - 1"),
    "dates as ids": (given(item=pa.array(np.arange(N).astype("datetime64[D]"))), r"column 'item': ids of type DATE; expected 64-bit"),
    "lists as ids": (feature({"kind": "id"}, x=[[1]] * N), r"column 'x': ids of type list"),
    # ---- nulls
    "a null user": (given(user=with_one([1] * N, None)), r"column 'user': 1 null value, first in row 18; expected a user in every event\n  Drop or fill these rows"),
    "null users": (given(user=[None] * 2 + ["a"] * (N - 2)), r"column 'user': 2 null values, first in row 1"),
    "a null time": (given(t=with_one(range(START, START + N), None)), r"column 't': 1 null value, first in row 18; expected a time in every event"),
    # ---- times
    "times in mixed units": (given(t=with_one(range(START, START + N), START * 1000)), r"column 't': times in mixed units: 1600000000 reads as s, 1600000000000 as ms; expected one unit in the whole column"),
    "a zero among times": (given(t=with_one(range(START, START + N), 0)), r"times in mixed units: 0 reads as near 1970, \d+ as s"),
    "times of another unit": (under({"time": {"column": "t", "unit": "ms"}}), r"column 't': values up to \d+, which read as s; expected ms, as the schema says\n  Correct time\.unit"),
    "text that is no time": (given(t=with_one(["2026-01-01"] * N, "soon")), r"column 't': the text 'soon'; expected a moment such as 2026-01-31T12:00:00"),
    "an infinite time": (given(t=with_one(START + np.arange(N) / 2, float("inf"))), r"column 't': 1 null or not finite value, first in row 18; expected a time in every event"),
    "a time that is not a number": (given(t=with_one(START + np.arange(N) / 2, float("nan"))), r"column 't': 1 null or not finite value, first in row 18"),
    "an infinite amendment": (feature({"kind": "id", "feedback": True, "known_at": "fixed"}, x=[1] * N, fixed=with_one(START + np.arange(N) / 2, float("inf"))), r"column 'fixed': a time that is infinite or not a number; expected finite times"),
    "times of no kind": (given(t=[[1]] * N), r"column 't': times of type BIGINT\[\]; expected whole numbers, timestamps or ISO text"),
    "dates for steps": (under({"time": {"column": "t", "unit": "step"}}, t=pa.array([START] * N, pa.timestamp("s"))), r"column 't': times of type TIMESTAMP.*; expected whole numbers for unit: step"),
    "amendments in another unit": (feature({"kind": "id", "feedback": True, "known_at": "fixed"}, x=[1] * N, fixed=with_one([START] * N, START * 1000)), r"column 'fixed': times in mixed units"),
    # ---- numbers
    "text in a dense column": (given(price=with_one(["1.5"] * N, "cheap")), r"column 'price': text, first 'cheap' in row 18; expected numbers\n  Clean the column, or declare the feature kind id"),
    "text in a bucket column": (given(size=with_one(["1"] * N, "big")), r"column 'size': text, first 'big' in row 18; expected numbers"),
    "numbers stored as text": (given(price=["1"] * N), r"column 'price': numbers stored as text; expected numbers"),
    "text in the label": (given(click=with_one(["1"] * N, "yes")), r"column 'click': text, first 'yes' in row 18; expected numbers"),
    "text in a number column of CSV": (csv(price=with_one(["1.5"] * N, "cheap")), r"log\.csv: column 'price': text, first 'cheap' in row 18; expected numbers"),
    "late text in a dense column": (late_text("price"), r"log\.csv: cannot be read: .*oops"),
    "late text in the time": (late_text("t"), r"log\.csv: cannot be read: .*oops"),
    "late text in the label": (late_text("click"), r"log\.csv: cannot be read: .*oops"),
    "late text in an id": (late_text("user"), r"log\.csv: cannot be read: .*oops"),
    "an infinite number": (given(price=with_one([1.0] * N, float("inf"))), r"column 'price': an infinite value at row \d+; expected finite numbers or null"),
    "dates as numbers": (given(price=pa.array(np.arange(N).astype("datetime64[D]"))), r"column 'price': values of type date32\[day\]; expected numbers"),
    "lists as numbers": (given(price=[[1.0]] * N), r"column 'price': values of type list<.*>; expected numbers"),
    # ---- labels
    "a label of one class": (given(click=[1] * N), r"column 'click': every training label is 1; expected both classes\n  Look at the label's condition"),
    "no label at all": (given(click=pa.array([None] * N, pa.int64())), r"column 'click': no training row has a label; expected labelled rows before the split line"),
    "a label column of nothing": (given(click=pa.nulls(N)), r"column 'click': no training row has a label"),
    "a label that is not 0 or 1": (given(click=with_one([0, 1] * (N // 2), 5)), r"column 'click': the label 5; expected 0, 1 or null\n  Say label: \{column: \.\.\., at_least"),
    "a label that equals nothing": (under({"label": {"column": "click", "equals": "yes"}}), r"column 'click': values of type int64; expected what can equal 'yes'"),
    "everything on the test side": (given(t=[START] * N), r"column 'click': no training row has a label"),
    # ---- filters and splits
    "a filter of the wrong type": (under({"histories": {"all": {"of": ["item"], "where": {"size": "big"}}}}), r"column 'size', filter of all: values of type .*; expected what can equal 'big'"),
    "a filter by amount on text": (under({"histories": {"all": {"of": ["item"], "where": {"page": {"at_least": 1}}}}}), r"column 'page', filter of all: text, for example 'home'; expected numbers"),
    "a bad split value": (under(data={"split": {"by": "column", "column": "part"}}, part=with_one(["train"] * N, "tset")), r"column 'part': the split 'tset'; expected train, valid or test"),
    "a null split value": (under(data={"split": {"by": "column", "column": "part"}}, part=with_one(["train"] * N, None)), r"column 'part': the split None; expected train, valid or test"),
    "a split column of numbers": (under(data={"split": {"by": "column", "column": "size"}}), r"column 'size': the split [012]; expected train, valid or test"),
    "a split column of lists": (under(data={"split": {"by": "column", "column": "part"}}, part=[["train"]] * N), r"column 'part': values of type list<.*>; expected train, valid or test"),
    "a split by days in steps": (under({"time": {"column": "t", "unit": "step"}}, {"split": {"test_days": 1}}), r"a split by days; expected shares or moments"),
    "a split at no moment": (under(data={"split": {"test_from": "soon"}}), r"the moment 'soon'; expected an ISO date or time"),
    # ---- several values
    "separated numbers": (feature({"kind": "multi", "separator": "|"}, x=[1] * N), r"column 'x': values of type int64; expected a list column, or text with a separator"),
    "text without a separator": (feature({"kind": "multi"}, x=["a|b"] * N), r"column 'x': text; expected a list column\n  Or give the separator"),
    "lists of floats": (feature({"kind": "multi"}, x=[[1.5]] * N), r"column 'x': ids stored as floats"),
    "weights of other lengths": (feature({"kind": "multi", "weights": "w"}, x=[[1, 2]] * N, w=[[1.0]] * N), r"column 'x': weights: lists of other lengths than the values"),
    "weights that are null": (feature({"kind": "multi", "weights": "w"}, x=[[1]] * N, w=[[None]] * (N - 1) + [[1.0]]), r"column 'x': weights: \d+ null"),
    # ---- users and items
    "an item twice": (table("items", {"item": [1, 2, 1], "x": [1, 2, 3]}), r"table\.parquet: column 'item': 1 stands in 2 rows; expected one row a key\n  Remove the copies"),
    "keys of another type": (table("items", {"item": ["1"], "x": [1]}), r"table\.parquet: column 'item': VARCHAR keys; expected BIGINT, as in the log"),
    "float keys": (table("users", {"user": [1.0], "x": [1]}), r"table\.parquet: column 'user': ids stored as floats"),
    "no key column": (table("items", {"itm": [1], "x": [1]}), r"table\.parquet: no column 'item' \(key of the item table\), did you mean 'itm'\?"),
    "a column nobody has": (table("items", {"item": [1]}), r"no column 'x' \(feature x, table item\)"),
    "text in a table's numbers": (table("items", {"item": [1, 2], "x": ["1", "a"]}, {"kind": "dense"}), r"table\.parquet: column 'x': text, first 'a' in row 2; expected numbers"),
    "an attribute that varies": (feature({"kind": "id", "table": "item"}, x=list(range(N))), r"column 'x': several values, or null beside a value, for the item \d; expected one value a item.*\n  Set table: event"),
    "an attribute filled in later": (feature({"kind": "id", "table": "user"}, x=[None] * 20 + [1] * 20), r"column 'x': several values, or null beside a value, for the user \d"),
    "a null in a vocabulary's place": (feature({"kind": "id", "vocab": [1, "a"]}, x=[1] * N), r"vocabulary of feature 'x': values of the types int, str"),
    "a vocabulary of another type": (feature({"kind": "id", "vocab": ["a"]}, x=[1] * N), r"column 'x': integers, for example 1; expected text"),
    "no vocabulary file": (feature({"kind": "id", "vocab": "gone.csv"}, x=[1] * N), r"vocabulary of feature 'x': gone\.csv: no such file"),
    "nothing to cut into buckets": (feature({"kind": "bucket", "quantiles": 3}, x=pa.array([None] * N, pa.float64())), r"feature 'x': no value in the training window"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_told(name: str, tmp_path: Path, leftovers: Callable[[Path], list[str]]) -> None:
    write, says = WRONG[name]
    data, parts = write(tmp_path)
    config = parse(DataConfig, {"folder": str(tmp_path / "prepared"), "threads": 1, **data}, "job.yaml")
    schema = parse(Schema, SCHEMA | parts, "job.yaml")
    with pytest.raises(DataError, match=says) as raised:
        prepare(config, schema)
    assert raised.value.where
    assert raised.value.found
    assert raised.value.expected
    assert len(str(raised.value).splitlines()) < 12  # fits on a screen
    assert all(len(line) < 1_000 for line in str(raised.value).splitlines())
    assert leftovers(tmp_path / "prepared") == []


def test_the_base_of_all_these_is_fine(tmp_path: Path) -> None:
    data, _ = given()(tmp_path)
    prepare(parse(DataConfig, {"folder": str(tmp_path / "prepared"), **data}, "job.yaml"), Schema.model_validate(SCHEMA))
