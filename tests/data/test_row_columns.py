"""Candidates' columns, several numbers, crosses, lookups and shared ids, through preparation to a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from longrec.data.entity_batches import build_item_batch, build_user_batch
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.errors import DataError
from longrec.features.batch import Jagged
from longrec.features.feature_encoders import CrossEncoder, IdEncoder
from longrec.features.schema import Schema

SPLIT = {"by": "column", "column": "part"}
BASE: dict[str, Any] = {
    "user": [1, 2, 1, 2],
    "item": ["a", "b", "b", "c"],
    "t": [4, 3, 2, 1],
    "click": [0, 1, 1, 0],
    "part": ["train", "train", "train", "test"],
    "brand": ["x", None, "y", "z"],
    "seen_brand": ["q", "x", "w", None],
    "sizes": ["1;2", None, "3;", "5;6"],
    "words": ["k:0.5|l", "", None, "m:2"],
    "prices": ["x:1,y:2", "x:3", "y:4,y:5", None],
}
FEATURES: dict[str, Any] = {
    "user": {"kind": "id"},
    "item": {"kind": "id"},
    "brand": {"kind": "id", "side": "candidate", "dim": 6},
    "seen": {"kind": "id", "share": "brand", "column": "seen_brand"},
    "sizes": {"kind": "numeric", "width": 2, "separator": ";", "missing": -1},
    "words": {"kind": "multi_id", "separator": "|", "weight_separator": ":"},
    "both": {"kind": "cross", "features": ["brand", "item"], "hash": 1000},
    "price": {"kind": "lookup", "map": "prices", "key": "brand", "as": "numeric", "missing": 9},
    "price_id": {"kind": "lookup", "map": "prices", "key": "brand"},
}
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "features": FEATURES,
    "histories": {"past": {"features": ["item", "brand", "both", "price_id"]}},
}


def hashed(*values: Any) -> int:
    digest = hashlib.blake2b("\x1f".join(map(str, values)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 1000 + 2


@pytest.fixture(scope="module")
def log(prepared: Callable[..., Log]) -> Log:
    return prepared(pa.table(BASE), SCHEMA, split=SPLIT)


def test_every_column_by_hand(log: Log) -> None:
    batch = gather(log, np.arange(4))  # sorted: user 1 at 2 and 4, user 2 at 1 and 3; rows 2, 0, 3, 1 of the file
    features: dict[str, Any] = dict(batch.features)
    assert features["brand"].tolist() == [5, 4, 1, 0]  # brands and seen brands of training: q w x y
    assert features["seen"].tolist() == [3, 2, 0, 4]
    torch.testing.assert_close(features["sizes"], torch.tensor([[3.0, -1], [1, 2], [5, 6], [-1, -1]]))
    assert isinstance(features["words"], Jagged)
    assert features["words"].values.tolist() == [2, 3, 1]
    assert features["words"].offsets.tolist() == [0, 0, 2, 3, 3]
    assert features["words"].weights is not None
    assert features["words"].weights.tolist() == [0.5, 1.0, 2.0]
    assert features["both"].tolist() == [hashed("y", "b"), hashed("x", "a"), hashed("z", "c"), 0]
    assert features["price"].tolist() == [4.0, 1.0, 9.0, 9.0]
    assert features["price_id"].tolist() == [3, 2, 0, 0]
    history = batch.histories["past"]
    assert history.offsets.tolist() == [0, 0, 1, 1, 2]
    columns = {name: column.tolist() for name, column in history.columns.items()}  # type: ignore[union-attr]
    assert columns["brand"] == [5, 1]
    assert columns["both"] == [hashed("y", "b"), hashed("z", "c")]
    assert columns["price_id"] == [3, 0]


def test_what_a_model_gets_to_know(log: Log) -> None:
    fields = {field.name: field for field in log.fields().features}
    assert [fields[name].side for name in ("brand", "seen", "both", "price")] == ["item", "context", "item", "item"]
    assert (fields["sizes"].kind, fields["sizes"].width, fields["sizes"].rows) == ("numbers", 2, 0)
    assert (fields["words"].kind, fields["words"].weighted) == ("multi_id", True)
    assert (fields["price"].kind, fields["price_id"].kind, fields["both"].rows) == ("numeric", "id", 1002)
    assert (fields["seen"].owner, fields["seen"].dim, fields["seen"].rows) == ("brand", 6, fields["brand"].rows)
    assert [field.name for field in log.fields().target_columns("past")] == ["item", "brand", "both", "price_id"]


def test_shared_ids_are_kept_once(log: Log) -> None:
    assert log.fitted.encoders["seen"] is log.fitted.encoders["brand"]
    assert isinstance(log.fitted.encoders["brand"], IdEncoder)
    assert not (log.folder / "schema" / "vocab.seen.parquet").exists()
    assert set(log.manifest["hash_collisions"]) == {"both"}
    assert log.events.columns["sizes"].shape == (4, 2)


def test_users_and_items_by_themselves(log: Log) -> None:
    for batch in (build_user_batch(log, np.array([1, 2]), 5), build_item_batch(log, np.array([1, 2, 3]), 5)):
        features: dict[str, Any] = dict(batch.features)
        assert features["sizes"].tolist() == [[-1.0, -1.0]] * batch.size
        assert features["both"].tolist() == features["brand"].tolist() == [0] * batch.size
        assert features["words"].weights.tolist() == []


def test_numbers_and_weights_of_an_item_table(prepared: Callable[..., Log]) -> None:
    items = pa.table({"item": ["a", "c"], "size": [[1.0, 2.0], None], "tags": ["k:2|l", None]})
    features = {
        "size": {"kind": "numeric", "side": "item", "width": 2, "missing": 7},
        "tags": {"kind": "multi_id", "side": "item", "separator": "|", "weight_separator": ":"},
    }
    log_with_items = prepared(pa.table(BASE), {**SCHEMA, "features": FEATURES | features}, items=items, split=SPLIT)
    columns: dict[str, Any] = dict(gather(log_with_items, np.arange(4)).features)
    assert columns["size"].tolist() == [[7.0, 7.0], [1.0, 2.0], [7.0, 7.0], [7.0, 7.0]]
    assert columns["tags"].weights.tolist() == [2.0, 1.0]


def test_shared_hashes(prepared: Callable[..., Log]) -> None:
    features = FEATURES | {"brand": {"kind": "id", "side": "candidate", "hash": 500}}
    columns: dict[str, Any] = dict(
        gather(prepared(pa.table(BASE), {**SCHEMA, "features": features}, split=SPLIT), np.arange(4)).features
    )
    assert columns["brand"][1] == columns["seen"][3] != 0  # both x


@pytest.mark.parametrize(
    ("columns", "features", "says"),
    [
        ({"sizes": ["1;2", "", "3;4;5", "5;6"]}, {}, "column 'sizes': 3 numbers in row 3: 3;4;5; expected 2"),
        ({"sizes": [[1, 2], [3], None, [5, 6]]}, {}, r"column 'sizes': 1 numbers in row 2: \[3\]; expected 2"),
        ({"sizes": ["1;2", "", "3;b", "5;6"]}, {}, "column 'sizes': text, for example 'b'; expected numbers"),
        ({"sizes": [1, 2, 3, 4]}, {}, "column 'sizes': values of type int64; expected a list column"),
        ({"words": ["k:0.5|l:x", "", "", ""]}, {}, "column 'words': weights: text, for example 'x'; expected numbers"),
        ({"prices": ["x", "", "", ""]}, {}, "column 'prices': the pair 'x'; expected text such as key:value"),
        ({"prices": ["x:k", "", "", ""]}, {}, "column 'prices': text, for example 'k'; expected numbers"),
        ({"brand": [0.5, 1, 2, 3]}, {"seen": None, "brand": None}, "column 'brand': ids stored as floats"),
        ({"seen_brand": [1, 2, 3, 4]}, {}, "column 'seen_brand': integers among the text of feature 'brand'"),
        ({}, {"both": {"kind": "cross", "features": ["brnd", "item"], "hash": 9}}, "no column 'brnd' .feature both."),
    ],
)
def test_columns_that_cannot_be_used(
    columns: dict[str, Any], features: dict[str, Any], says: str, prepared: Callable[..., Log]
) -> None:
    kept = {name: one for name, one in (FEATURES | features).items() if one is not None}
    history = {"features": [name for name in SCHEMA["histories"]["past"]["features"] if name in kept]}
    with pytest.raises(DataError, match=says):
        prepared(pa.table(BASE | columns), {**SCHEMA, "features": kept, "histories": {"past": history}}, split=SPLIT)


def test_zeros_of_a_csv_stay_in_a_cross(tmp_path: Path) -> None:
    # The zero is far beyond the rows that are read first.
    rows = "".join(f"1,2,{n},0,1,1,a\n" for n in range(3_000)) + "1,2,3000,1,1,01,a\n"
    (tmp_path / "log.csv").write_text("user,item,t,click,price,size,page\n" + rows)
    features = {"user": {"kind": "id"}, "x": {"kind": "cross", "features": ["size", "page"], "hash": 9}}
    schema = {"user": "user", "item": "item", "time": {"column": "t", "unit": "step"}, "features": features}
    data = {"log": str(tmp_path / "log.csv"), "folder": str(tmp_path / "prepared"), "threads": 1}
    folder = prepare(DataConfig.model_validate(data), Schema.model_validate(schema))
    encoder = Log.open(folder).fitted.encoders["x"]
    assert isinstance(encoder, CrossEncoder)
    assert encoder.numeric == (False, False)
