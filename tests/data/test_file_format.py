"""Text files with declared rows: types, defaults, numbers of rows, splits, and every line that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from longrec.config import parse
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.relation import Relation, connect
from longrec.data.settings import DataConfig
from longrec.errors import ConfigError, DataError
from longrec.features.schema import Schema

COLUMNS = {"click": "int", "user": "text", "item": "text", "past": "text", "price": "float"}
LAYOUT: dict[str, Any] = {"columns": COLUMNS, "number": "row"}
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "price": {"kind": "numeric"},
        "row": {"kind": "numeric"},
    },
    "histories": {"h": {"features": ["item"], "columns": {"item": "past"}, "separator": "|", "max_length": 3}},
}
TRAIN = "1,007,a,b|c,1.5\n0,008,b,,2\n1,7,c,a|b|c|a,\n"
TEST = "0,007,a,c,4e-1\n"


def config(folder: Path, log: Any, **data: Any) -> DataConfig:
    return parse(DataConfig, {"log": log, "folder": str(folder / "prepared"), "threads": 1, **data}, "job.yaml")


def write_files(folder: Path, layout: dict[str, Any] | None = None, train: str = TRAIN, test: str = TEST) -> DataConfig:
    """Two files of text, a part each."""
    for name, text in (("train.txt", train), ("test.txt", test)):
        (folder / name).write_bytes(text.encode())
    files_by_split = {"train": str(folder / "train.txt"), "test": [str(folder / "test.txt")]}
    return config(folder, {"splits": files_by_split, "rows": LAYOUT | (layout or {})}, split={"by": "files"})


def table(data_config: DataConfig, folder: Path) -> pa.Table:
    """The rows as they are read."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    con = connect(data_config, scratch)
    try:
        return Relation(con, "log", data_config.log, scratch).table("SELECT * FROM log")
    finally:
        con.close()


def open_log(data_config: DataConfig) -> Log:
    return Log.open(prepare(data_config, Schema.model_validate(SCHEMA)))


def test_rows_are_read_as_declared(tmp_path: Path) -> None:
    assert table(write_files(tmp_path), tmp_path).to_pydict() == {
        "click": [1, 0, 1, 0],
        "user": ["007", "008", "7", "007"],
        "item": ["a", "b", "c", "a"],
        "past": ["b|c", None, "a|b|c|a", "c"],
        "price": [1.5, 2.0, None, 0.4],
        "_part": ["train", "train", "train", "test"],
        "row": [0, 1, 2, 3],
    }


def test_a_log_of_files_by_split(tmp_path: Path) -> None:
    log = open_log(write_files(tmp_path, {"defaults": {"price": 9, "past": "b"}}))
    assert log.users.keys.values.to_pylist() == ["007", "008", "7"]
    order = log.events.columns["row"].astype(int)
    assert order.tolist() == [0, 3, 1, 2]  # by user, then as in the files
    assert log.splits.tolist() == [0, 2, 0, 0]
    assert log.events.columns["price"].tolist() == pytest.approx([1.5, 0.4, 2, 9])
    history = gather(log, np.arange(4)).histories["h"]
    assert history.offsets.tolist() == [0, 2, 3, 4, 7]
    assert history.columns["item"].tolist() == [3, 4, 4, 3, 3, 4, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ({"separator": "\t"}, lambda text: text.replace(",", "\t")),
        ({"separator": "#|#", "quote": None}, lambda text: text.replace(",", "#|#")),
        ({"separator": "é"}, lambda text: text.replace(",", "é")),
        ({"header": True}, lambda text: f"{','.join(COLUMNS)}\n{text}"),
        ({"quote": "'"}, lambda text: text.replace(",b|c,", ",'b|c',")),
        ({}, lambda text: text.replace("\n", "\r\n")),
        ({}, lambda text: text.rstrip("\n")),
        ({}, lambda text: "\ufeff" + text),
        ({}, lambda text: text.replace("\n", "\n\n")),
        ({}, lambda text: text.replace(",2\n", ", +2 \n")),
    ],
)
def test_one_table_many_layouts(layout: dict[str, Any], change: Any, tmp_path: Path) -> None:
    plain = table(write_files(tmp_path), tmp_path)
    assert table(write_files(tmp_path, layout, change(TRAIN), change(TEST)), tmp_path).equals(plain)


def test_quoted_cells_keep_separators_line_ends_and_quotes(tmp_path: Path) -> None:
    data_config = write_files(tmp_path, train='1,"a,b","say ""hi""","x\ny",1\n0,é,ü,,2\n')
    read = table(data_config, tmp_path).to_pydict()
    assert read["user"] == ["a,b", "é", "007"]
    assert read["item"] == ['say "hi"', "ü", "a"]
    assert read["past"] == ["x\ny", None, "c"]


def test_without_a_quote_quotes_are_text(tmp_path: Path) -> None:
    read = table(write_files(tmp_path, {"quote": None}, train='1,"u,12",x,3\n'), tmp_path).to_pydict()
    assert (read["user"][0], read["item"][0]) == ('"u', '12"')


LINE = "1,u,a,b,1\n"


@pytest.mark.parametrize(
    ("text", "layout", "says"),
    [
        (f"{LINE}q,u,a,b,1\n", {}, r"train.txt, row 2, column 'click': the value 'q'; expected a whole number"),
        (f"{LINE}5.7,u,a,b,1\n", {}, r"row 2, column 'click': the value '5.7'; expected a whole number"),
        (f"{LINE}1_0,u,a,b,1\n", {}, r"row 2, column 'click': the value '1_0'"),
        (f"{LINE}0x1,u,a,b,1\n", {}, r"row 2, column 'click': the value '0x1'"),
        (f"{LINE} ,u,a,b,1\n", {}, r"row 2, column 'click': the value ' '"),
        (f"{LINE}{2**63},u,a,b,1\n", {}, rf"row 2, column 'click': the value '{2**63}'; expected .* at most 64 bits"),
        (f"{LINE}1,u,a,b,nan\n", {}, r"row 2, column 'price': the value 'nan'; expected a number, as declared in rows"),
        (f"{LINE}1,u,a,b,1.2.3\n", {}, r"row 2, column 'price': the value '1.2.3'"),
        (f"{LINE}1,u,a,b,x\nq,u,a,b,1\n", {}, r"row 2, column 'price'"),
        (f"{LINE * 70_000}1,u,a,b,x\n", {}, r"train.txt, row 70001, column 'price'"),
        (f"{LINE}1,u,a,b\n", {}, r"train.txt, line 2: 4 of 5 cells in '1,u,a,b'; expected 5 cells between"),
        (f"{LINE}1,u,a,b,1,\n", {}, r"train.txt, line 2: more than 5 cells in '1,u,a,b,1,'.*\n.*must be quoted"),
        (f"{LINE}1,u,a,b,1,x\n", {}, r"train.txt, line 2: more than 5 cells in '1,u,a,b,1,x'"),
        (f'{LINE}1,"u,a,b,1\n', {}, r"train.txt, line 2: Value with unterminated quote found. The line is"),
        ("1;u;a;b;1\n", {}, r"train.txt, line 1: 1 of 5 cells in '1;u;a;b;1'"),
        (LINE + LINE[:-1] + "\r\n", {}, r"train.txt: line ends or quotes that cannot be determined; expected one kind"),
        (LINE, {"header": True}, r"train.txt, line 1: the name '1' instead of 'click'; expected a header with"),
        ("", {"header": True}, r"train.txt, line 1: no line; expected a header with the names"),
    ],
)  # fmt: skip
def test_lines_that_do_not_fit(text: str, layout: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as raised:
        prepare(write_files(tmp_path, layout, train=text), Schema.model_validate(SCHEMA))
    assert len(str(raised.value)) < 800
    assert "read_csv" not in str(raised.value)
    assert not list((tmp_path / "prepared").iterdir())


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    data_config = write_files(tmp_path)
    (tmp_path / "test.txt").write_bytes(b"1,u,a,b,1\n1,\xff,a,b,1\n")
    with pytest.raises(DataError, match=r"test.txt, line 2: bytes that are not UTF-8 in"):
        table(data_config, tmp_path)


def files(folder: Path, kind: str) -> dict[str, str]:
    rows = pa.table({"click": [1, None, 0], "user": ["a", "", None], "price": [1.0, None, 3.0], "u": ["x"] * 3})
    for name, table in (("train", rows[:2]), ("test", rows[2:])):
        if kind == "parquet":
            pq.write_table(table, folder / f"{name}.parquet")
        else:
            feather.write_feather(table, str(folder / f"{name}.arrow"))
    return {name: str(folder / f"{name}.{kind}") for name in ("train", "test")}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_files_that_know_their_columns_take_defaults_and_numbers(kind: str, tmp_path: Path) -> None:
    rows = {"defaults": {"click": 0, "user": "none", "price": 2.5}, "number": "row"}
    data_config = config(tmp_path, {"splits": files(tmp_path, kind), "rows": rows}, split={"by": "files"})
    assert table(data_config, tmp_path).to_pydict() == {
        "click": [1, 0, 0],
        "user": ["a", "none", "none"],
        "price": [1.0, 2.5, 3.0],
        "u": ["x"] * 3,
        "_part": ["train", "train", "test"],
        "row": [0, 1, 2],
    }


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"defaults": {"clck": 0}}, r"no column 'clck' \(rows.defaults\), did you mean 'click'\?"),
        ({"defaults": {"click": "x"}}, r"column 'click': the default 'x'; expected a value of type BIGINT"),
        ({"number": "u"}, r"a column 'u' in the rows"),
        ({"packed": {"price": {"into": {"a": "a"}}}}, r"column 'price': values of type DOUBLE; expected packed text"),
    ],
)
def test_layouts_that_do_not_fit_the_files(rows: dict[str, Any], says: str, tmp_path: Path) -> None:
    data_config = config(tmp_path, {"splits": files(tmp_path, "parquet"), "rows": rows}, split={"by": "files"})
    with pytest.raises(DataError, match=says):
        table(data_config, tmp_path)


def test_splits_of_text_that_names_its_columns(tmp_path: Path) -> None:
    for name, ids in (("a", "007"), ("b", "x"), ("c", "9")):
        (tmp_path / f"{name}.csv").write_text(f"user,click\n{ids},1\n")
    files_by_split = {
        "train": str(tmp_path / "a.csv"),
        "valid": str(tmp_path / "c.csv"),
        "test": str(tmp_path / "b.csv"),
    }
    data_config = config(tmp_path, {"splits": files_by_split}, split={"by": "files"})
    assert table(data_config, tmp_path).to_pydict() == {
        "user": ["007", "9", "x"],
        "click": [1, 1, 1],
        "_part": ["train", "valid", "test"],
    }


def test_a_file_belongs_to_one_split(tmp_path: Path) -> None:
    data_config = write_files(tmp_path)
    files_by_split = {"train": str(tmp_path / "*.txt"), "test": str(tmp_path / "test.txt")}
    data_config = config(tmp_path, {"splits": files_by_split, "rows": LAYOUT}, split={"by": "files"})
    with pytest.raises(DataError, match=r"test.txt: a file of train and of test; expected every file in one split"):
        table(data_config, tmp_path)


def test_text_in_rows_needs_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    data_config = config(tmp_path, {"files": [str(tmp_path / "a.csv")], "rows": {"number": "row"}})
    with pytest.raises(DataError, match=r"text files, and rows without columns; expected rows.columns"):
        table(data_config, tmp_path)


def test_the_format_and_the_splits_enter_the_fingerprint(tmp_path: Path) -> None:
    schema = Schema.model_validate(SCHEMA)
    first = prepare(write_files(tmp_path), schema)
    data_config = write_files(tmp_path, {"defaults": {"price": 1.0}})
    second = prepare(data_config, schema)
    assert prepare(data_config, schema) == second != first
    (tmp_path / "valid.txt").write_text(TEST)
    paths = {name: str(tmp_path / f"{name}.txt") for name in ("train", "valid", "test")}
    folders = set()
    for valid, test in (("valid", "test"), ("test", "valid")):
        files_by_split = {"train": paths["train"], "valid": paths[valid], "test": paths[test]}
        folders.add(
            prepare(config(tmp_path, {"splits": files_by_split, "rows": LAYOUT}, split={"by": "files"}), schema)
        )
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("log", "split", "says"),
    [
        ({"splits": {"train": "a", "test": "b"}}, {}, "config: log.splits and split {by: files} must be used together"),
        ({"files": ["a"]}, {"by": "files"}, "config: log.splits and split {by: files} must be used together"),
        ({"splits": {"train": "a"}}, {"by": "files"}, "log.splits: needs files for valid or for test"),
        ({"splits": {"test": "a"}}, {"by": "files"}, "log.splits.train: is required"),
        ({"files": ["a"], "splits": {"train": "a", "test": "b"}}, {}, "log: needs exactly one of files, splits, query"),
        ({"query": "SELECT 1", "rows": {"number": "n"}}, {}, "log: rows is for files"),
        ({"files": ["a"], "rows": {"columns": {"a": "str"}}}, {}, "log.rows.columns.a: must be one of 'int', 'float'"),
    ],
)
def test_sources_that_do_not_fit(log: dict[str, Any], split: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(DataConfig, {"log": log, "split": split}, "job.yaml")
    assert any(fault.startswith(says) for fault in raised.value.faults), raised.value.faults


def test_every_fault_of_a_layout_is_reported(tmp_path: Path) -> None:
    rows = {
        "columns": {"a": "int", "A": "text", "s": "text"},
        "separator": "<-|->",
        "quote": "''",
        "defaults": {"a": 1.5, "s": "x", "b": 0},
        "packed": {"s": {"into": {"x": "a"}}, "a": {"into": {"y": "y"}}, "t": {"into": {"z": "z"}}},
        "number": "s",
    }
    with pytest.raises(ConfigError) as raised:
        config(tmp_path, {"files": ["a"], "rows": rows})
    (fault,) = raised.value.faults
    for said in (
        "separator '<-|->' is longer than 4 bytes",
        "quote must be one ASCII character, or null; got \"''\"",
        "columns: 'a' and 'A' differ only in case",
        "packed: there is a column 'a' already",
        "packed: column 'a' must be text, is int",
        "packed: no column 't' in columns",
        "number: there is a column 's' already",
        "defaults: 'a' is packed; give defaults to y",
        "defaults: no column 'b'",
    ):
        assert said in fault, said
