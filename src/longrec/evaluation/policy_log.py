"""Reading of a log of random draws, joined with the probabilities of a target policy.

Columns are read by role: ``reward``, ``propensity``, ``target``, ``predicted`` and ``expected`` are numbers. ``user``,
``request``, ``item`` and ``position`` are keys.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from longrec.data.relation import Relation
from longrec.data.settings import Source
from longrec.data.sql import hide_progress, name
from longrec.errors import DataError

_TOLERANCE = 1e-3
"""Distance from 1 that rounding may give to the sum of the probabilities of a request."""
_LISTED = 5
"""Number of rows that an error names."""
_WAY_OUT = "name the columns with options, such as --reward click"
Values = dict[str, np.ndarray]


def read_log(
    log: Any,
    numbers: Mapping[str, str],
    keys: Mapping[str, str],
    policy: Any = None,
    joined: Mapping[str, str] | None = None,
    probabilities: Mapping[str, str] | None = None,
) -> Values:
    """Return the columns of a log, and those of the table of a target policy, in the order of the rows of the log.

    Null numbers are NaN.

    Args:
        log, policy: a file, a folder, a pattern, or a frame. None: the log has the probabilities.
        numbers, keys: role -> column of the log.
        joined: role -> column of the keys that join both: request, item, and position if the table has it.
        probabilities: role -> column of the table: ``target``, and ``predicted`` if it has predictions. With these,
            ``expected`` is computed: the sum of target x predicted over the candidates of a request (and position).

    Raises:
        DataError: a missing column, text in a column of numbers, a null key, or a request with two rows of one
            position (or item, if a table is joined). Of a table also keys of different
            types, a repeated key, a row of the log that the table lacks, or probabilities of a request whose sum is
            not 1 where ``expected`` is computed.
    """
    joined, probabilities = joined or {}, probabilities or {}
    con = duckdb.connect()
    try:
        hide_progress(con)
        con.execute("SET TimeZone='UTC'")
        with tempfile.TemporaryDirectory(prefix="longrec-offpolicy-") as folder:
            shown = Relation(con, "log", _build_source(log), Path(folder))
            _check_columns(shown, numbers, {**keys, **joined})
            _check_distinct(shown, {**keys, **joined})
            selected = [_select_numbers(numbers), _select_keys({**keys, **joined})]
            chosen = ", ".join(["row_number() OVER () - 1 AS row_number", *filter(None, selected)])
            rows = f"SELECT {chosen} FROM {shown.view}"
            if policy is not None:
                table = Relation(con, "policy", _build_source(policy), Path(folder))
                rows = _join(shown, table, rows, joined, probabilities)
            read = shown.table(f"SELECT * EXCLUDE (row_number) FROM ({rows}) ORDER BY row_number")
    finally:
        con.close()
    if not len(read):
        raise DataError(shown.where, "no rows", "rows of shown items")
    return {role: read[role].to_numpy() for role in read.column_names}


def _build_source(source: Any) -> Source:
    if isinstance(source, (str, Path)):
        return Source.model_validate({"files": [str(source)]})
    return Source.model_validate({"frame": source})


def _select_numbers(columns: Mapping[str, str]) -> str:
    return ", ".join(f"CAST({name(column)} AS DOUBLE) AS {name(role)}" for role, column in columns.items())


def _select_keys(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name(column)} AS {name(role)}" for role, column in columns.items())


def _check_columns(table: Relation, numbers: Mapping[str, str], keys: Mapping[str, str]) -> None:
    """Raise a DataError for columns that are missing, numbers that are text, and keys that are null."""
    table.need({column: role for role, column in {**numbers, **keys}.items()}, _WAY_OUT)
    for column in numbers.values():
        table.numeric(column, "write numbers")
    for role, column in keys.items():
        table.no_nulls(column, role, "row")
        table.key_type(column)


def _check_distinct(log: Relation, keys: Mapping[str, str]) -> None:
    """Raise a DataError for a request with two rows of one position, or of one item: a join repeats rows."""
    roles = [role for role in ("request", "position", "item") if role in keys]
    roles = roles[:2] if "position" in roles else roles
    if roles[0:1] != ["request"] or len(roles) < 2:
        return
    chosen = {role: keys[role] for role in roles}
    repeated = _find_repeated(log, chosen)
    if repeated is not None:
        do = "join one reward per shown item: the sum or the largest of several, such as two clicks on one item"
        raise DataError(log.where, repeated, f"one row per {' and '.join(chosen)}", do)


def _find_repeated(table: Relation, keys: Mapping[str, str]) -> str | None:
    """Return which values of keys have several rows, in words, or None."""
    columns = ", ".join(map(name, keys.values()))
    row = table.row(
        f"SELECT {columns}, count(*) AS times FROM {table.view} GROUP BY {columns} HAVING times > 1 LIMIT 1"
    )
    if row is None:
        return None
    return f"{row[-1]} rows of {', '.join(f'{role} {value}' for role, value in zip(keys, row))}"


def _join(
    log: Relation, policy: Relation, rows: str, joined: Mapping[str, str], probabilities: Mapping[str, str]
) -> str:
    """Return SQL that joins the rows of the log, whose columns have the names of their roles, with the table."""
    _check_columns(policy, probabilities, joined)
    _check_keys(log, policy, joined)
    table = f"(SELECT {_select_keys(joined)}, {_select_numbers(probabilities)}, TRUE AS listed FROM {policy.view})"
    result = f"SELECT * FROM ({rows}) LEFT JOIN {table} USING ({', '.join(map(name, joined))})"
    absent = log.table(f"SELECT row_number FROM ({result}) WHERE listed IS NULL ORDER BY row_number")
    if len(absent):
        numbers = absent["row_number"].to_pylist()
        listed = ", ".join(map(str, numbers[:_LISTED])) + (", ..." if len(numbers) > _LISTED else "")
        what = f"no probability for the item of {len(numbers):,} rows of the log (rows {listed}, from 0)"
        do = "write one for every shown item, 0 for an item that the target policy never shows"
        raise DataError(policy.where, what, "one for each row of the log", do)
    if "predicted" not in probabilities:
        return f"SELECT * EXCLUDE (listed) FROM ({result})"
    lists = [role for role in joined if role != "item"]
    groups = ", ".join(map(name, lists))
    totals = (
        f"SELECT {groups}, sum(target) AS total, sum(target * predicted) AS expected FROM {table} GROUP BY {groups}"
    )
    wrong = policy.row(f"SELECT {groups}, total FROM ({totals}) WHERE NOT abs(total - 1) <= {_TOLERANCE} LIMIT 1")
    if wrong is not None:
        which = ", ".join(f"{role} {value}" for role, value in zip(lists, wrong))
        total = "null" if wrong[-1] is None else f"{wrong[-1]:.4g}"
        do = "list all candidates of each request, or write the mean prediction into a column of the log"
        raise DataError(policy.where, f"probabilities of {which} with the sum {total}", "the sum 1", do)
    return f"SELECT * EXCLUDE (listed, total) FROM ({result}) JOIN ({totals}) USING ({groups})"


def _check_keys(log: Relation, policy: Relation, joined: Mapping[str, str]) -> None:
    """Raise a DataError for keys of different types in the two tables, and for a repeated key of the policy."""
    for column in joined.values():
        types = log.key_type(column), policy.key_type(column)
        if types[0] != types[1]:
            where = f"{policy.where}: column {column!r}"
            raise DataError(where, f"keys of type {types[1]}", f"{types[0]}, as in the log", "write one type into both")
    repeated = _find_repeated(policy, joined)
    if repeated is not None:
        raise DataError(policy.where, repeated, f"one row per {' and '.join(joined)}")
