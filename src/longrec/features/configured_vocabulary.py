"""Vocabularies configured in a schema: a list, or the first column of a file, in the type of the encoded column.

In a text file 7 can be a number or text. The type of the column decides. For a column of integers the values must be
plain digits. A value that would lose information as a number ("007") is refused.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from longrec.errors import DataError
from longrec.features.vocabulary import build_array, cast_keys

_EXPECTED = "a Parquet, CSV or text file"
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")


def read_vocabulary(vocab: str | tuple[int | str, ...], feature: str, integers: bool | None = None) -> pa.Array:
    """Read the values of a configured vocabulary: int64 or string, distinct, at least one.

    Args:
        vocab: a list, or a file: Parquet or CSV with a header (its first column), else one value per line.
        integers: True if the encoded column holds integers, False for text. None infers the type of a text file.

    Raises:
        DataError: if the file cannot be read, has no values or repeats one, or has values that the column cannot have.
    """
    where = f"vocabulary of feature {feature!r}"
    if isinstance(vocab, str):
        where = f"{where}: {vocab}"
        values, first = _read_values(Path(vocab), where, integers)
    else:
        values, first = build_array(list(vocab), where), None
    keys = cast_keys(values, where).drop_null()
    if not len(keys):
        raise DataError(where, "no values", "at least one value", "fill it, or remove vocab to learn the values")
    if integers is not None and pa.types.is_integer(keys.type) != integers:
        if not integers:
            raise DataError(
                where,
                f"whole numbers, for example {keys[0].as_py()}",
                "text, which the column holds",
                "write the values as text (in YAML in quotes)",
            )
        keys = _parse_whole_numbers(keys, where, first)
    counts = pc.value_counts(keys)
    if len(counts) != len(keys):
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        what = f"{len(keys) - len(counts)} values written twice, the first {twice[0].as_py()!r}"
        raise DataError(where, what, "distinct values", "remove the copies")
    return keys


def _parse_whole_numbers(keys: pa.Array, where: str, first: int | None) -> pa.Array:
    """Parse text of whole numbers as int64.

    Args:
        first: line number of the first value in a text file, for messages. None: no lines.
    """
    texts = keys.to_pylist()
    for index, text in enumerate(texts):
        if not _WHOLE.fullmatch(text) or not -(2**63) <= int(text) < 2**63:
            number = re.fullmatch(r"-?0+([0-9]+)", text)
            at = "" if first is None else f" in line {index + first}"
            lossy = f", which as a number would be {int(text)}" if number else ""
            raise DataError(
                where,
                f"the value {text!r}{at}{lossy}",
                "whole numbers in plain digits, since the column holds integers",
                "correct the vocabulary, or keep the column as text",
            )
    return pa.array([int(text) for text in texts], pa.int64())


def _read_values(path: Path, where: str, integers: bool | None) -> tuple[pa.Array | pa.ChunkedArray, int | None]:
    """Read the first column of a file, and the line number of its first value."""
    if not path.is_file():
        raise DataError(where, "no such file", _EXPECTED)
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path).column(0), None
        if path.suffix == ".csv":
            return _read_csv(path, where, integers), None
        # Only line ends end a line: splitlines would also cut values at rarer characters.
        lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(where, f"cannot be read: {error}", _EXPECTED) from None
    filled = [(number, line) for number, line in enumerate(lines, 1) if line]
    return pa.array([line for _, line in filled], pa.string()), filled[0][0] if filled else None


def _read_csv(path: Path, where: str, integers: bool | None) -> pa.ChunkedArray:
    options = pacsv.ConvertOptions()
    if integers is not None:
        with pacsv.open_csv(path) as reader:
            names = reader.schema.names
        if integers and _WHOLE.fullmatch(names[0].strip()):
            raise DataError(
                where,
                f"the number {names[0]} in the first line",
                "a first line that names the columns",
                "write a header, or name the file .txt, where the first line is a value",
            )
        # As text: numbers would lose leading zeros.
        options = pacsv.ConvertOptions(column_types={names[0]: pa.string()}, include_columns=[names[0]])
    column = pacsv.read_csv(path, convert_options=options).column(0)
    return column if integers is None else column.filter(pc.not_equal(column, ""))
