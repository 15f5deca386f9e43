"""Requests that are large, deep or odd: refused with the field, before they cost more than their reading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
import row_shop
import shop

from longrec import errors
from longrec.errors import DataError, RequestError
from longrec.exporting.catalog_table import _cast
from longrec.features import raw_columns
from longrec.features.compose import split_multi_values
from longrec.features.feature import Feature
from longrec.features.feature_encoders import NumericEncoder
from longrec.features.schema import TimeColumn
from longrec.pipeline.candidates import to_key_array
from longrec.serve import request_json
from longrec.serve.histories import check_names
from longrec.serve.request_json import count_marks, decode_items, decode_request
from longrec.serve.request_time import parse_request_time
from longrec.serve.service import Service

MANY = {f"k{number}": None for number in range(1_000_000)}
NEW = {"price": 3.5, "genres": ["b", "zz"], "actors": [4, 5], "fame": [1.0, 2.0], "year": 2031}


def catch(call: Any, *arguments: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    assert len(str(caught.value)) < 2_000
    return caught.value


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which each comparison of a name is added."""
    names: list[str] = []
    monkeypatch.setattr(errors.difflib, "get_close_matches", lambda name, *_, **__: names.append(name) or [])
    return names


@pytest.fixture(scope="module")
def ranker(full: shop.Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("limits")
    shutil.copytree(full.bundle, folder / "bundle")
    opened = Service(folder / "bundle")
    yield opened
    opened.close()


def test_a_million_unknown_names_cost_five_comparisons(compared: list[str]) -> None:
    error = catch(check_names, "context", MANY, {"age": 1}, "write null")
    assert error.found.startswith("the unknown key 'k0'; the unknown key 'k1'")
    assert error.found.endswith("and 999,995 more; no 'age'")
    assert len(compared) == 5


@pytest.mark.parametrize("field", ["context", "candidate_context", "history", "feedback"])
def test_a_body_of_a_million_names_is_not_decoded(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = orjson.dumps({"user": 1, "item": 2, "candidates": [1], field: MANY})
    monkeypatch.setattr(request_json, "_DECODER", None)
    monkeypatch.setattr(request_json, "_EVENTS", None)
    decode = request_json.decode_event if field == "feedback" else decode_request
    error = catch(decode, body)
    assert (error.status, error.where) == (413, "body")
    assert error.found == "1,000,004 names of fields and columns"


def test_changes_of_items_have_a_hundred_names_each() -> None:
    assert catch(decode_items, orjson.dumps({"items": [MANY]})).expected == "at most 10,200"
    names = {f"k{number}": None for number in range(50)}
    assert len(decode_items(orjson.dumps({"items": [names] * 1_000}))) == 1_000
    assert catch(decode_items, b'{"items":[' + b"{}," * 10_000 + b"{}]}").found == "10,001 items"


def test_marks_in_texts_are_not_counted() -> None:
    text = {"a\\": '":[{', "b": [{"c": "\\"}, 'x"', ["\\\\", '\\"']], "": {}}
    assert count_marks(json.dumps(text).encode(), ":[{") == [4, 2, 3]
    lookup = "k:v," * 100_000
    assert decode_request(orjson.dumps({"user": 1, "candidates": [1], "context": {"x": lookup}})).context["x"] == lookup


def test_five_million_lists_are_not_decoded() -> None:
    body = b'{"user":1,"candidates":[1],"context":{"x":[' + b"[]," * 1_000_000 + b"[]]}}"
    assert catch(decode_request, body).found == "1,000,003 lists"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x" * 10**6, "the unknown key 'xxx"),
        (" - at `$" * 10**5, "the unknown key ' - at `$"),
        ("a` - at `$.user", "the"),
    ],
)
def test_an_unknown_field_may_have_any_name(name: str, shown: str, compared: list[str]) -> None:
    error = catch(decode_request, orjson.dumps({"user": 1, "candidates": [1], name: 1}))
    assert error.status == 422
    assert error.found.startswith(shown)
    assert len(compared) <= 1


@pytest.mark.parametrize("text", ["9" * 10**6 + "x", " " * 10**6 + "x", "2026-01-01" + " " * 10**6])
def test_a_long_text_is_no_timestamp(text: str) -> None:
    error = catch(parse_request_time, text, TimeColumn(column="t"), 0)
    assert (error.where, error.expected) == ("at", "a timestamp of at most 100")


def test_a_long_text_among_integers_stays_small() -> None:
    keys = to_key_array([1, "x" * 10**6, *range(2, 5_000)])
    assert keys.dtype == object  # as texts of one width they would take 20 GB


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59.999Z", "0001-01-01", -(2**63), 2**63, 10**400, 1e308, -0.0])
def test_a_timestamp_at_the_ends_of_time(at: Any, full: shop.Shop, ranker: Service) -> None:
    body = json.dumps({**full.golden[0].request, "at": at}).encode()
    if isinstance(at, str):
        assert all(0 < item["score"] < 1 for item in orjson.loads(ranker.answer(body))["items"])
    else:
        assert catch(ranker.answer, body).where == "at"


@pytest.mark.parametrize("value", ["1" + "0" * 400, str(2**63), "9" * 5_000, "1e400"])
def test_a_number_beyond_64_bits_is_refused(value: str, full: shop.Shop, ranker: Service) -> None:
    request = {**full.golden[0].request}
    for column in request["context"]:
        body = json.dumps({**request, "context": {**request["context"], column: "hole"}}).replace('"hole"', value)
        error = catch(ranker.answer, body.encode())
        assert error.status == 422
        assert error.where in (f"context.{column}", "context[...]")
        assert "64" in error.found + error.expected


def test_values_of_a_context_are_counted(full: shop.Shop, ranker: Service) -> None:
    request = full.golden[0].request
    context = {**request["context"], "tags": ["a"] * 10_001, "tag_weights": [1.0] * 10_001}
    error = catch(ranker.answer, orjson.dumps({**request, "context": context}))
    assert (error.where, error.found, error.expected) == ("context.tags", "10,001 values", "at most 10,000")


def test_a_value_repeated_for_candidates_is_bounded(
    exported: row_shop.ExportedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, row = Service(exported.bundle), row_shop.sort_rows(exported)[0]
    request = row_shop.build_request(service, row, [])
    request["context"]["page"] = "p" * 1_000
    service.answer(orjson.dumps(request))
    monkeypatch.setattr(raw_columns, "MAX_REPEATED", 999)
    error = catch(service.answer, orjson.dumps(request))
    assert (error.where, error.found) == ("context.page", "1,000 characters for 1 candidates")


@pytest.mark.parametrize("number", [1e39, -1e39, 1e308])
@pytest.mark.parametrize("column", ["stats", "tags", "discount", "words", "label_weights", "sizes"])
def test_a_number_beyond_float32_never_reaches_a_feature(
    column: str, number: float, exported: row_shop.ExportedLog
) -> None:
    service, row = Service(exported.bundle), row_shop.sort_rows(exported)[0]
    request = row_shop.build_request(service, row, [])
    one: dict[str, Any] = {"stats": [number, 1.0], "tags": f"t1:{number}", "words": f"w:{number}", "discount": number}
    one |= {"labels": ["a"], "label_weights": [number], "sizes": f"1;{number};2"}
    if column in request["context"]:
        request["context"][column] = one[column]
    else:
        request["candidate_context"] |= {"labels": [["a"]], "label_weights": [[1.0]], column: [one[column]]}
    if column == "discount":  # of scale log, which is finite
        (item,) = orjson.loads(service.answer(orjson.dumps(request)))["items"]
        assert 0 <= item["score"] <= 1
        return
    error = catch(service.answer, orjson.dumps(request))
    assert error.status == 422
    assert error.where.split(":")[0].split(".")[1] in (column, "labels")
    assert "beyond the range of float32" in error.found


def test_offline_numbers_beyond_float32_are_refused_too() -> None:
    feature = Feature.model_validate({"kind": "multi_id", "separator": "|", "weight_separator": ":"})
    with pytest.raises(DataError, match=r"x: weights: 1e\+39 at row 0, beyond the range of float32"):
        split_multi_values(feature, pa.array(["a:1e39"]), "x")
    with pytest.raises(DataError, match="beyond the range of float32"):
        NumericEncoder("standard", 0.0, 1e-300, 0.0).encode(pa.array([1e300]), "x")
    assert np.isfinite(NumericEncoder("log", 0.0, 1.0, 0.0).encode(pa.array([1e300]), "x")).all()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("price", 2**63), ("price", "text"), ("price", True), ("year", 1e39), ("year", 2**64), ("year", 2.5),
        ("genres", {"a": 1}), ("genres", [[1]]), ("fame", [1e39, 1.0]), ("actors", [2**70, 1]),
    ],
)  # fmt: skip
def test_a_change_of_an_item_that_does_not_fit(column: str, value: Any, ranker: Service) -> None:
    body = json.dumps({"items": [{"item_id": "n1", **NEW}, {"item_id": "n2", **NEW, column: value}]}).encode()
    error = catch(ranker.change_items, body)
    assert error.status == 422
    assert ranker.served.catalog.changes.items == {}


@pytest.mark.parametrize("value", [[["a"]], ["a", []], [{"a": 1}], {"a": 1}, json.loads("[" * 500 + "]" * 500)])
def test_a_value_is_plain_or_a_list(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_columns, "build_array", None)  # Arrow takes long to type a deep list
    for values in ([value], [None, value], [value, 1]):
        with pytest.raises(DataError, match=r"x: an? (object|list of lists or objects); expected a number, a text"):
            raw_columns.build_raw_column(values, "x")


@pytest.mark.parametrize("depth", [17, 500])
def test_a_change_of_deep_lists(depth: int, ranker: Service) -> None:
    body = json.dumps({"items": [{"item_id": "n1", **NEW, "genres": "hole"}]}).replace(
        '"hole"', "[" * depth + "]" * depth
    )
    assert catch(ranker.change_items, body.encode()).found == "more than 16 lists inside each other"


def test_a_raw_column_of_float32_stays_finite() -> None:
    assert _cast([1.5, None, 2], pa.float32(), "x").to_pylist() == [1.5, None, 2.0]
    for beyond in (1e39, 10**30):
        with pytest.raises(DataError, match="expected a value of type float, or null"):
            _cast([beyond], pa.float32(), "x")


@pytest.mark.parametrize("field", ["user", "candidates", "context.device"])
def test_a_text_of_a_million_letters_is_cut(field: str, full: shop.Shop, ranker: Service) -> None:
    request = {**full.golden[0].request}
    request["user"] = "u" * 10**6 if field == "user" else request["user"]
    request["candidates"] = ["c" * 10**6, *request["candidates"]] if field == "candidates" else request["candidates"]
    if field == "context.device":
        request["context"] = {**request["context"], "campaign": "d" * 10**6}
    error = catch(ranker.answer, orjson.dumps(request))
    assert "... (1,000,000 characters)" in error.found


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\udc00\\ud800"', '"\xff"'])
def test_half_of_a_surrogate_pair_is_no_json(text: str, full: shop.Shop, ranker: Service) -> None:
    valid = json.dumps({**full.golden[0].request, "user": "hole"}).replace('"hole"', text).encode("latin-1")
    assert catch(ranker.answer, valid).status == 400
    name = json.dumps({**full.golden[0].request, "hole": 1}).replace('"hole"', text).encode("latin-1")
    assert catch(ranker.answer, name).status == 400
