"""Crosses, lookups, several numbers a row and weights inside a text, compared with slow code in plain Python."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import DataError
from longrec.features import compose, feature_encoders
from longrec.features.encoder_fitter import EncoderFitter
from longrec.features.feature import Feature
from longrec.features.feature_encoders import CrossEncoder, NumericListEncoder

quick = settings(deadline=None, max_examples=25)
texts = st.one_of(st.none(), st.sampled_from(["", "a", "é", "07", "a\x1f"]))


def feature(**content: Any) -> Feature:
    return Feature.model_validate(content)


def locate(column: str) -> str:
    return f"column {column}"


CROSS = feature(kind="cross", features=["a", "b"], hash=1000)


@quick
@given(rows=st.lists(st.tuples(st.one_of(st.none(), st.integers(-5, 5)), texts), min_size=1, max_size=8))
def test_a_cross_is_the_hash_of_its_joined_values(rows: list[tuple[int | None, str | None]]) -> None:
    columns = {"a": pa.array([a for a, _ in rows], pa.int32()), "b": pa.array([b for _, b in rows], pa.string())}
    ids = CrossEncoder(1000, 0, (True, False)).encode(compose.compose_column(CROSS, columns, locate), "x")
    for (a, b), id_ in zip(rows, ids.tolist()):
        digest = hashlib.blake2b(f"{a}\x1f{b}".encode(), digest_size=8).digest()
        assert id_ == (0 if a is None or b is None else int.from_bytes(digest, "little") % 1000 + 2)


def test_a_cross_learns_what_its_columns_hold() -> None:
    fitter = EncoderFitter("x", CROSS)
    assert fitter.needs_data()
    for a, b in ((pa.nulls(2), pa.array(["x", "y"])), (pa.array([1, 1]), pa.array(["x", "x"]))):
        columns = {"a": a, "b": b}
        fitter.add_column_types(compose.find_integer_columns(CROSS, columns, locate))
        fitter.add(compose.compose_column(CROSS, columns, locate), np.ones(2, np.int64), "x")
    encoder = fitter.finish()
    assert encoder == CrossEncoder(1000, 1, (True, False))
    assert feature_encoders.load_encoder(feature_encoders.dump_encoder(encoder), None) == encoder
    assert isinstance(encoder, CrossEncoder)
    compose.check_cross_types(encoder, CROSS, {"a": pa.nulls(1), "b": pa.array(["x"])}, locate)
    with pytest.raises(DataError, match="column b: integers, for example 3; expected text, as in the log"):
        compose.check_cross_types(encoder, CROSS, {"a": pa.array([1]), "b": pa.array([None, 3])}, locate)


def test_a_cross_takes_no_floats() -> None:
    with pytest.raises(DataError, match="column b: ids stored as floats"):
        compose.compose_column(CROSS, {"a": pa.array([1]), "b": pa.array([1.5])}, locate)


keys = st.sampled_from(["a", "b", "é", "b:"])
maps = st.one_of(st.none(), st.lists(st.tuples(st.sampled_from("abé"), st.sampled_from(["", "1", "2:3"])), max_size=4))


@quick
@given(rows=st.lists(st.tuples(maps, st.one_of(st.none(), keys)), min_size=1, max_size=8))
def test_a_lookup_finds_the_first_value_of_its_key(rows: list[Any]) -> None:
    text = [None if pairs is None else ",".join(f"{k}:{v}" for k, v in pairs) for pairs, _ in rows]
    looked = feature(kind="lookup", map="m", key="k")
    columns = {"m": pa.array(text, pa.string()), "k": pa.array([key for _, key in rows], pa.string())}
    expected = [next((v for k, v in pairs or [] if k == key), None) for pairs, key in rows]
    assert compose.compose_column(looked, columns, locate).to_pylist() == expected


nested = st.one_of(st.none(), st.lists(st.tuples(st.sampled_from("xy"), maps), max_size=3))


@quick
@given(rows=st.lists(st.tuples(nested, st.sampled_from(["x", "y", None]), keys), min_size=1, max_size=8))
def test_a_map_of_maps_is_looked_in_by_two_keys(rows: list[Any]) -> None:
    def write_map(outer: Any) -> str | None:
        inside = [(name, ",".join(f"{k}:{v}" for k, v in pairs or [])) for name, pairs in outer or []]
        return None if outer is None else "|".join(f"{name}^{text}" for name, text in inside)

    columns = {
        "m": pa.array([write_map(outer) for outer, _, _ in rows], pa.string()),
        "o": pa.array([name for _, name, _ in rows], pa.string()),
        "k": pa.array([key for _, _, key in rows], pa.string()),
    }
    for outer_key, those in (("o", lambda name, row: name == row[1]), (None, lambda name, row: True)):
        expected = [
            next((v for name, pairs in row[0] or [] if those(name, row) for k, v in pairs or [] if k == row[2]), None)
            for row in rows
        ]
        nested_lookup = feature(kind="lookup", map="m", key="k", outer_separator="|", outer_key=outer_key)
        assert compose.compose_column(nested_lookup, columns, locate).to_pylist() == expected


def test_a_lookup_becomes_a_number_or_a_bucket() -> None:
    columns = {"m": pa.array([["1=2.5", "2=x"], ["1="], None]), "k": pa.array([1, 1, 1])}
    dense = feature(kind="lookup", map="m", key="k", pair_separator="=", **{"as": "numeric"}, missing=7)
    values = compose.compose_column(dense, columns, locate)
    assert values.to_pylist() == [2.5, None, None]
    assert EncoderFitter("x", dense).finish().encode(values, "x").tolist() == [2.5, 7.0, 7.0]  # type: ignore[union-attr]
    bucket = feature(kind="lookup", map="m", key="k", pair_separator="=", **{"as": "bucketized"}, edges=[1, 3])
    assert EncoderFitter("x", bucket).finish().encode(values, "x").tolist() == [3, 0, 0]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="column m: text, for example 'x'; expected numbers"):
        compose.compose_column(dense, {"m": columns["m"], "k": pa.array([2, 2, 2])}, locate)


@pytest.mark.parametrize(
    ("maps", "says"),
    [
        (pa.array(["a:1,b"]), "column m: the pair 'b'; expected text such as key:value"),
        (pa.array([[1]]), "column m: values of type int64; expected text such as key:value"),
        (pa.array([1]), "column m: values of type int64; expected a list column, or text"),
    ],
)
def test_maps_that_are_none(maps: pa.Array, says: str) -> None:
    with pytest.raises(DataError) as raised:
        compose.compose_column(feature(kind="lookup", map="m", key="k"), {"m": maps, "k": pa.array(["a"])}, locate)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1|2.5|-3", None, "", "4||5e1", " 6 |7|8"]),
        pa.array([[1, 2.5, -3], None, None, [4, None, 50], [6, 7, 8]]),
        pa.array([[1, 2.5, -3], None, None, [4, None, 50], [6, 7, 8]], pa.list_(pa.float32(), 3)),
        pa.array(["1|2.5|-3", None, "", "4||5e1", " 6 |7|8"]).dictionary_encode(),
        pa.array(["1|2.5|-3", None, "", "4||5e1", " 6 |7|8"], pa.large_string()),
    ],
    ids=["text", "lists", "fixed lists", "dictionary", "large text"],
)
def test_several_numbers_a_row(column: pa.Array) -> None:
    encoder = NumericListEncoder("raw", 0.5, 3, "|")
    expected = [[1, 2.5, -3], [0.5] * 3, [0.5] * 3, [4, 0.5, 50], [6, 7, 8]]
    encoded = encoder.encode(column, "x")
    assert encoded.dtype == np.float32
    assert encoded.tolist() == expected
    assert feature_encoders.load_encoder(feature_encoders.dump_encoder(encoder), None) == encoder
    logs = NumericListEncoder("log", 0.5, 3, "|").encode(column, "x")
    np.testing.assert_allclose(logs, np.sign(expected) * np.log1p(np.abs(expected)), rtol=1e-6)


def test_one_number_a_row_and_none() -> None:
    assert NumericListEncoder("raw", 9.0, 1, "|").encode(pa.array(["1", "", None]), "x").tolist() == [
        [1.0],
        [9.0],
        [9.0],
    ]
    assert NumericListEncoder("raw", 9.0, 2, None).encode(pa.nulls(2), "x").tolist() == [[9.0, 9.0]] * 2
    assert NumericListEncoder("raw", 9.0, 2, None).encode(pa.array([], pa.list_(pa.int64())), "x").shape == (0, 2)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array(["1|2", "1|2|3"]), "x: 3 numbers in row 1: 1|2|3; expected 2 in every row, as width says"),
        (pa.array(["1|2", "1|b"]), "x: text, for example 'b'; expected numbers"),
        (pa.array([[1.0], [1.0, 2.0]]), "x: 1 numbers in row 0: [1.0]; expected 2 in every row"),
        (pa.array([1.0]), "x: values of type double; expected a list column, or text with a separator"),
    ],
)
def test_numbers_that_do_not_fit(column: pa.Array, says: str) -> None:
    with pytest.raises(DataError) as raised:
        NumericListEncoder("raw", 0.0, 2, "|").encode(column, "x")
    assert says in str(raised.value)


def test_weights_stand_in_the_text() -> None:
    tags = feature(kind="multi_id", separator="|", weight_separator=":")
    text = pa.array(["a:0.5|b:1e-1", None, "c", "", ":2|d:e: 3 "])
    values, offsets, weights = compose.split_multi_values(tags, text, "x")
    assert values.to_pylist() == ["a", "b", "c", None, "d:e"]
    assert offsets.tolist() == [0, 2, 2, 3, 3, 5]
    assert weights is not None
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, np.array([0.5, 0.1, 1, 2, 3], np.float32))
    _, offsets, weights = compose.split_multi_values(tags, pa.nulls(2), "x")
    assert (offsets.tolist(), weights.tolist()) == ([0, 0, 0], [])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array(["a:b"]), "x: weights: text, for example 'b'; expected numbers"),
        (pa.array(["a:"]), "x: weights: no number in 'a:'; expected a weight after the separator"),
        (pa.array([[1, 2]]), "x: values of type int64; expected text such as value:0.5"),
    ],
)
def test_weights_that_are_none(column: pa.Array, says: str) -> None:
    with pytest.raises(DataError) as raised:
        compose.split_multi_values(feature(kind="multi_id", separator="|", weight_separator=":"), column, "x")
    assert says in str(raised.value)
