"""Configured vocabularies beside a log: of every owner and kind of column, offline and in a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_logs import SCHEMA, log

from longrec.data.log import Log
from longrec.features.feature_encoders import IdEncoder

Prepared = Callable[..., Log]


def encoder_of(opened: Log, feature: str) -> IdEncoder:
    encoder = opened.fitted.encoders[feature]
    assert isinstance(encoder, IdEncoder)
    return encoder


@pytest.mark.parametrize(
    ("feature", "column", "values"),
    [
        ({"kind": "id", "column": "item"}, None, None),
        ({"kind": "id", "column": "user"}, None, None),
        ({"kind": "id", "column": "n"}, "n", np.arange(40) % 6),
        ({"kind": "id", "column": "n", "side": "candidate"}, "n", np.arange(40) % 6),
        ({"kind": "multi_id", "column": "n"}, "n", [[n % 6, 1] for n in range(40)]),
        ({"kind": "multi_id", "column": "n", "separator": " "}, "n", [f"{n % 6} 1" for n in range(40)]),
        ({"kind": "lookup", "map": "n", "key": "item"}, "n", ["0:0,1:1,2:2,3:3,4:4,5:5"] * 40),
    ],
)
def test_one_text_file_serves_every_kind_of_column(
    prepared: Prepared, tmp_path: Path, feature: dict[str, Any], column: str | None, values: Any
) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("".join(f"{n}\n" for n in range(6)))
    schema = SCHEMA | {"features": {**SCHEMA["features"], "x": {**feature, "vocab": str(file)}}}
    opened = prepared(log(**({} if column is None else {column: values})), schema)
    text = "separator" in feature or feature["kind"] == "lookup"
    assert encoder_of(opened, "x").keys.values.to_pylist() == [str(n) if text else n for n in range(6)]
    assert opened.warnings == []


def test_a_vocabulary_none_of_whose_values_occurs_is_reported(prepared: Prepared) -> None:
    odd = {
        "page": {"kind": "id", "vocab": ["Home", "search"]},
        "i": {"kind": "id", "column": "item", "vocab": [70, 71]},
    }
    features = {**SCHEMA["features"], **odd}
    opened = prepared(log(), SCHEMA | {"features": features})
    assert [warning.partition(":")[0] for warning in opened.warnings] == ["feature 'page'", "feature 'i'"]
    assert "none of the 2 values of its vocabulary" in opened.warnings[0]
    assert "'Home'" in opened.warnings[0]


def test_a_vocabulary_of_a_table_with_versions_is_held_to_its_versions(prepared: Prepared) -> None:
    features = {**SCHEMA["features"], "brand": {"kind": "id", "side": "item", "vocab": ["a", "b"]}}
    for brand, n_warnings in (("a", 0), ("z", 1)):
        items = pa.table({"item": [1, 1, 2], "since": [0, 5, 0], "brand": [brand] * 3})
        schema = SCHEMA | {"features": features}
        warnings = prepared(log(), schema, items=items, as_of={"items": "since"}).warnings
        assert sum("values of its vocabulary" in warning for warning in warnings) == n_warnings


def test_requests_bring_keys_in_the_type_of_the_column(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("3\n5\n")
    features = {**SCHEMA["features"], "n": {"kind": "id", "vocab": str(tmp_path / "v.txt")}}
    opened = prepared(log(n=np.arange(40) % 6), SCHEMA | {"features": features})
    assert opened.fitted.encode("n", pa.array([5, 4, None]), "context.n").tolist() == [3, 1, 0]
