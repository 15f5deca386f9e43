"""Atomic files: types in the header, tokens stay text."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from longrec.errors import DataError
from longrec.interop.atomic import read


def write(folder: Path, text: str) -> Path:
    path = folder / "x.inter"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_type(tmp_path: Path) -> None:
    text = 'user_id:token\trating:float\tgenre:token_seq\tvec:float_seq\n007\t4\ta b\t1 2.5\n"x\t4.5\tc\t3\n'
    table = read(write(tmp_path, text))
    assert table.to_pydict() == {
        "user_id": ["007", '"x'],
        "rating": [4.0, 4.5],
        "genre": [["a", "b"], ["c"]],
        "vec": [[1.0, 2.5], [3.0]],
    }
    assert table.schema.field("genre").type == pa.list_(pa.string())


def test_an_empty_sequence_is_an_empty_list(tmp_path: Path) -> None:
    table = read(write(tmp_path, "i:token\tgenre:token_seq\tvec:float_seq\n1\t\t\n2\ta\t1\n"))
    assert table["genre"].to_pylist() == [[], ["a"]]
    assert table["vec"].to_pylist() == [[], [1.0]]


def test_no_rows(tmp_path: Path) -> None:
    table = read(write(tmp_path, "user_id:token\tgenre:token_seq\n"))
    assert (len(table), table.column_names) == (0, ["user_id", "genre"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "user_id\trating\n1\t2\n",
            r"x\.inter: a header without known types: \['user_id', 'rating'\]; expected name:type",
        ),
        ("a:token\tb:int\n1\t2\n", r"a header without known types"),
        (":token\n1\n", r"a header without known types"),
        ("", r"a header without known types"),
        ("a:token\ta:float\n1\t2\n", r"x\.inter: a column written twice: a; expected distinct names"),
        ("a:token\tb:float\n1\tx\n", r"x\.inter: cannot be read: .*conversion error.*'x'; expected one line per row"),
        ("a:token\tb:float\n1\t2\n3\n", r"x\.inter: cannot be read: .*; expected one line per row"),
        ("a:token\tb:float_seq\n1\t2 x\n", r"x\.inter: b: cannot be read: .*'x'.*; expected numbers"),
    ],
)
def test_a_file_that_is_no_atomic_file(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read(write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.inter: cannot be read: .*No such file"):
        read(tmp_path / "gone.inter")
    (tmp_path / "latin.inter").write_bytes("a:token\né\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read"):
        read(tmp_path / "latin.inter")
