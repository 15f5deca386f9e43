"""Frames as inputs: the log that comes from them, their digest, their record in a config, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from small_logs import SCHEMA, log

from longrec.config import parse
from longrec.data.frame_digest import compute_digest
from longrec.data.frames import Frame
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig, Source
from longrec.data.sql import hide_progress
from longrec.errors import ConfigError, DataError
from longrec.features.schema import Schema

TABLE = log(page=["home", None, "märz", ""] * 10)


def relation(table: pa.Table) -> Any:
    """A relation of a connection of its own, which it keeps open."""
    return duckdb.connect().from_arrow(table)


FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "pandas": lambda table: table.to_pandas(),
    "polars": pl.from_arrow,
    "arrow": lambda table: table,
    "duckdb": relation,
}


def config(folder: Path, source: Any, **data: Any) -> DataConfig:
    return parse(DataConfig, {"log": source, "folder": str(folder), "threads": 1, **data}, "test")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a prepared log, without the manifest, which names the input."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "log.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_is_prepared_as_a_file_is(kind: str, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "log.parquet")
    schema = Schema.model_validate(SCHEMA)
    of_file = prepare(config(tmp_path / "a", str(tmp_path / "log.parquet")), schema)
    of_frame = prepare(config(tmp_path / "b", FRAMES[kind](TABLE)), schema)
    assert contents(of_frame) == contents(of_file)
    assert Log.open(of_frame).manifest["source"]["log"].startswith("log (")


@pytest.mark.parametrize("kind", FRAMES)
def test_equal_contents_find_the_prepared_log_again(kind: str, tmp_path: Path) -> None:
    schema = Schema.model_validate(SCHEMA)
    first = prepare(config(tmp_path, FRAMES[kind](TABLE)), schema)
    written = (first / "log.json").stat().st_mtime_ns
    assert prepare(config(tmp_path, FRAMES[kind](pa.concat_tables([TABLE[:7], TABLE[7:]]))), schema) == first
    assert (first / "log.json").stat().st_mtime_ns == written
    changed = TABLE.set_column(TABLE.column_names.index("click"), "click", pa.array((np.arange(40) + 1) % 2))
    assert prepare(config(tmp_path, FRAMES[kind](changed)), schema) != first


def test_users_and_items_may_be_frames_with_as_of(tmp_path: Path) -> None:
    items = pd.DataFrame(
        {"item": [0, 0, 1], "since": [1_500_000_000, 1_600_001_000, 1_500_000_000], "color": ["red", "blue", "green"]}
    )
    features = {**SCHEMA["features"], "color": {"kind": "id", "side": "item"}}
    data = config(tmp_path, TABLE, items={"frame": items, "as_of": "since"})
    opened = Log.open(prepare(data, Schema.model_validate({**SCHEMA, "features": features})))
    assert opened.items.versions is not None
    assert str(data.items) == "items (pandas.DataFrame)"


TIMED = TABLE.set_column(2, "t", pc.multiply(TABLE["t"], 1_000).cast(pa.timestamp("ms", "UTC")))
TYPED: dict[str, Callable[[], Any]] = {
    "pandas nullable": lambda: TIMED.to_pandas().convert_dtypes(),
    "pandas with Arrow types": lambda: TIMED.to_pandas().convert_dtypes(dtype_backend="pyarrow"),
    "pandas categories": lambda: TIMED.to_pandas().astype({"page": "category", "user": "category"}),
    "pandas in another zone": lambda: TIMED.to_pandas().assign(t=lambda f: f["t"].dt.tz_convert("Asia/Tokyo")),
    "pandas without a zone": lambda: TIMED.to_pandas().assign(t=lambda f: f["t"].dt.tz_localize(None)),
    "polars categories": lambda: pl.from_arrow(TIMED).with_columns(pl.col("page").cast(pl.Categorical)),
    "polars decimals": lambda: pl.from_arrow(TIMED).with_columns(
        pl.col("user").cast(pl.Decimal(10, 0)), pl.col("price").cast(pl.Decimal(10, 1))
    ),
    "polars in another zone": lambda: pl.from_arrow(TIMED).with_columns(
        pl.col("t").dt.convert_time_zone("America/New_York")
    ),
    "polars small integers": lambda: pl.from_arrow(TIMED).with_columns(
        pl.col("user").cast(pl.UInt8), pl.col("item").cast(pl.Int16), pl.col("click").cast(pl.Boolean)
    ),
    "Arrow dictionaries": lambda: pa.table(
        {name: own.dictionary_encode() if name in ("page", "user") else own for name, own in columns_of(TIMED)}
    ),
    "Arrow views of text": lambda: TIMED.set_column(6, "page", TIMED["page"].cast(pa.string_view())),
    "Arrow nanoseconds": lambda: TIMED.set_column(2, "t", TIMED["t"].cast(pa.timestamp("ns", "Europe/Paris"))),
}


def columns_of(table: pa.Table) -> list[tuple[str, pa.ChunkedArray]]:
    return list(zip(table.column_names, table.columns))


@pytest.mark.parametrize("kind", TYPED)
def test_types_of_frames_are_read_as_their_values(kind: str, tmp_path: Path) -> None:
    features = {name: one for name, one in SCHEMA["features"].items() if name != "click"}
    histories = {"all": {"features": ["item"], "max_length": 5}}
    schema = Schema.model_validate({**SCHEMA, "features": features, "histories": histories})
    plain = prepare(config(tmp_path / "a", TIMED), schema)
    assert contents(prepare(config(tmp_path / "b", TYPED[kind]()), schema)) == contents(plain)


def test_packed_cells_and_half_floats_of_a_frame_are_those_of_a_file(tmp_path: Path) -> None:
    table = log(cell=[f"n:{k % 3};n:{k % 5}" for k in range(40)], price=(np.arange(40) / 2).astype(np.float32))
    features = {**SCHEMA["features"], "tags": {"kind": "multi_id"}}
    schema, rows = (
        Schema.model_validate({**SCHEMA, "features": features}),
        {"packed": {"cell": {"into": {"n": "tags"}}}},
    )
    pq.write_table(table, tmp_path / "log.parquet")
    of_file = prepare(config(tmp_path / "a", {"files": str(tmp_path / "log.parquet"), "rows": rows}), schema)
    half = table.set_column(4, "price", table["price"].cast(pa.float16()))
    for name, frame in (("b", table.to_pandas()), ("c", relation(table)), ("d", half)):
        assert contents(prepare(config(tmp_path / name, {"frame": frame, "rows": rows}), schema)) == contents(of_file)
    other = {"packed": {"cell": {"into": {"n": "tags"}, "step": "|"}}}
    with pytest.raises(DataError, match="row 1, column 'cell', step 1"):
        prepare(config(tmp_path / "b", {"frame": table.to_pandas(), "rows": other}), schema)


# ---- the digest --------------------------------------------------------------------------------------------------


def digest(**columns: Any) -> str:
    return compute_digest(pa.table(columns))


def test_the_digest_is_of_values_not_of_their_storage() -> None:
    plain = pa.table({"a": pa.array([1, None, 3]), "s": pa.array(["x", None, "yz"]), "l": pa.array([[1], [], [2, 3]])})
    reference = compute_digest(plain)
    assert compute_digest(pa.concat_tables([plain[:1], plain[1:]])) == reference
    assert compute_digest(pa.concat_tables([plain, plain])[3:]) == reference
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert compute_digest(plain.set_column(1, "s", plain["s"].cast(kind))) == reference, kind
    hidden = pa.array([1, 99, 3], mask=np.array([False, True, False]))  # another number under the null
    assert compute_digest(plain.set_column(0, "a", hidden)) == reference
    assert compute_digest(pa.table(pl.from_arrow(plain))) == reference
    assert compute_digest(pa.table(pl.from_arrow(plain).with_columns(pl.col("s").cast(pl.Categorical)))) == reference
    decoded = pa.chunked_array([plain["s"][:2].combine_chunks().dictionary_encode(), plain["s"][2:].combine_chunks()
                                .dictionary_encode()])  # fmt: skip
    assert compute_digest(plain.set_column(1, "s", decoded)) == reference


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1, 2, 4], "s": ["x", "y", "z"]},
        {"a": [2, 1, 3], "s": ["y", "x", "z"]},
        {"a": [1, 2, None], "s": ["x", "y", "z"]},
        {"a": [1, 2, 3], "s": ["xy", "", "z"]},
        {"a": [1, 2, 3], "s": ["x", "y", None]},
        {"b": [1, 2, 3], "s": ["x", "y", "z"]},
        {"a": [1.0, 2.0, 3.0], "s": ["x", "y", "z"]},
        {"s": ["x", "y", "z"], "a": [1, 2, 3]},
    ],
)
def test_every_change_changes_the_digest(columns: dict[str, Any]) -> None:
    assert digest(**columns) != digest(a=[1, 2, 3], s=["x", "y", "z"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([[1, 2], [3]], [[1], [2, 3]]),
        ([[1], None], [[1], []]),
        ([True, False], [False, True]),
        ([{"x": 1}, {"x": 2}], [{"x": 1}, {"x": 3}]),
        ([None, None], [0, 0]),
    ],
)
def test_nested_values_are_in_the_digest(one: Any, other: Any) -> None:
    assert digest(v=one) != digest(v=other)
    assert digest(v=one) == digest(v=one)


def test_the_digest_crosses_the_slices_it_is_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrec.data.frame_digest._ROWS", 4)
    table = pa.table({"a": np.arange(11), "s": [str(n) for n in range(11)]})
    reference = compute_digest(table)
    assert compute_digest(pa.concat_tables([table[:3], table[3:5], table[5:5], table[5:]])) == reference
    assert compute_digest(table[:10]) != reference


def test_numbers_of_a_frame_are_not_copied() -> None:
    values = np.arange(1000)
    frame = Frame(pd.DataFrame({"a": values}, copy=False))
    buffer = frame.table["a"].chunk(0).buffers()[1]
    assert buffer.address == values.ctypes.data
    assert frame.rename("items").table is frame.table


def test_a_named_index_is_a_column() -> None:
    frame = pd.DataFrame({"user": [3, 4], "x": [1, 2]})
    assert Frame(frame.set_index("user")).columns == ("user", "x")
    assert Frame(frame[frame.x > 1]).columns == ("user", "x")


# ---- the record --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FRAMES)
def test_a_record_finds_the_prepared_log_and_nothing_else(kind: str, tmp_path: Path) -> None:
    schema, data = Schema.model_validate(SCHEMA), config(tmp_path, FRAMES[kind](TABLE))
    folder = prepare(data, schema)
    stored = data.model_dump(mode="json", exclude_unset=True)
    assert stored["log"]["frame"]["rows"] == len(TABLE)
    again = parse(DataConfig, stored, "config.yaml")
    assert prepare(again, schema) == folder
    (folder / "log.json").unlink()
    with pytest.raises(DataError) as raised:
        prepare(again, schema)
    assert "40 rows that were in the memory of another process" in str(raised.value)
    assert "longrec.prepare(frame, schema=...)" in str(raised.value)


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.arange(12345), "is a numpy.ndarray; expected files, a query, a data frame"),
        (pd.Series([1]), "is a pandas.Series, which is one column"),
        (pl.Series([1]), "is a polars.Series, which is one column"),
        (
            pl.LazyFrame({"a": [1]}),
            "is a polars.LazyFrame; expected files, a query, a data frame (pandas, polars, Arrow)",
        ),
        (TABLE.to_reader(), "is a pyarrow.RecordBatchReader, which can be read once"),
        ({"frame": TABLE, "files": ["a.parquet"]}, "needs exactly one of files, splits, query, frame"),
        (
            {"frame": TABLE, "rows": {"columns": {"user": "int"}}},
            "rows.columns is for text files; a frame has typed columns",
        ),
    ],
)
def test_what_is_no_frame_is_refused_without_its_rows(value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(DataConfig, {"log": value}, "job.yaml")
    assert f"log: {says}" in str(raised.value)
    assert "12344" not in str(raised.value)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (
            lambda: pd.DataFrame({"user": [1, "a"]}),
            "log (pandas.DataFrame): cannot be read as an Arrow table",
        ),
        (lambda: pa.table([[1], [2]], names=["user", "user"]), "log (pyarrow.Table): two columns named 'user'"),
        (lambda: pd.DataFrame({"a": [1]}), "log (pandas.DataFrame): no column 'user'"),
        (lambda: TABLE[:0], "log (pyarrow.Table): no rows"),
        (
            lambda: duckdb.connect().sql("SELECT 1 AS user, error('gone') AS item"),
            "log (duckdb.DuckDBPyRelation): .*gone",
        ),
    ],
)
def test_a_frame_that_cannot_be_used_is_named(build: Callable[[], Any], says: str, tmp_path: Path) -> None:
    pattern = says.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(DataError, match=pattern):
        prepare(config(tmp_path, build()), Schema.model_validate(SCHEMA))


def test_paths_may_be_path_objects(tmp_path: Path) -> None:
    source = config(tmp_path, [tmp_path / "a.parquet", tmp_path / "b.parquet"]).log
    assert source == Source(files=[str(tmp_path / "a.parquet"), tmp_path / "b.parquet"])
    assert config(tmp_path, tmp_path / "a.parquet").log.files == (str(tmp_path / "a.parquet"),)


class OfNotebook:
    """A connection as in a notebook without ipywidgets: its progress bar is off, and cannot be set."""

    def execute(self, sql: str) -> OfNotebook:
        if "SET" in sql:
            raise duckdb.InvalidInputException("required package 'ipywidgets' is missing")
        return self

    def fetchone(self) -> tuple[bool]:
        return (False,)


def test_the_progress_bar_is_off_everywhere() -> None:
    hide_progress(OfNotebook())  # type: ignore[arg-type]
    with duckdb.connect() as con:
        con.execute("SET enable_progress_bar=true")
        hide_progress(con)
        assert con.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)
