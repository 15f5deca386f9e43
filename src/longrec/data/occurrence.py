"""What a schema names and a log does not hold: values of filters, labels and vocabularies that never occur."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.label_copies import filter_warning
from longrec.data.sql import literal, name
from longrec.errors import DataError, nearest
from longrec.features.entity_table import open_array
from longrec.features.feature_encoders import FIRST, IdEncoder, Lists
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import match_condition
from longrec.features.schema import Condition, Label, Schema

_CHUNK = 1_000_000


class Filters:
    """The ``where`` of every history, evaluated chunk by chunk; notes which of their values occur.

    Args:
        where: the log, as a message names it.
    """

    def __init__(self, schema: Schema, where: str) -> None:
        self.where = where
        self.histories = {name: history.where for name, history in schema.histories.items() if history.where}
        self._missing: dict[tuple[str, str], list[Any]] = {
            (history, column): _wanted(condition)
            for history, own in self.histories.items()
            for column, condition in own.items()
        }

        # Rows by whether a condition holds and by label, where nobody declared the column as feedback.
        self._labels = {
            (history, column): np.zeros((2, 2), np.int64)
            for history, own in self.histories.items()
            for column in own
            if not schema.is_feedback_column(column)
        }

    def columns(self) -> set[str]:
        """Raw columns that filters read."""
        return {column for own in self.histories.values() for column in own}

    def met(self, history: str, chunk: pa.RecordBatch, labels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """bool ``[n]``: which rows of a chunk pass the filter of a history.

        Args:
            labels: ``[n]``, NaN for rows that are no training rows.
        """
        met = []
        for column, condition in self.histories[history].items():
            values = chunk[f"c.{column}"]
            held = match_condition(condition, values, f"{self.where}: column {column!r}, filter of {history}")
            met.append(held)
            if (counts := self._labels.get((history, column))) is not None:
                counts += _label_counts(held, labels)
            missing = self._missing[history, column]
            if missing and held.any():
                # After the first chunks of most logs nothing is missing, and nothing is looked for.
                here = [
                    Condition(at_least=v) if condition.at_least is not None else Condition(equals=v) for v in missing
                ]
                self._missing[history, column] = [
                    value for value, one in zip(missing, here) if not match_condition(one, values, self.where).any()
                ]
        return np.logical_and.reduce(met)

    def warnings(self, con: duckdb.DuckDBPyConnection, rows: Path) -> list[str]:
        """One sentence per value that no row has, and per undeclared column that tells the label of its own row.

        Args:
            rows: the Parquet file of the events, whose columns are called ``c.NAME``.
        """
        told = [filter_warning(*place, counts) for place, counts in self._labels.items()]
        told = [sentence for sentence in told if sentence]
        for (history, column), missing in self._missing.items():
            if not missing:
                continue
            condition = self.histories[history][column]
            if condition.at_least is not None:
                told.append(
                    f"history {history!r}: no row has {column} of {condition.at_least:g} or more, so its filter passes "
                    f"nothing and the history is always empty; {_top(con, rows, column)}; correct its where"
                )
                continue
            values = ", ".join(repr(value) for value in missing[:5])
            wanted = len(_wanted(condition))
            share = "its filter passes nothing and the history is always empty"
            rest = (
                share if len(missing) == wanted else f"{len(missing)} of the {wanted} values of its filter do nothing"
            )
            known = _common(con, rows, column)
            told.append(
                f"history {history!r}: the value {values} never occurs in column {column!r}, so {rest}; "
                f"{_listed(known)}{_meant(missing[0], known)}; correct its where"
            )
        return told


def _label_counts(held: NDArray[np.bool_], labels: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64 ``[2, 2]``: rows that have a label, by whether a condition holds and by label."""
    known = ~np.isnan(labels)
    return np.bincount(2 * held[known] + (labels[known] > 0.5), minlength=4).reshape(2, 2)


def _wanted(condition: Condition) -> list[Any]:
    if condition.at_least is not None:
        return [condition.at_least]
    return [condition.equals] if condition.among is None else list(condition.among)


def check_condition(label: Label, met: bool, con: duckdb.DuckDBPyConnection, rows: Path, where: str) -> None:
    """Refuse a condition of the label that no row meets, with the values that there are.

    Args:
        met: whether any row meets it.
    """
    if met:
        return
    column = label.column
    if label.at_least is not None:
        found = f"no row meets the label's condition at_least: {label.at_least:g}; {_top(con, rows, column)}"
        raise DataError(where, found, "rows of both classes", "lower label.at_least")
    known = _common(con, rows, column)
    found = f"no row meets the label's condition equals: {label.equals!r}; {_listed(known)}"
    raise DataError(where, found + _meant(label.equals, known), "rows of both classes", "correct label.equals")


def _common(con: duckdb.DuckDBPyConnection, rows: Path, column: str) -> list[tuple[Any, int]]:
    """The most frequent values of a raw column, each with its count."""
    quoted = name(f"c.{column}")
    counted = f"SELECT {quoted}, count(*) AS n FROM read_parquet({literal(str(rows))}) WHERE {quoted} IS NOT NULL"
    return con.execute(f"{counted} GROUP BY 1 ORDER BY n DESC, 1 LIMIT 50").fetchall()


def _top(con: duckdb.DuckDBPyConnection, rows: Path, column: str) -> str:
    quoted = name(f"c.{column}")
    ((low, high),) = con.execute(
        f"SELECT min({quoted}), max({quoted}) FROM read_parquet({literal(str(rows))})"
    ).fetchall()
    return "the column holds nulls alone" if high is None else f"its values lie between {low} and {high}"


def _listed(known: list[tuple[Any, int]]) -> str:
    shown = ", ".join(f"{value!r} ({count:,} rows)" for value, count in known[:5])
    return f"the most frequent values are {shown}" if known else "the column holds nulls alone"


def _meant(value: Any, known: list[tuple[Any, int]]) -> str:
    near = nearest(str(value), [str(one) for one, _ in known])
    if near is None:
        lower = {str(one).lower(): str(one) for one, _ in known}
        near = lower.get(str(value).strip().lower())
    return f" (did you mean {near!r}?)" if near is not None else ""


def vocabulary_warnings(
    fitted: FittedSchema, build: Path, tables: Iterable[Mapping[str, NDArray[Any] | Lists]]
) -> list[str]:
    """One sentence per given vocabulary none of whose values occurs.

    Args:
        build: folder of the prepared log, its columns written.
        tables: encoded columns of users and of items.
    """
    features, tables = fitted.schema.features, list(tables)
    told = []
    for feature, definition in features.items():
        encoder = fitted.encoders.get(feature)
        if definition.vocab is None or not isinstance(encoder, IdEncoder):
            continue
        names = [feature, *(other for other, one in features.items() if one.share == feature)]
        columns = [column for one in names for column in _columns(fitted, one, build, tables)]
        if any(_occurs(column, last=encoder.rows) for column in columns):
            continue
        keys = encoder.keys.values
        told.append(
            f"feature {feature!r}: none of the {len(keys):,} values of its vocabulary (the first is "
            f"{keys[0].as_py()!r}) occurs in column {fitted.schema.column(feature)!r}, so it tells nothing: every "
            "value counts as unseen; correct vocab, or remove it to learn the values"
        )
    return told


def _columns(
    fitted: FittedSchema, feature: str, build: Path, tables: list[Mapping[str, NDArray[Any] | Lists]]
) -> list[NDArray[Any]]:
    owned = [table[feature] for table in tables if feature in table]
    columns = [column.values if isinstance(column, Lists) else np.asarray(column) for column in owned]
    listed = [
        f"{history}.{feature}" for history, own in fitted.schema.histories.items() if feature in (own.columns or {})
    ]
    files = [
        build / "events" / f"{feature}.npy",
        *(build / "lists" / f"{one}.values.npy" for one in (feature, *listed)),
    ]
    return [*columns, *(open_array(file) for file in files if file.exists())]


def _occurs(column: NDArray[Any], last: int) -> bool:
    """Whether an id of a known value stands in a column; ``last`` is the first id beyond them."""
    for start in range(0, len(column), _CHUNK):
        part = column[start : start + _CHUNK]
        if ((part >= FIRST) & (part < last)).any():
            return True
    return False
