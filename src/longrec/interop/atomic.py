"""Reader of atomic files, RecBole's tab-separated tables with a type per column in the header.

``user_id:token``, ``rating:float``, ``genre:token_seq``: a token is text, a float is a number, a sequence is separated
by single blanks. Tokens stay text, and floats stay floats even when whole.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from longrec.errors import DataError
from longrec.features.feature_encoders import flatten

_TYPES = {"token": pa.string(), "float": pa.float64(), "token_seq": pa.string(), "float_seq": pa.string()}


def read(path: str | Path) -> pa.Table:
    """Read one atomic file.

    Returns:
        A table with the columns' bare names. Sequences are list columns.

    Raises:
        DataError: if there is no such file, the header has no types, or a value has another type.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline().rstrip("\n").split("\t")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read: {error}", "a UTF-8 atomic file") from None
    pairs = [word.rpartition(":")[::2] for word in header]
    kinds = dict(pairs)
    odd = [word for word, kind in kinds.items() if kind not in _TYPES or not word]
    if odd:
        raise DataError(
            str(path), f"a header without known types: {header}", "name:type, type one of " + ", ".join(_TYPES)
        )
    if len(kinds) != len(pairs):
        names = [word for word, _ in pairs]
        twice = next(word for word in names if names.count(word) > 1)
        raise DataError(str(path), f"a column written twice: {twice}", "distinct names")
    try:
        table = pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(column_names=list(kinds), skip_rows=1),
            parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pacsv.ConvertOptions(column_types={name: _TYPES[kind] for name, kind in kinds.items()}),
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            str(path), f"cannot be read: {error}", "one line per row with the columns of the header"
        ) from None
    for name, kind in kinds.items():
        if kind.endswith("_seq"):
            index = table.column_names.index(name)
            table = table.set_column(
                index, name, _parse_sequence(table[name].combine_chunks(), kind, f"{path}: {name}")
            )
    return table


def _parse_sequence(text: pa.Array, kind: str, where: str) -> pa.Array:
    values, offsets = flatten(text, " ", where)
    if kind == "float_seq":
        try:
            values = values.cast(pa.float64())
        except pa.ArrowInvalid as error:
            raise DataError(where, f"cannot be read: {error}", "numbers separated by single blanks") from None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
