"""A source that cannot be read, or lacks a column, raises a DataError and leaves no file behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_logs import (
    SCHEMA,
    Case,
    N,
    csv,
    cut,
    feature,
    log,
    named,
    parquet_log,
    raw,
    under,
)

WRONG: dict[str, tuple[Callable[[Path], Case], str]] = {
    # ---- files
    "no such file": (
        named(["gone.parquet"]),
        r"gone\.parquet: no such file; expected a Parquet, CSV, JSON lines or Arrow file",
    ),
    "pattern without match": (named(["*.csv"]), r"\*\.csv: no such file; expected .*pattern that matches some"),
    "truncated Parquet": (cut("log.parquet", 0.6), r"log\.parquet: cannot be read: .*; expected a complete Parquet"),
    "Parquet without an end": (cut("log.parquet", 0.1), r"log\.parquet: cannot be read: .*; expected a complete"),
    "Parquet with garbage": (cut("log.parquet", 1.0), r"log\.parquet: cannot be read: .*; expected a complete Parquet"),
    "not Parquet at all": (raw("log.parquet", b"user,item\n1,2\n" * 9), r"cannot be read: .*magic bytes not found"),
    "an empty Parquet file": (
        raw("log.parquet", b""),
        r"log\.parquet: cannot be read: .*; expected a complete Parquet",
    ),
    "truncated Arrow": (cut("log.arrow", 0.6), r"log\.arrow: cannot be read: .*; expected a complete .*Arrow file"),
    "not Arrow at all": (raw("log.arrow", b"nothing of the kind"), r"log\.arrow: cannot be read: .*Arrow"),
    "another kind of file": (
        raw("log.xlsx", b"x"),
        r"log\.xlsx: a file of the kind '\.xlsx'; expected \.parquet, .*\.csv.*\n  Save the sheet as CSV",
    ),
    "an empty CSV file": (raw("log.csv", b""), r"log\.csv: an empty file; expected a first line"),
    "header-only CSV": (csv("user,item,t,click,price,size,page\n"), r"log\.csv: no rows; expected at least one event"),
    "an empty log": (
        parquet_log(**{n: pa.array([], t) for n, t in zip(log().column_names, log().schema.types)}),
        r"no rows; expected at least",
    ),
    "CSV that is none": (
        raw("log.csv", bytes(range(256)) * 20),
        r"log\.csv: cannot be read: bytes of zero.*UTF-8 text",
    ),
    "CSV with a short row": (
        csv("user,item,t,click,price,size,page\n" + "1,2,3,0,1,1,a\n" * 30 + "1,2\n"),
        r"log\.csv, line 32: 2 of 7 cells in '1,2'; expected 7 cells .* one per column of the first line",
    ),
    "a bad query": (
        named({"query": "SELECT nothing FROM nowhere"}),
        r"^query 'SELECT nothing FROM nowhere': cannot be read: .*nowhere.*\n  Write .* or correct the query",
    ),
    "a query of two statements": (
        named({"query": "SELECT 1; SELECT 2"}),
        r"2 statements \(SELECT, SELECT\); expected one SELECT statement",
    ),
    "a query of other columns": (
        named({"query": "SELECT 1 AS user"}),
        r"no column 'item' \(the item\); no column 't' .*no column 'click' .*the file has user",
    ),
    # ---- columns
    "a missing column": (
        parquet_log(click=None, clic=[0] * N),
        r"no column 'click' \(the label\), did you mean 'clic'\?; expected columns .*; the file has user, item",
    ),
    "several missing columns": (
        parquet_log(click=None, page=None),
        r"no column 'click' \(the label\).*no column 'page' \(feature page\)",
    ),
    "the user's column is missing": (
        parquet_log(user=None, user_id=[1] * N),
        r"no column 'user' \(the user\), did you mean 'user_id'\?",
    ),
    "a missing history filter": (
        under({"histories": {"all": {"features": ["item"], "where": {"knd": 1}}}}, kind=[1] * N),
        r"no column 'knd' \(history all\), did you mean 'kind'\?",
    ),
    "a missing split column": (
        under(data={"split": {"by": "column", "column": "pat"}}, part=["train"] * N),
        r"no column 'pat' \(the split\), did you mean 'part'\?",
    ),
    "a missing moment": (
        feature({"kind": "id", "feedback": True, "available_at": "fixd"}, x=[1] * N, fixed=[1] * N),
        r"no column 'fixd' \(available_at of x\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_with_its_message(name: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    write, says = WRONG[name]
    refused(tmp_path, *write(tmp_path), says)


def test_files_of_two_kinds(tmp_path: Path, refused: Callable[..., None]) -> None:
    for write in (parquet_log(), csv()):
        write(tmp_path)
    says = r"files of the kinds \.csv, \.parquet; expected one kind of file"
    refused(tmp_path, {"log": str(tmp_path / "log.*")}, {}, says)


def test_the_base_of_all_these_is_fine(tmp_path: Path, prepared: Callable[..., Any]) -> None:
    assert len(prepared(log(), SCHEMA)) == N
