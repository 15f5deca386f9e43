"""A source of several files: each read once, with the same columns in every one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from small_logs import SCHEMA, log

from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.features.schema import Schema

Write = Callable[[pa.Table, Path], object]
WRITERS: dict[str, Write] = {
    "parquet": lambda table, path: pq.write_table(table, path),
    "csv": lambda table, path: pacsv.write_csv(table, path),
    "arrow": lambda table, path: feather.write_feather(table, str(path), compression="uncompressed"),
}
Refused = Callable[..., None]


def again(folder: Path, way: str) -> Any:
    """Names of one file that are two."""
    file = folder / "a.parquet"
    pq.write_table(log(), file)
    (folder / "deep").mkdir()
    if way == "pattern":
        return [str(file), str(folder / "a*.parquet")]
    if way == "twice":
        return [str(file), str(file)]
    if way == "path":
        return [str(file), str(folder / "deep" / ".." / "a.parquet")]
    if way == "folder link":
        (folder / "link").symlink_to(folder)
        return [str(file), str(folder / "link" / "a.parquet")]
    {"link": os.symlink, "hard link": os.link}[way](file, folder / "b.parquet")
    return str(folder / "*.parquet")


@pytest.mark.parametrize("way", ["pattern", "twice", "path", "link", "hard link", "folder link"])
def test_a_file_named_twice_is_refused(tmp_path: Path, refused: Refused, way: str) -> None:
    refused(tmp_path, {"log": again(tmp_path, way)}, {}, "listed twice|the same file as")


def test_a_file_twice_in_a_split_and_in_a_table(tmp_path: Path, refused: Refused) -> None:
    files = again(tmp_path, "link")
    other = str(tmp_path / "other.parquet")
    pq.write_table(pa.table({"item": [1, 2], "x": [1, 2]}), tmp_path / "items")
    files_by_split = {"train": other, "valid": [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]}
    pq.write_table(log(), other)
    refused(tmp_path, {"log": {"splits": files_by_split}, "split": {"by": "files"}}, {}, "the same file as")
    refused(tmp_path, {"log": {"splits": {"train": str(tmp_path / "a.parquet"), "valid": str(tmp_path / "b.parquet")}},
                       "split": {"by": "files"}}, {}, "a file of train and of valid")  # fmt: skip
    refused(tmp_path, {"log": other, "items": files}, {}, "the same file as")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("column", ["user", "item", "t", "click", "price", "page", "kept"])
@pytest.mark.parametrize("first", [True, False])
def test_a_file_that_lacks_a_column_is_named(
    tmp_path: Path, refused: Refused, kind: str, column: str, first: bool
) -> None:
    whole = log(kept=["a", "b"] * 20)
    tables = [whole.drop_columns([column]), whole]
    for name, table in zip("ab", tables if first else tables[::-1]):
        WRITERS[kind](table, tmp_path / f"{name}.{kind}")
    histories = {"histories": {"all": {"features": ["item"], "where": {"kept": "a"}}}}
    lacking = f"{'a' if first else 'b'}.{kind} has no column '{column}'"
    refused(tmp_path, {"log": str(tmp_path / f"*.{kind}")}, histories, lacking)


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_that_nobody_needs_may_be_missing(tmp_path: Path, kind: str) -> None:
    for name, table in {"a": log(more=[1] * 40), "b": log(), "c": log(more=["x"] * 40)}.items():
        WRITERS[kind](table, tmp_path / f"{name}.{kind}")
    data = {"log": str(tmp_path / f"*.{kind}"), "folder": str(tmp_path / "prepared"), "threads": 1}
    assert prepare(DataConfig.model_validate(data), Schema.model_validate(SCHEMA)).is_dir()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("user", [str(n) for n in range(40)], "'user' .the user. is integers in .* and text in"),
        ("page", list(range(40)), "'page' .feature page. is text in .* and integers in"),
        ("t", pa.array(range(40), pa.timestamp("us")), "'t' .the time. is integers in .* and times in"),
        ("click", [str(n % 2) for n in range(40)], "'click' .the label. is integers in .* and text in"),
    ],
)
def test_a_column_of_two_types_is_refused(
    tmp_path: Path, refused: Refused, kind: str, column: str, values: Any, says: str
) -> None:
    WRITERS[kind](log(), tmp_path / f"a.{kind}")
    WRITERS[kind](log(**{column: values}), tmp_path / f"b.{kind}")
    refused(tmp_path, {"log": str(tmp_path / f"*.{kind}")}, {}, says)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_widths_of_numbers_may_differ_and_a_column_of_nulls_fits_all(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](log(user=pa.array([1] * 40, pa.int32()), page=pa.nulls(40)), tmp_path / f"a.{kind}")
    WRITERS[kind](log(user=pa.array([2**40] * 40), price=list(range(40))), tmp_path / f"b.{kind}")
    data = {"log": str(tmp_path / f"*.{kind}"), "folder": str(tmp_path / "prepared"), "threads": 1}
    folder = prepare(DataConfig.model_validate(data), Schema.model_validate(SCHEMA))
    assert pq.read_table(folder / "users" / "keys.parquet").column(0).to_pylist() == [1, 2**40]


def test_a_table_of_items_in_several_files(tmp_path: Path, refused: Refused) -> None:
    pq.write_table(log(), tmp_path / "log.parquet")
    pq.write_table(pa.table({"item": [1, 2], "x": [1, 2]}), tmp_path / "i1.parquet")
    pq.write_table(pa.table({"item": [3, 4], "y": [1, 2]}), tmp_path / "i2.parquet")
    extra = {"features": {**SCHEMA["features"], "x": {"kind": "id", "side": "item"}}}
    data = {"log": str(tmp_path / "log.parquet"), "items": str(tmp_path / "i?.parquet")}
    refused(tmp_path, data, extra, "i2.parquet has no column 'x' .feature x, table item.")
