"""Packed sequences against a slow reader of one cell, and cell by cell if one does not parse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.config import parse
from longrec.data.file_format import PackedCells
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.packed_cells import InvalidCell, unpack
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.errors import ConfigError, DataError
from longrec.features.schema import Schema

PLAIN = PackedCells(into={"item_id": "items", "price": "prices"})


def slowly(cell: str | None, packed: PackedCells, fill: dict[str, str]) -> dict[str, list[str | None]]:
    """The lists of one cell, step by step."""
    columns: dict[str, list[str | None]] = {column: [] for column in packed.into.values()}
    for step in (cell or "").split(packed.step):
        if not step:
            continue
        held = dict(feature.split(packed.name) for feature in step.split(packed.feature))
        for name, column in packed.into.items():
            columns[column].append(held.get(name) or fill.get(column))
    return columns


def both(cells: list[str | None], packed: PackedCells = PLAIN, **fill: str) -> dict[str, list[list[str | None]]]:
    """What a chunk of cells reads as, the slow way having said the same."""
    lists_by_column = {
        column: lists.to_pylist() for column, lists in unpack(pa.array(cells, pa.string()), packed, fill).items()
    }
    one_by_one = [slowly(cell, packed, fill) for cell in cells]
    assert lists_by_column == {column: [each[column] for each in one_by_one] for column in packed.into.values()}
    return lists_by_column


@pytest.mark.parametrize(
    ("cell", "items", "prices"),
    [
        ("item_id:1#price:2;item_id:3#price:4", ["1", "3"], ["2", "4"]),
        ("price:2#item_id:1", ["1"], ["2"]),
        ("item_id:1#price:;item_id:3#price:4", ["1", "3"], ["9", "4"]),  # a missing value
        ("item_id:1;item_id:3#price:4", ["1", "3"], ["9", "4"]),  # a missing name
        ("price:2", [None], ["2"]),  # the same, without a default
        ("item_id:1#price:2;;item_id:3#price:4", ["1", "3"], ["2", "4"]),  # an empty step
        (";item_id:1#price:2;", ["1"], ["2"]),
        (";;", [], []),
        ("", [], []),
        (None, [], []),
        ("item_id:Łódź 10€#price:２;item_id:日本#price:😀", ["Łódź 10€", "日本"], ["２", "😀"]),  # as it is
        ("item_id: 1 #price:\t", [" 1 "], ["\t"]),  # blanks are text
        ("item_id:a|b,c#price:1.5e3", ["a|b,c"], ["1.5e3"]),
    ],
)
def test_a_cell(cell: str | None, items: list[str | None], prices: list[str | None]) -> None:
    lists_by_column = both([cell, "item_id:7#price:8", cell], prices="9")
    assert lists_by_column["items"] == [items, ["7"], items]
    assert lists_by_column["prices"] == [prices, ["8"], prices]


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.lists(
            st.dictionaries(st.sampled_from(["a", "bé", "other"]), st.text("xyzé", max_size=3), max_size=3), max_size=4
        ),
        max_size=6,
    ),
    marks=st.sampled_from([(";", "#", ":"), ("\x1d", "\x02", "\x03"), ("||", "&", "="), ("→", ",", "~~")]),
    cut=st.integers(0, 3),
)
def test_every_separator_reads_as_the_slow_way(
    rows: list[list[dict[str, str]]], marks: tuple[str, str, str], cut: int
) -> None:
    step, feature, name = marks
    packed = PackedCells(into={"a": "A", "bé": "B"}, step=step, feature=feature, name=name, ignore=("other",))
    cells = [step.join(feature.join(f"{n}{name}{v}" for n, v in one.items()) for one in row) for row in rows]
    both([*cells], packed, B="none")
    # A slice of an array carries an offset with it.
    cut = min(cut, len(cells))
    whole, rest = (unpack(pa.array(cells, pa.string())[at:], packed, {}) for at in (0, cut))
    assert {column: lists.to_pylist()[cut:] for column, lists in whole.items()} == {
        column: lists.to_pylist() for column, lists in rest.items()
    }


STRAYS = [
    ("item_id:1;itemid:2", 2, r"the name 'itemid' \(did you mean 'item_id'\?\)", "one of item_id, price, or the name"),
    ("item_id:1#:2", 1, "the name ''", "one of item_id, price"),
    ("item_id:1:2", 1, "'item_id:1:2', with 2 separators ':'", "name:value between separators '#'"),
    (";item_id:1;item_id", 3, "'item_id', with no separator ':'", "name:value"),
    ("item_id:1##price:2", 1, "an empty feature next to a separator '#'", "name:value"),
    ("item_id:1#", 1, "an empty feature next to a separator '#'", "name:value"),
    ("item_id:1; ", 2, "' ', with no separator ':'", "name:value"),
    ("item_id:1#item_id:2", 1, "'item_id' twice in one step", "each name once per step"),
    ("item_id:1|price:2", 1, r"'item_id:1\|price:2', with 2 separators", "name:value"),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "step", "message", "expected"), STRAYS)
def test_an_invalid_cell_is_reported_with_its_row_and_step(cell: str, step: int, message: str, expected: str) -> None:
    with pytest.raises(InvalidCell) as raised:
        unpack(pa.array(["", "item_id:5;;item_id:6", cell, "oops"], pa.string()), PLAIN, {})
    assert (raised.value.row, raised.value.step) == (2, step)
    assert re.search(message, raised.value.actual)
    assert expected in raised.value.expected


SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item_id",
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item_id": {"kind": "id", "hash": 1000},
        "price": {"kind": "bucketized", "edges": [10, 20]},
    },
    "histories": {
        "clicks": {
            "features": ["item_id", "price"],
            "columns": {"item_id": "seq__item", "price": "seq__price"},
            "max_length": 3,
        }
    },
}
COLUMNS = {"click": "int", "user": "text", "item_id": "text", "price": "int", "seq": "text"}


def config(folder: Path, **rows: Any) -> DataConfig:
    packed = {"seq": {"into": {"item_id": "seq__item", "price": "seq__price"}}}
    layout = {"columns": COLUMNS, "packed": packed, "number": "row", **rows}
    log = {"files": [str(folder / "*.csv")], "rows": layout}
    split = {"by": "user", "valid": 0.0, "test": 0.0}
    return parse(DataConfig, {"log": log, "folder": str(folder / "prepared"), "threads": 1, "split": split}, "job.yaml")


def logged(folder: Path, *files: list[str], **rows: Any) -> Log:
    for number, cells in enumerate(files):
        lines = [f"{k % 2},u{number}{k},i{k},{k * 10},{cell}" for k, cell in enumerate(cells)]
        (folder / f"{number}.csv").write_text("\n".join(lines) + "\n")
    return Log.open(prepare(config(folder, **rows), Schema.model_validate(SCHEMA)))


CELLS = [
    "item_id:i1#price:5;item_id:i0#price:15",
    "",
    "item_id:i2#price:;;item_id:é",
    "item_id:a;item_id:b;item_id:c;item_id:i0#price:30",
]


@pytest.mark.parametrize(("rows", "missing"), [({}, 0), ({"defaults": {"seq__price": 12}}, 3)])
def test_packed_cells_become_histories(rows: dict[str, Any], missing: int, tmp_path: Path) -> None:
    log = logged(tmp_path, CELLS, **rows)
    batch = gather(log, np.arange(4))
    history = batch.histories["clicks"]
    assert history.offsets.tolist() == [0, 2, 2, 4, 7]
    assert history.columns["price"].tolist() == [2, 3, *[missing] * 4, 4]  # type: ignore[union-attr]
    items, own = history.columns["item_id"].tolist(), batch.features["item_id"].tolist()  # type: ignore[union-attr]
    assert (items[0], items[1], items[2], items[6]) == (own[1], own[0], own[2], own[0])


def test_packed_cells_of_parquet(tmp_path: Path) -> None:
    rows = {"click": [1, 0], "user": ["a", "b"], "item_id": ["x", "y"], "price": [1, 2], "seq": [CELLS[0], None]}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    packed = {"seq": {"into": {"item_id": "seq__item", "price": "seq__price"}}}
    log = {"files": [str(tmp_path / "log.parquet")], "rows": {"packed": packed}}
    split = {"by": "user", "valid": 0.0, "test": 0.0}
    data = parse(DataConfig, {"log": log, "folder": str(tmp_path / "prepared"), "split": split}, "job.yaml")
    lists_by_column = Log.open(prepare(data, Schema.model_validate(SCHEMA)))
    assert gather(lists_by_column, np.arange(2)).histories["clicks"].offsets.tolist() == [0, 2, 2]


def test_errors_name_the_file_and_its_row(tmp_path: Path) -> None:
    many = [CELLS[0]] * 20_000
    says = (
        r"1\.csv, row 16501, column 'seq', step 2: the name 'prize' \(did you mean 'price'\?\); expected one of "
        r"item_id, price, or the name in ignore\n  Correct the cell or rows.packed.seq; the cell is 'item_id:1;"
    )
    with pytest.raises(DataError, match=says):
        logged(tmp_path, many, [*many[:16_500], "item_id:1;prize:2#item_id:2"])


def test_a_name_to_ignore(tmp_path: Path) -> None:
    packed = {"seq": {"into": {"item_id": "seq__item", "price": "seq__price"}, "ignore": ["prize"]}}
    log = logged(tmp_path, ["item_id:1#prize:2", "prize:2"], packed=packed)
    assert gather(log, np.arange(2)).histories["clicks"].offsets.tolist() == [0, 1, 2]


def test_a_bad_line_is_reported_before_a_bad_cell(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("1,u,i,1,item_id:1\nq,u,i,1,item_id:1\n")
    with pytest.raises(DataError, match=r"0\.csv, row 2, column 'click': the value 'q'"):
        prepare(config(tmp_path), Schema.model_validate(SCHEMA))


def test_a_file_without_rows(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("")
    with pytest.raises(DataError, match="no rows; expected at least one event"):
        prepare(config(tmp_path), Schema.model_validate(SCHEMA))


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        ({"into": {}}, "log.rows.packed.seq.into: dictionary should have at least 1 item"),
        ({"into": {"a": "x"}, "step": "::"}, "log.rows.packed.seq: the separators must differ: name ':'"),
        ({"into": {"a": "x"}, "step": "#"}, "log.rows.packed.seq: the separators must differ: step '#'"),
        ({"into": {"a": "x"}, "name": ""}, "log.rows.packed.seq.name: string should have at least 1 character"),
        ({"into": {"a:b": "x"}}, "log.rows.packed.seq: the name 'a:b' contains the separator ':'"),
        ({"into": {"": "x"}}, "log.rows.packed.seq: the name '' is empty"),
        ({"into": {"a": "x", "b": "x"}}, "log.rows.packed.seq: into maps two names to one column"),
        ({"into": {"a": "x"}, "ignore": ["a"]}, "log.rows.packed.seq: 'a' is in into and in ignore"),
        ({"into": {"a": "x"}, "stp": "/"}, "log.rows.packed.seq.stp: unknown key; did you mean 'step'?"),
    ],
)  # fmt: skip
def test_faults_of_a_layout(packed: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        config(tmp_path, packed={"seq": packed})
    assert any(fault.startswith(says) for fault in raised.value.faults), raised.value.faults
