"""Configured vocabularies: read in the type of the encoded column, whole numbers or text, without losing a digit."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.errors import DataError
from longrec.features.configured_vocabulary import read_vocabulary


def values(folder: Path, name: str, content: str | bytes, integers: bool) -> list[object]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_vocabulary(str(folder / name), "x", integers).to_pylist()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.txt", "12\n-3\n0\n"),
        ("v.txt", "12\r\n-3\r\n0"),
        ("v.txt", b"\xef\xbb\xbf12\n\n-3\n0\n"),
        ("v.csv", "id,more\n12,a\n-3,b\n0,c\n"),
        ("v.csv", "id\r\n12\r\n-3\r\n0\r\n"),
    ],
)
def test_digits_serve_columns_of_integers_and_of_text(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert values(tmp_path, name, content, integers=True) == [12, -3, 0]
    assert values(tmp_path, name, content, integers=False) == ["12", "-3", "0"]


def test_text_keeps_its_zeros_and_its_odd_characters(tmp_path: Path) -> None:
    assert values(tmp_path, "v.txt", "007\na\u2028b\n1.0\n", integers=False) == ["007", "a\u2028b", "1.0"]
    assert values(tmp_path, "v.csv", "id\n007\n7\n", integers=False) == ["007", "7"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("v.txt", "1\n007\n", "the value '007' in line 2, which as a number would be 7; expected whole numbers"),
        ("v.txt", "item_id\n1\n", "the value 'item_id' in line 1; expected whole numbers"),
        ("v.txt", "1\ntwo\n", "the value 'two' in line 2"),
        ("v.txt", "1\n1.0\n", "the value '1.0' in line 2"),
        ("v.txt", "1\n1_000\n", "the value '1_000' in line 2"),
        ("v.txt", "9223372036854775808\n", "the value '9223372036854775808'"),
        ("v.txt", "1\n1\n", "1 values written twice, the first 1"),
        ("v.txt", "", "no values"),
        ("v.txt", "\n\n", "no values"),
        ("v.csv", "id\n007\n", "the value '007', which as a number would be 7"),
        ("v.csv", "id\n", "no values"),
        ("v.csv", "0\n1\n2\n", "the number 0 in the first line; expected a first line that names the columns"),
    ],
)
def test_what_an_integer_column_cannot_have(tmp_path: Path, name: str, content: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as raised:
        values(tmp_path, name, content, integers=True)
    assert raised.value.where == f"vocabulary of feature 'x': {tmp_path / name}"


def test_lists_and_parquet_have_types_of_their_own(tmp_path: Path) -> None:
    assert read_vocabulary(("3", "4"), "x", integers=True).to_pylist() == [3, 4]
    with pytest.raises(DataError, match="whole numbers, for example 3; expected text"):
        read_vocabulary((3, 4), "x", integers=False)
    pq.write_table(pa.table({"id": ["3", "04"]}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="the value '04', which as a number would be 4"):
        read_vocabulary(str(tmp_path / "v.parquet"), "x", integers=True)
    assert read_vocabulary(str(tmp_path / "v.parquet"), "x", integers=False).to_pylist() == ["3", "04"]
