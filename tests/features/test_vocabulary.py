"""Keys: exact ids, integers or text, with equal indices from every way of lookup."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import DataError
from longrec.features import vocabulary
from longrec.features.vocabulary import Keys, build_array, cast_keys

quick = settings(deadline=None, max_examples=25)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([3, None, 2**62], pa.int64()), [3, None, 2**62]),
        (pa.array([3, 255], pa.uint8()), [3, 255]),
        (pa.array([2**63 - 1], pa.uint64()), [2**63 - 1]),
        (pa.array([-(2**63)], pa.int64()), [-(2**63)]),
        (pa.array([True, False, None]), [1, 0, None]),
        (pa.array(["a", None, ""]), ["a", None, ""]),
        (pa.array(["a", "é"], pa.large_string()), ["a", "é"]),
        (pa.array(["b", "a", "b", None]).dictionary_encode(), ["b", "a", "b", None]),
        (pa.array([7, 9, 7]).dictionary_encode(), [7, 9, 7]),
        (pa.chunked_array([["a"], ["b", None]]), ["a", "b", None]),
        (pa.chunked_array([], pa.int32()), []),
        (pa.nulls(2), [None, None]),
    ],
)
def test_ids_become_int64_or_text_exactly(array: pa.Array, expected: list[Any]) -> None:
    keys = cast_keys(array, "x")
    assert keys.to_pylist() == expected
    assert keys.type in (pa.int64(), pa.string())


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (pa.array([1.0, 2.5]), r"^x: ids stored as floats \(double\); expected 64-bit integers or strings"),
        (pa.array([float(2**53 + 2)]), r"ids stored as floats \(double\), the largest 9007199254740994"),
        (pa.array([2.0**24, None], pa.float32()), r"ids stored as floats \(float\)"),
        (pa.array([1.0, float("inf")]), "ids stored as floats"),
        (pa.array([2**63], pa.uint64()), r"integers above 2\*\*63 - 1; expected signed 64-bit integers or strings"),
        (pa.array([0], pa.date32()), r"ids of type date32\[day\]; expected 64-bit integers or strings"),
        (pa.array([[1]]), r"ids of type list<item: int64>"),
        (pa.array([1.5, 2.5]).dictionary_encode(), r"ids stored as floats"),
    ],
)
def test_what_cannot_be_an_id(array: pa.Array, says: str) -> None:
    with pytest.raises(DataError, match=says):
        cast_keys(array, "x")


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_whole_floats_are_integers(kind: pa.DataType) -> None:
    """As pandas writes a column of integers with nulls."""
    array = pa.array(np.array([3, -2, np.nan, 0], kind.to_pandas_dtype()), kind)
    assert cast_keys(array, "x").to_pylist() == [3, -2, None, 0]
    assert cast_keys(pa.array([2.0**53 - 1, None]), "x").to_pylist() == [2**53 - 1, None]
    assert cast_keys(pa.array([], kind), "x").type == pa.int64()


def test_indices_of_keys_follow_their_order() -> None:
    numbers = Keys(pa.array([50, -3, 7]))
    assert numbers.index(pa.array([7, 50, 8, None, -3]), "x").tolist() == [2, 0, -1, -1, 1]
    texts = Keys(pa.array(["b", "a"]))
    assert texts.index(pa.array(["a", "b", "c", None, ""]), "x").tolist() == [1, 0, -1, -1, -1]
    assert texts.find("a", "x") == 1
    assert texts.find("zz", "x") == -1
    assert len(texts) == 2


def test_ids_above_2_to_the_53_stay_distinct() -> None:
    big = [2**53, 2**53 + 1, 2**53 + 2, 2**62, 2**62 + 1]
    keys = Keys(pa.array(big))
    assert keys.index(pa.array(big), "x").tolist() == [0, 1, 2, 3, 4]
    assert keys.index(pa.array(big * 1_000), "x").tolist() == [0, 1, 2, 3, 4] * 1_000


@pytest.mark.parametrize("keys", [Keys(pa.array([], pa.int64())), Keys(pa.array([], pa.string()))])
def test_no_keys_at_all(keys: Keys) -> None:
    assert keys.index(pa.array([1, 2]), "x").tolist() == [-1, -1]
    assert keys.index(pa.array(["a"]), "x").tolist() == [-1]
    assert keys.index(pa.array([], pa.int64()), "x").tolist() == []


def test_text_looked_up_among_numbers_and_the_other_way_round() -> None:
    with pytest.raises(DataError, match=r"^user: text, for example 'a'; expected integers, as in the log\n  Write the"):
        Keys(pa.array([1])).index(pa.array([None, "a"]), "user")
    with pytest.raises(DataError, match=r"^user: integers, for example 7; expected text, as in the log"):
        Keys(pa.array(["a"])).index(pa.array([None, 7]), "user")
    assert Keys(pa.array(["a"])).index(pa.nulls(2, pa.int64()), "user").tolist() == [-1, -1]


@quick
@given(
    st.one_of(
        st.tuples(
            st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=20),
            st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=20),
        ),
        st.tuples(
            st.lists(st.text(max_size=4), unique=True, max_size=20),
            st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=20),
        ),
    ),
    st.randoms(),
)
def test_the_way_for_few_and_the_way_for_many_agree(case: tuple[list[Any], list[Any]], random: Any) -> None:
    values, queries = case
    kind = pa.string() if any(isinstance(value, str) for value in [*values, *queries]) else pa.int64()
    queries = queries + random.sample(values, len(values) // 2)
    random.shuffle(queries)
    keys, array = Keys(pa.array(values, kind)), pa.array(queries, kind)
    few = keys.index(array, "x")
    repeats = vocabulary._FEW // max(len(queries), 1) + 1
    many = keys.index(pa.concat_arrays([array] * repeats), "x") if queries else few
    expected = [values.index(value) if value in values else -1 for value in queries]
    assert few.tolist() == expected
    assert few.dtype == many.dtype == np.int32
    assert many.tolist() == expected * (repeats if queries else 1)


def test_python_values_become_a_column() -> None:
    assert build_array([1, None, 3], "x").to_pylist() == [1, None, 3]
    for mixed in ([1, "a"], ["a", 1], [1, [2]]):
        with pytest.raises(DataError, match=r"^x: values of the types .*; expected one type: whole numbers or text"):
            build_array(mixed, "x")


def test_reading_a_file_of_keys_imports_no_pandas(tmp_path: Path) -> None:
    for values in (pa.array([7, 2**62, -1]), pa.array(["b", "a", ""])):
        pq.write_table(pa.table({"other": [1, 2, 3], "key": values}), tmp_path / "keys.parquet")
        keys = Keys.read(tmp_path / "keys.parquet", "key")
        assert keys.values.equals(values)
    code = (
        "import sys, pathlib; from longrec.features.vocabulary import Keys; "
        "print(len(Keys.read(pathlib.Path('keys.parquet'), 'key'))); "
        "print(*sys.modules.keys() & {'pandas', 'pyarrow.dataset'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3"], done.stderr
