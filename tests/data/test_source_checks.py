"""``check`` finds a misspelled column wherever a config names one, by headers alone and all faults at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from small_logs import SCHEMA, log

from longrec.errors import ConfigError, ResourceError
from longrec.training.fit import train
from longrec.training.job import check

Write = Callable[[Path], Any]
WHOLE = {**SCHEMA, "features": dict(SCHEMA["features"])}


def source(kind: str) -> Write:
    def write(folder: Path) -> Any:
        path = folder / f"log.{kind}"
        if kind == "parquet":
            pq.write_table(log(), path)
        elif kind == "arrow":
            feather.write_feather(log(), str(path))
        elif kind == "csv":
            pacsv.write_csv(log(), path)
        else:
            pq.write_table(log(), folder / "log.parquet")
            endless = "(SELECT count(*) AS n FROM range(1000000000000))"
            return {"query": f"SELECT * FROM '{folder}/log.parquet', {endless} -- all"}
        return str(path)

    return write


def text_rows(folder: Path) -> Any:
    pacsv.write_csv(log(), folder / "log.txt")
    kinds = {"user": "int", "item": "int", "t": "int", "click": "int", "price": "float", "size": "int", "page": "text"}
    return {"files": [str(folder / "log.txt")], "rows": {"columns": kinds, "header": True}}


SOURCES: dict[str, Write] = {
    "parquet": source("parquet"), "arrow": source("arrow"), "csv": source("csv"), "query": source("query"),
    "rows": text_rows,
}  # fmt: skip


def faults(data: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        check({"data": {**data, "schema": schema}, "model": "din"})
    return raised.value.faults


@pytest.mark.parametrize("kind", SOURCES)
def test_a_whole_config_has_no_fault_and_every_misspelled_column_is_one(tmp_path: Path, kind: str) -> None:
    data = {"log": SOURCES[kind](tmp_path)}
    check({"data": {**data, "schema": WHOLE}, "model": "din"})
    wrong = {
        "user": "usr",
        "item": "itm",
        "time": {"column": "tt", "available_at": "tolled"},
        "request": "zzzzzz",
        "label": "clikc",
        "features": {
            "item": {"kind": "id", "column": "itm"},
            "price": {"kind": "numeric", "column": "prise"},
            "x": {"kind": "cross", "features": ["page", "sise"], "hash": 9},
            "w": {"kind": "multi_id", "column": "page", "separator": ",", "weights": "wieghts"},
            "f": {"kind": "id", "column": "size", "feedback": True, "available_at": "knwon"},
        },
        "histories": {"h": {"features": ["item"], "where": {"pgae": "home"}}},
    }
    fault_lines = faults(data | {"split": {"by": "column", "column": "splitt"}, "weights": ["wieght"]}, wrong)
    locations = [fault.partition(": ")[0].removeprefix("data.") for fault in fault_lines]
    assert locations == [
        "schema.user", "schema.item", "schema.time", "schema.time.available_at", "schema.request", "schema.label",
        "schema.features.price", "schema.features.x", "schema.features.w", "schema.features.f.available_at",
        "schema.histories.h.where", "split.column",
        "weights",
    ]  # fmt: skip
    assert "no column 'usr' in the log" in fault_lines[0]
    assert fault_lines[0].endswith("did you mean 'user'?")
    assert "it has user, item, t, click, price, size, page" in fault_lines[4]


def test_columns_of_prejoined_rows(tmp_path: Path) -> None:
    pq.write_table(log(past=[[1]] * 40), tmp_path / "log.parquet")
    histories = {"h": {"features": ["item"], "columns": {"item": "pasd"}}}
    (fault_lines,) = faults({"log": str(tmp_path / "log.parquet")}, WHOLE | {"histories": histories})
    assert fault_lines.startswith("data.schema.histories.h.columns.item: no column 'pasd'")
    assert fault_lines.endswith("did you mean 'past'?")


def test_columns_of_tables(tmp_path: Path) -> None:
    data = {
        "log": SOURCES["parquet"](tmp_path),
        "items": str(tmp_path / "i.parquet"),
        "users": str(tmp_path / "u.parquet"),
    }
    pq.write_table(pa.table({"item": [1], "brand": ["a"]}), tmp_path / "i.parquet")
    pq.write_table(pa.table({"usr": [1], "age": [3]}), tmp_path / "u.parquet")
    features = {
        **WHOLE["features"],
        "brnad": {"kind": "id", "side": "item"},
        "age": {"kind": "numeric", "side": "user"},
        "page2": {"kind": "id", "side": "user", "column": "page"},  # of the log, whose users have one page each
    }
    fault_lines = faults(data, WHOLE | {"features": features})
    assert [fault.partition(" in ")[0] for fault in fault_lines] == [
        "data.schema.user: no column 'user'",
        "data.schema.features.brnad: no column 'brnad'",
    ]
    assert fault_lines[1].endswith("did you mean 'brand'?")
    assert "the table of items" in fault_lines[1]


def test_a_schema_in_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("user: usr\nitem: item\ntime: t\nlabel: click\nfeatures: {item: {kind: id}}\n")
    SOURCES["parquet"](tmp_path)
    with pytest.raises(ConfigError) as raised:
        check({"data": {"log": str(tmp_path / "log.parquet"), "schema": str(tmp_path / "s.yaml")}, "model": "lr"})
    assert raised.value.faults[0].startswith(f"{tmp_path}/s.yaml: user: no column 'usr'")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("log.parquet", b"PAR1 and no more", "data.log: .*log.parquet: cannot be read"),
        ("log.arrow", b"ARROW1", "data.log: .*log.arrow: cannot be read"),
        ("log.xyz", b"", "data.log: .*a file of the kind '.xyz'"),
    ],
)
def test_a_source_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    (fault_lines,) = faults({"log": str(tmp_path / name)}, WHOLE)
    assert re.search(says, fault_lines), fault_lines


def test_a_query_that_is_none(tmp_path: Path) -> None:
    (fault_lines,) = faults({"log": {"query": "SELEC 1"}}, WHOLE)
    assert fault_lines.startswith("data.log: query 'SELEC 1': cannot be read")


def test_files_that_differ_and_files_named_twice(tmp_path: Path) -> None:
    pq.write_table(log(), tmp_path / "a.parquet")
    pq.write_table(log(click=None), tmp_path / "b.parquet")
    (fault_lines,) = faults({"log": str(tmp_path / "?.parquet")}, WHOLE)
    assert "b.parquet has no column 'click' (label)" in fault_lines
    (fault_lines,) = faults({"log": [str(tmp_path / "a.parquet")] * 2}, WHOLE)
    assert "listed twice" in fault_lines


def test_a_table_beyond_all_memory_is_reported_by_check_and_by_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    features = {**WHOLE["features"], "user": {"kind": "id", "hash": 2_000_000_000, "dim": 64}}
    data = {"log": SOURCES["parquet"](tmp_path)}
    (fault_lines,) = faults(data, WHOLE | {"features": features})
    assert fault_lines.startswith(
        "model: feature 'user': 2,000,000,002 x 64 numbers take 512 GB, the whole training takes at least"
    )
    assert "of memory that are available" in fault_lines
    with pytest.raises(ResourceError, match="2,000,000,002 x 64 numbers take 512 GB"):
        train({"data": {**data, "schema": WHOLE | {"features": features}}, "model": "din"}, quiet=True)
    assert not (tmp_path / "prepared").exists()

    # a learned vocabulary is known only once the log is prepared; still nothing is allocated
    monkeypatch.setattr("longrec.training.memory.available_memory", lambda: 100_000)
    with pytest.raises(ResourceError, match="the whole training takes at least"):
        train({"data": {**data, "schema": WHOLE}, "model": "din", "fit": {"runs": "r"}}, quiet=True)
    assert not (tmp_path / "r").exists()


def test_the_column_that_dates_a_table_is_looked_for(tmp_path: Path) -> None:
    pq.write_table(log(), tmp_path / "log.parquet")
    pq.write_table(pa.table({"item": [1], "since": [0]}), tmp_path / "items.parquet")
    dated = {"files": str(tmp_path / "items.parquet"), "as_of": "sinc"}
    (fault,) = faults({"log": str(tmp_path / "log.parquet"), "items": dated}, WHOLE)
    assert fault.startswith("data.items.as_of: no column 'sinc' in the table of items")
    assert fault.endswith("did you mean 'since'?")
