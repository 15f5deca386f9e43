"""Tables of items as inputs of a diagnosis: codes, and columns of lists.

Codes come from a folder of ``longrec tokenize``, or from a table with a key of the item and codes, as columns code_1 ..
code_L or as one list column.

Shapes: N items, L levels.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.auditing.column_roles import USUAL, normalize_name
from longrec.data.relation import Relation, name
from longrec.data.settings import Source
from longrec.data.sql import hide_progress
from longrec.errors import ConfigError, DataError, nearest, quote
from longrec.metrics.columns import Ints
from longrec.semantic_ids.diagnostics.prefixes import is_suffix

_LIST = re.compile(r"^(?P<element>\w+)\[\d*\]$")
WHOLE = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
REAL = {"FLOAT", "DOUBLE"}
"""SQL types of the elements of a list column."""
MOST_CODES = 1 << 20
"""Largest number of codes of a level, whose usage is counted code by code."""


@dataclass(frozen=True)
class Codes:
    """Codes of items as read, with the tokenizer if there is one.

    Attributes:
        items: keys of the items ``[N]``.
        codes: int64 ``[N, L]``, without a suffix.
        sizes: number of codes of each level.
        tokenizer: the tokenizer of a folder. None for a table.
        folder: the folder. None for a table, and for semantic IDs in memory.
        facts: facts for the page.
        notes: choices that were made.
    """

    items: pa.Array
    codes: Ints
    sizes: tuple[int, ...]
    tokenizer: Any = None
    folder: Path | None = None
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def read_codes(
    source: Any,
    *,
    item: str | None = None,
    codes: str | None = None,
    levels: int | None = None,
    size: int | None = None,
) -> Codes:
    """Return the codes of a folder, of a table (file or frame), or of ``SemanticIds``.

    Args:
        item: column of the item in a table. Default: by its name.
        codes: list column of the codes. Default: columns code_1 .. code_L, or the only list column of whole numbers.
        levels: number of levels, which come first. Default: all codes, without a last one that only numbers twins.
        size: number of codes of each level of a table. Default: the largest code of the level + 1.

    Raises:
        DataError: a table without codes, or with codes that cannot be used.
        RunError: a folder that ``longrec tokenize`` has not written.
        ConfigError: options of a table for a folder.
    """
    if is_tokenized(source):
        options = {"column": codes, "levels": levels, "size": size}
        odd = [key for key, value in options.items() if value is not None]
        if odd:
            raise ConfigError("diagnose", [f"{key}: the folder of a tokenizer has it" for key in odd])
        return _read_folder(source)
    with TableReader() as reader:
        table = reader.open("items", source)
        key = choose_key(table, item)
        columns = _list_code_columns(table)
        if codes is None and columns:
            rows = table.table(f"SELECT {', '.join(map(name, [key, *columns]))} FROM {table.view}")
            code_NL = np.stack([_read_whole(rows[column], table.where, column) for column in columns], 1)
        else:
            column = choose_list(table, codes, WHOLE, "codes", "--column")
            rows = table.table(f"SELECT {name(key)}, {name(column)} FROM {table.view}")
            code_NL = flatten_lists(rows[column], table.where, column).astype(np.int64)
    return _build_codes(rows[key].combine_chunks(), code_NL, table.where, levels, size)


def is_tokenized(source: Any) -> bool:
    """Return True for the folder of a tokenizer, and for an opened one."""
    is_folder = isinstance(source, (str, Path)) and (Path(source) / "semantic_ids.json").exists()
    return is_folder or hasattr(source, "tokenizer")


def _list_code_columns(table: Relation) -> list[str]:
    """Return the columns code_1 .. code_L of a table. Empty if it has none."""
    numbers = sorted(int(column[5:]) for column in table.types if re.fullmatch(r"code_[1-9]\d*", column))
    missing = sorted({*range(1, max(numbers, default=0) + 1)} - {*numbers})
    if missing:
        actual = ", ".join(f"code_{number}" for number in numbers)
        expected = f"all levels: {', '.join(f'code_{number}' for number in missing[:5])} too"
        raise DataError(
            table.where, f"the columns {actual}", expected, "join the missing columns, or rename the others"
        )
    return [f"code_{number}" for number in numbers]


def _build_codes(items: pa.Array, code_NL: Ints, where: str, levels: int | None, size: int | None) -> Codes:
    if not len(items) or items.null_count or len(items.unique()) < len(items):
        actual = f"{len(items):,} rows, {items.null_count:,} without a key, {len(items.unique()):,} different keys"
        raise DataError(where, actual, "one row per item")
    if code_NL.min() < 0 or code_NL.max() >= MOST_CODES:
        bad = (code_NL < 0) | (code_NL >= MOST_CODES)
        row, level = map(int, np.argwhere(bad)[0])
        actual = (
            f"{int(bad.any(1).sum()):,} of {len(items):,} items have such a code as {code_NL[row, level]} of level "
        )
        actual += f"{level + 1} (item {quote(items[row].as_py())})"
        do = "leave out items without a code, and number the codes of a level from 0"
        raise DataError(where, actual, f"codes from 0 to {MOST_CODES - 1:,}", do)
    notes = []
    if levels is None and is_suffix(code_NL):
        levels = code_NL.shape[1] - 1
        notes.append(
            f"Code {levels + 1} only numbers the items with equal codes before it. It is not counted as a level."
        )
    if levels is not None and not 1 <= levels <= code_NL.shape[1]:
        raise ConfigError("diagnose", [f"levels: {levels}, and the table has {code_NL.shape[1]} codes per item"])
    code_NL = code_NL[:, :levels]
    tops = code_NL.max(0) + 1
    if size is None:
        notes.append("The number of codes of each level is taken to be its largest code + 1 (`--size` sets it).")
    elif tops.max() > size:
        raise ConfigError("diagnose", [f"size: {size}, and there is a code {tops.max() - 1}"])
    sizes = tuple(map(int, tops)) if size is None else (size,) * code_NL.shape[1]
    return Codes(items, code_NL, sizes, notes=tuple(notes))


def _read_folder(source: Any) -> Codes:
    from longrec.semantic_ids.stored import SemanticIds

    stored = source if isinstance(source, SemanticIds) else SemanticIds.open(source)
    levels, size = stored.tokenizer.codebooks.shape[:2]
    facts = (("tokenizer", f"{stored.tokenizer.name}, version {stored.version}"),)
    codes = np.asarray(stored.codes, np.int64)
    folder = None if source is stored else Path(source)
    return Codes(stored.items, codes, (int(size),) * int(levels), stored.tokenizer, folder, facts)


class TableReader:
    """Connection that reads tables, and a folder for what it writes."""

    def __enter__(self) -> TableReader:
        import duckdb

        self._scratch = tempfile.TemporaryDirectory(prefix="longrec-diagnose-")
        self._con = duckdb.connect()
        hide_progress(self._con)
        self._con.execute("SET TimeZone='UTC'")
        return self

    def __exit__(self, *_: object) -> None:
        self._con.close()
        self._scratch.cleanup()

    def open(self, view: str, source: Any) -> Relation:
        """Return a file, a pattern, or a frame as a relation."""
        if isinstance(source, (str, Path)):
            read = Source.model_validate({"files": [str(source)]})
        else:
            read = source if isinstance(source, Source) else Source.model_validate({"frame": source})
        return Relation(self._con, view, read, Path(self._scratch.name))


def choose_key(table: Relation, named: str | None) -> str:
    """Return the column of the item: as named, if the table has it, else of a usual name."""
    if named is not None and named in table.types:
        return named
    usual = [one for group in USUAL["item"] for one in group]
    fitting = [column for column in table.types if normalize_name(column) in usual]
    if len(fitting) != 1:
        actual = f"no column {named!r}" if named else f"{len(fitting)} columns that may be the item"
        raise DataError(table.where, actual, f"one of {', '.join(table.types)}", "name it: --item COLUMN")
    return fitting[0]


def choose_list(table: Relation, named: str | None, kinds: Collection[str], what: str, option: str) -> str:
    """Return the list column with elements of some types: as named, or the only one."""
    fitting = [
        column for column, kind in table.types.items() if (match := _LIST.match(kind)) and match["element"] in kinds
    ]
    if named is not None and named not in table.types:
        near = nearest(named, table.types)
        actual = f"no column {named!r} ({option})" + (f", did you mean {near!r}?" if near else "")
        raise DataError(table.where, actual, f"one of {', '.join(table.types)}")
    if named is not None and not table.types[named].endswith("]"):
        where = f"{table.where}: column {named!r} ({option})"
        raise DataError(where, f"values of type {table.types[named]}", "a list of numbers per item", _READ_LISTS)
    if named is None and len(fitting) != 1:
        actual = f"{len(fitting)} list columns that may be the {what}" + (f": {', '.join(fitting)}" if fitting else "")
        expected = "one list column" + (", or the columns code_1, code_2, ..." if what == "codes" else "")
        expected += f"; the table has {', '.join(f'{column} ({kind})' for column, kind in table.types.items())}"
        raise DataError(table.where, actual, expected, f"name it: {option} {fitting[0]}" if fitting else _READ_LISTS)
    return fitting[0] if named is None else named


_READ_LISTS = "write lists into a Parquet file, in SQL such as SELECT item_id, [a, b] AS own or text::FLOAT[] AS own"


def _read_whole(column: pa.ChunkedArray, where: str, label: str) -> Ints:
    if column.null_count or not pa.types.is_integer(column.type):
        nulls = f", {column.null_count:,} of {len(column):,} null" if column.null_count else ""
        do = "leave out items without codes" if nulls else "number the codes of a level from 0, as integers"
        actual = f"values of type {column.type}{nulls}"
        raise DataError(f"{where}: column {label!r}", actual, "a whole number from 0 in every row", do)
    return column.to_numpy().astype(np.int64)


def flatten_lists(column: pa.ChunkedArray, where: str, label: str) -> Any:
    """Return a list column as an array ``[N, L]``."""
    if not len(column):
        raise DataError(where, "no rows", "one row per item")
    lengths = pc.list_value_length(column)
    values = pc.list_flatten(column)
    spread = pc.min_max(lengths).as_py()
    if column.null_count or spread["min"] != spread["max"] or not spread["min"] or values.null_count:
        actual = f"lists of {spread['min']} to {spread['max']} values, {column.null_count + values.null_count:,} null"
        raise DataError(f"{where}: column {label!r}", actual, "lists of one length without nulls")
    return values.to_numpy().reshape(len(column), spread["min"])
