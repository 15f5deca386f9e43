"""Casts of raw columns (``casts`` of a schema), and texts that mean a missing value, as SQL.

A cast never rounds and never drops a value: a value that it cannot represent is an error with its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longrec.data.sql import literal

TYPES: dict[str, str] = {"int": "BIGINT", "float": "DOUBLE", "text": "VARCHAR"}
INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "BOOLEAN"}
"""Types whose values all fit 64 bits."""
WIDE_INTEGERS = {"UBIGINT", "HUGEINT", "UHUGEINT"}
EXACT = {"FLOAT": 2**24, "DOUBLE": 2**53}
"""Bound below which a type of floats represents every whole number."""
_DIGITS = r"\s*[+-]?[0-9]+(?:\.0*)?\s*"
_NUMBER = r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*"
_PLAIN_TEXT = ("DATE", "TIMESTAMP", "TIME", "UUID", "DECIMAL")


@dataclass(frozen=True)
class ColumnTypes:
    """What a schema says about the types of raw columns, of any input.

    Attributes:
        casts: ``int``, ``float`` or ``text`` per column.
        ids: columns of ids, which in text files are whole numbers or text.
        separated: columns of separated text, which in text files are text even where each cell is one number.
    """

    casts: Mapping[str, str] = field(default_factory=dict)
    ids: frozenset[str] = frozenset()
    separated: frozenset[str] = frozenset()


def is_text(kind: str) -> bool:
    """Return whether a SQL type is text."""
    return kind == "VARCHAR" or kind.startswith("ENUM")


def is_real(kind: str) -> bool:
    """Return whether a SQL type has fractions."""
    return kind in EXACT or kind.startswith("DECIMAL")


def without_nulls(value: str, kind: str, nulls: Sequence[str]) -> str:
    """Return SQL of text in which the texts that mean a missing value are null."""
    text = value if kind == "VARCHAR" else f"{value}::VARCHAR"
    return f"CASE WHEN {text} IN ({', '.join(map(literal, nulls))}) THEN NULL ELSE {text} END"


def whole_number(value: str, kind: str) -> str:
    """Return SQL of floats or decimals as BIGINT. Fractions, and numbers too large to be exact, are null."""
    bound = EXACT.get(kind, 2**63)
    return f"CASE WHEN {value} = floor({value}) AND abs({value}) < {bound} THEN try_cast({value} AS BIGINT) END"


def is_number(value: str, kind: str) -> str:
    """Return SQL that is true for numbers and false for NaN, the missing value of pandas."""
    # Not isnan(v) or a comparison: DuckDB evaluates them from Parquet statistics, which do not cover NaN.
    return f"{value}::VARCHAR NOT IN ('nan', '-nan')" if kind in EXACT else f"{value} IS NOT NULL"


def cast_sql(value: str, kind: str, to: str) -> str | None:
    """Return SQL of a cast, null for a value that it cannot represent. None if no value of the type can be cast."""
    if kind == '"NULL"':
        return f"NULL::{TYPES[to]}"
    if is_text(kind):
        text = value if kind == "VARCHAR" else f"{value}::VARCHAR"
        if to == "text":
            return text
        pattern = _DIGITS if to == "int" else _NUMBER
        return f"CASE WHEN regexp_full_match({text}, {literal(pattern)}) THEN try_cast({text} AS {TYPES[to]}) END"
    if kind == "BLOB":
        return f"TRY(decode({value}))" if to == "text" else None
    if kind in EXACT and to == "text":
        return f"{whole_number(value, kind)}::VARCHAR"
    if is_real(kind) and to == "int":
        return whole_number(value, kind)
    if kind in INTEGERS | WIDE_INTEGERS or (is_real(kind) and to == "float"):
        return f"try_cast({value} AS {TYPES[to]})"
    return f"{value}::VARCHAR" if to == "text" and kind.startswith(_PLAIN_TEXT) and not kind.endswith("]") else None


def describe_fix(column: str, kind: str) -> str:
    """Return advice on a column whose type holds no ids."""
    if kind.startswith(("STRUCT", "MAP", "UNION")):
        return f"select a field of it with a query, such as SELECT *, {column}.id AS {column}_id FROM 'log.parquet'"
    if kind.endswith("]"):
        return "declare the feature multi_id, or select one value with a query"
    castable = kind == "BLOB" or kind.startswith(_PLAIN_TEXT)
    return f"set casts: {{{column}: text}} in the schema" if castable else "cast the column with a query"


def describe_number_fix(column: str, kind: str) -> str | None:
    """Return advice on a column of a type that has no numbers, or None if it has numbers."""
    if kind in INTEGERS | WIDE_INTEGERS or is_real(kind) or kind == '"NULL"':
        return None
    if kind.startswith(("STRUCT", "MAP", "UNION")):
        return describe_fix(column, kind)
    if kind.endswith("]"):
        return "set width, the count of the numbers of a feature, or select one number with a query"
    if kind.startswith(("DATE", "TIME")):
        return f"convert it with a query, such as SELECT *, epoch({column}) AS {column}_seconds FROM 'log.parquet'"
    return "convert it to numbers with a query"


def describe_null_text(value: str, source: str) -> str | None:
    """Return advice if a text is a usual name of a missing value."""
    usual = {"na", "n/a", "nan", "null", "none", "nil", "-", "--", "?", "\\n", "<na>", "#n/a", "(null)", "missing"}
    if value.strip().lower() in usual or not value.strip():
        return f"if {value!r} means missing, list it in nulls: {source}: {{files: ..., nulls: [{value!r}]}}"
    return None


def select_columns(rows: str, replaced: Mapping[str, str]) -> str:
    """Return SQL of rows in which some columns are replaced by expressions."""
    if not replaced:
        return f"SELECT * FROM {rows}"
    quoted = ", ".join(f'{sql} AS "{column.replace(chr(34), chr(34) * 2)}"' for column, sql in replaced.items())
    return f"SELECT * REPLACE ({quoted}) FROM {rows}"
