"""Conditions on the raw columns of items, such as ``year >= 1990 AND genre = 'Comedy'``, as masks of the items.

A condition is one SQL expression over the columns of the item table, as in the ``WHERE`` of a query. It reads these
columns alone: no file, no other table and no subquery. An item whose condition is null does not meet it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import ConfigError, nearest

if TYPE_CHECKING:
    import duckdb

_KEPT = 64
"""Number of conditions whose masks are kept."""
_ROW = "_row"


class ItemConditions:
    """Evaluation of conditions on one table of items. The mask of a condition is computed once.

    Args:
        columns: raw columns, one row per item.
    """

    def __init__(self, columns: pa.Table) -> None:
        self._columns = columns
        self._masks: dict[str, NDArray[np.bool_]] = {}

    def match(self, condition: str, where: str = "where") -> NDArray[np.bool_]:
        """Return the mask of the items that meet a condition, bool ``[I]``.

        Args:
            where: location of the condition, for errors.

        Raises:
            ConfigError: if it is no single condition on columns of the items.
        """
        mask = self._masks.get(condition)
        if mask is None:
            mask = self._evaluate(condition, where)
            if len(self._masks) >= _KEPT:
                self._masks.pop(next(iter(self._masks)))
            self._masks[condition] = mask
        return mask

    def _evaluate(self, condition: str, where: str) -> NDArray[np.bool_]:
        import duckdb  # only servers with conditions need it

        table = self._columns.append_column(_ROW, pa.array(np.arange(len(self._columns))))
        with _connect() as con:
            try:
                expression = _parse(con, condition, where)
                rows = con.from_arrow(table)
                kind = str(rows.select(expression).types[0])
                if kind not in ("BOOLEAN", '"NULL"', "NULL"):
                    raise ConfigError(where, [f"{condition!r} is a value of type {kind}, not true or false"])
                met = rows.filter(expression).select(duckdb.ColumnExpression(_ROW)).fetchnumpy()[_ROW]
            except duckdb.Error as error:
                raise ConfigError(where, [self._describe(condition, error)]) from None
        mask = np.zeros(len(self._columns), bool)
        mask[np.asarray(met, np.int64)] = True
        return mask

    def _describe(self, condition: str, error: duckdb.Error) -> str:
        names = self._columns.column_names
        text = str(error).partition("\nLINE ")[0].splitlines()[0]
        text = text.removeprefix("Binder Error: ").removeprefix("Parser Error: ")
        if 'Referenced column "' not in text:
            return f"{condition!r}: {text}; write a condition such as year >= 1990 on {', '.join(names)}"
        column = text.split('"')[1]
        near = nearest(column, names)
        hint = f", did you mean {near!r}?" if near else f"; the item table has {', '.join(names)}"
        return f"{condition!r}: no column {column!r}{hint}"


def _connect() -> duckdb.DuckDBPyConnection:
    """Return a connection that reads neither files nor variables of this process."""
    import duckdb

    con = duckdb.connect()
    con.execute("SET threads=1; SET python_enable_replacements=false; SET enable_external_access=false")
    con.execute("SET TimeZone='UTC'; SET lock_configuration=true")
    return con


def _parse(con: duckdb.DuckDBPyConnection, condition: str, where: str) -> duckdb.Expression:
    """Return a condition as an expression. What leaves its brackets is no single expression.

    Raises:
        ConfigError: if it holds a subquery.
    """
    import duckdb

    expression = duckdb.SQLExpression(condition)
    ((tree,),) = con.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{condition}\n)"]).fetchall()
    if '"error":true' in tree or '"class":"SUBQUERY"' in tree:
        raise ConfigError(where, [f"{condition!r} is no plain condition; write one without a query inside"])
    return expression
