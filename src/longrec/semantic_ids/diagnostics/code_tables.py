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
from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import Ints
from longrec.semantic_ids.diagnostics.prefixes import is_suffix

_LIST = re.compile(r"^(?P<element>\w+)\[\d*\]$")
WHOLE = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
REAL = {"FLOAT", "DOUBLE"}
"""SQL types of the elements of a list column."""


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
        columns = [f"code_{at}" for at in range(1, 1 + len(table.types)) if f"code_{at}" in table.types]
        if codes is None and columns:
            rows = table.table(f"SELECT {', '.join(map(name, [key, *columns]))} FROM {table.view}")
            code_NL = np.stack([_read_whole(rows[column], table.where, column) for column in columns], 1)
        else:
            column = codes or choose_list(table, WHOLE, "codes", "--column")
            rows = table.table(f"SELECT {name(key)}, {name(column)} FROM {table.view}")
            code_NL = flatten_lists(rows[column], table.where, column).astype(np.int64)
    return _build_codes(rows[key].combine_chunks(), code_NL, table.where, levels, size)


def is_tokenized(source: Any) -> bool:
    """Return True for the folder of a tokenizer, and for an opened one."""
    is_folder = isinstance(source, (str, Path)) and (Path(source) / "semantic_ids.json").exists()
    return is_folder or hasattr(source, "tokenizer")


def _build_codes(items: pa.Array, code_NL: Ints, where: str, levels: int | None, size: int | None) -> Codes:
    if not len(items) or items.null_count or len(items.unique()) < len(items):
        actual = f"{len(items):,} rows, {items.null_count:,} without a key, {len(items.unique()):,} different keys"
        raise DataError(where, actual, "one row per item")
    if code_NL.min() < 0:
        raise DataError(where, f"the code {code_NL.min()}", "codes from 0")
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


def choose_list(table: Relation, kinds: Collection[str], what: str, option: str) -> str:
    """Return the only list column with elements of some types."""
    fitting = [
        column for column, kind in table.types.items() if (match := _LIST.match(kind)) and match["element"] in kinds
    ]
    if len(fitting) != 1:
        actual = f"{len(fitting)} list columns that may be the {what}" + (f": {', '.join(fitting)}" if fitting else "")
        do = f"name it: {option} {fitting[0] if fitting else 'COLUMN'}"
        raise DataError(table.where, actual, "one of them", do)
    return fitting[0]


def _read_whole(column: pa.ChunkedArray, where: str, label: str) -> Ints:
    if column.null_count or not pa.types.is_integer(column.type):
        actual = f"values of type {column.type}, {column.null_count:,} of them null"
        raise DataError(f"{where}: column {label!r}", actual, "a whole number from 0 in every row")
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
