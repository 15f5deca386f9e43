"""Warnings about values that a schema names and no row has: of filters and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_logs import SCHEMA, log, under

from longrec.data.log import Log

Prepared = Callable[..., Log]
KINDS = ["view", "purchase", "view", "cart"] * 10
NUMBERS = np.arange(40) % 4


def warnings(prepared: Prepared, where: Any, **columns: Any) -> list[str]:
    history = {"features": ["item"], "where": where}
    return prepared(
        log(kind=KINDS, n=NUMBERS, x=NUMBERS * 1.0, **columns), SCHEMA | {"histories": {"h": history}}
    ).warnings


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (
            {"kind": "purchse"},
            "history 'h': the value 'purchse' never occurs in column 'kind', so its filter passes nothing and the "
            "history is always empty; the most frequent values are 'view' (20 rows), 'cart' (10 rows), "
            "'purchase' (10 rows) (did you mean 'purchase'?); correct its where",
        ),
        ({"kind": "VIEW"}, "did you mean 'view'?"),
        (
            {"kind": ["cart", "veiw"]},
            "the value 'veiw' never occurs in column 'kind', so 1 of the 2 values of its filter",
        ),
        ({"n": 7}, "the value 7 never occurs in column 'n'"),
        ({"n": {"at_least": 3.5}}, "no row has n of 3.5 or more"),
        ({"x": {"at_least": 4}}, "its values are between 0.0 and 3.0"),
        ({"none": "a"}, "the column has only nulls"),
        ({"kind": "view", "n": [1, 9]}, "the value 9 never occurs"),
    ],
)
def test_a_filter_of_values_that_never_occur_is_reported(prepared: Prepared, where: Any, says: str) -> None:
    (warning,) = warnings(prepared, where, none=[None] * 40)
    assert says in warning


@pytest.mark.parametrize(
    "where", [{"kind": ["view", "cart"]}, {"n": 3}, {"x": 1}, {"n": {"at_least": 3}}, {"x": [0, 2]}]
)
def test_values_that_occur_are_not_reported(prepared: Prepared, where: Any) -> None:
    assert warnings(prepared, where) == []


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (
            {"column": "kind", "equals": "purchse"},
            "no row meets the label's condition equals: 'purchse'; .*did you mean 'purchase'",
        ),
        ({"column": "n", "equals": 9}, "equals: 9; the most frequent values are 0 .10 rows."),
        ({"column": "n", "at_least": 4}, "at_least: 4; its values are between 0 and 3"),
    ],
)
def test_a_label_that_no_row_meets_is_refused(
    tmp_path: Path, refused: Callable[..., None], label: dict[str, Any], says: str
) -> None:
    features = {name: one for name, one in SCHEMA["features"].items() if name != "click"}
    schema = {"label": label, "features": features, "histories": {"h": {"features": ["item"]}}}
    data, changes = under(schema, kind=KINDS, n=NUMBERS)(tmp_path)
    refused(tmp_path, data, changes, says)
