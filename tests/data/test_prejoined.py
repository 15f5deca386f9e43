"""Rows that carry their histories with them, as lists or as separated text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.gather import gather
from longrec.data.loader import Loader
from longrec.data.log import Log
from longrec.errors import DataError

SPLIT = {"by": "column", "column": "part"}


def schema(**history: Any) -> dict[str, Any]:
    return {
        "user": "user",
        "item": "item",
        "label": "click",
        "features": {"user": {"kind": "id"}, "item": {"kind": "id"}, "shop": {"kind": "id", "side": "item"}},
        "histories": {"h": {"features": ["item", "shop"], "columns": {"item": "items", "shop": "shops"}, **history}},
    }


def table(rows: list[list[tuple[int, str]]], form: str) -> pa.Table:
    """Rows with these past (item, shop) pairs; ``form`` says how the lists are written."""
    n = len(rows)
    items, shops = [[i for i, _ in row] for row in rows], [[s for _, s in row] for row in rows]
    columns: dict[str, Any] = {
        "user": [0] * n,
        "item": list(range(n)),
        "shop": [f"s{k}" for k in range(n)],
        "click": [k % 2 for k in range(n)],
        "part": ["train"] * n,
    }
    if form == "lists":
        columns["items"] = pa.array(items, pa.list_(pa.int32()))
        columns["shops"] = pa.array(shops, pa.large_list(pa.large_string()))
    else:
        columns["items"] = ["|".join(map(str, row)) for row in items]
        columns["shops"] = ["|".join(row) for row in shops]
    return pa.table(columns)


def histories(log: Log, rows: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    history = gather(log, np.array(rows)).histories["h"]
    bounds = history.offsets.tolist()
    items, shops = (history.columns[name].tolist() for name in ("item", "shop"))  # type: ignore[union-attr]
    cut = [slice(a, b) for a, b in zip(bounds, bounds[1:])]
    return [items[cell] for cell in cut], [shops[cell] for cell in cut]


@settings(deadline=None, max_examples=8)
@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["s0", "s1", "x"])), max_size=5), min_size=2, max_size=8
    ),
    form=st.sampled_from(["lists", "text"]),
    last=st.integers(1, 6),
)
def test_histories_are_those_of_the_row(
    rows: list[list[tuple[int, str]]], form: str, last: int, prepared: Callable[..., Log]
) -> None:
    separator = {} if form == "lists" else {"separator": "|"}
    log = prepared(table(rows, form), schema(max_length=last, **separator), split=SPLIT)
    assert log.schema.prejoined
    item_ids = sorted({*range(len(rows)), *(i for row in rows for i, _ in row)})
    shop_ids = sorted({*(f"s{k}" for k in range(len(rows))), *(s for row in rows for _, s in row)})
    items, shops = histories(log, list(range(len(rows))))
    assert items == [[item_ids.index(i) + 2 for i, _ in row[-last:]] for row in rows]
    assert shops == [[shop_ids.index(s) + 2 for _, s in row[-last:]] for row in rows]


def test_history_values_are_learned_from_training_rows_only(prepared: Callable[..., Log]) -> None:
    rows = table([[(50, "a")], [], [(60, "b")], [(50, "b")]], "lists")
    rows = rows.set_column(4, "part", pa.array(["train", "train", "valid", "test"]))
    log = prepared(rows, schema(), split=SPLIT)
    items, shops = histories(log, [0, 1, 2, 3])
    assert items == [[4], [], [1], [4]]  # items 0, 1 and 50 were seen
    assert shops == [[2], [], [1], [1]]


def test_null_lists_are_empty_and_null_values_missing(prepared: Callable[..., Log]) -> None:
    rows = table([[(5, "a")], []], "lists")
    rows = rows.set_column(5, "items", pa.array([[5, None], None], pa.list_(pa.int64())))
    rows = rows.set_column(6, "shops", pa.array([[None, "a"], None], pa.list_(pa.string())))
    log = prepared(rows, schema(), split=SPLIT)
    assert histories(log, [0, 1]) == ([[4, 0], []], [[0, 2], []])


def test_whole_numbers_in_text_are_the_numbers_of_an_item_table(prepared: Callable[..., Log]) -> None:
    rows = table([[(0, "7"), (1, "8")], []], "text").drop_columns(["shop"])
    items = pa.table({"item": [0, 1], "shop": [7, 8]})
    log = prepared(rows, schema(separator="|"), items=items, split=SPLIT)
    assert histories(log, [0]) == ([[2, 3]], [[2, 3]])


def test_amounts_in_text_are_numbers(prepared: Callable[..., Log]) -> None:
    schema_dict = schema(separator="|")
    schema_dict["features"]["shop"] = {"kind": "bucketized", "edges": [1, 2], "column": "price"}
    rows = table([[(0, "0.5"), (1, "2")], [(1, "1.5")]], "text")
    rows = rows.append_column("price", pa.array([0.5, 3.0]))
    assert histories(prepared(rows, schema_dict, split=SPLIT), [0, 1])[1] == [[2, 4], [3]]


def test_a_loader_may_group_by_their_length(prepared: Callable[..., Log]) -> None:
    rows = [[(1, "x")] * (k % 5) for k in range(40)]
    log = prepared(table(rows, "lists"), schema(), split=SPLIT)
    loader = Loader(log, log.rows_of("train"), 8, bucket_by_length=True)
    lengths = [batch.histories["h"].offsets.diff().tolist() for batch in loader.epoch(0)]
    assert all(len(set(batch)) == 1 for batch in lengths)


@pytest.mark.parametrize(
    ("column", "values", "separator", "says"),
    [
        ("items", ["1|x", "2"], "|", r"column 'items': text among numbers .*'x'.*; expected whole numbers"),
        ("items", ["1|2", "2"], None, r"column 'items': text; expected a list column\n  Or name the separator"),
        ("items", [1, 2], None, r"column 'items': values of type int64; expected a list column"),
        ("items", [[1.5], [2.0]], None, r"column 'items': ids stored as floats"),
        ("shops", [[1], [2]], None, r"column 'shops': integers among the text of feature 'shop'; expected ids of one"),
        (
            "items",
            [["a"], ["b"]],
            None,
            r"column 'items': text among numbers \(.*'[ab]'.*\); expected whole numbers, as in the feature's own",
        ),
        (
            "items",
            [[1, 2], [3]],
            None,
            r"column 'shops': a row with 1 values of 'shops' and 2 of 'items'; expected lists of one length",
        ),
    ],
)
def test_lists_that_cannot_be_used(
    column: str, values: Any, separator: str | None, says: str, prepared: Callable[..., Log]
) -> None:
    form = "text" if separator else "lists"
    rows = table([[(1, "a")], [(1, "b")]], form)
    rows = rows.set_column(rows.column_names.index(column), column, pa.array(values))
    own = {"separator": separator} if separator else {}
    with pytest.raises(DataError, match=says):
        prepared(rows, schema(**own), split=SPLIT)
