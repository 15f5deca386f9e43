"""Checks that the values in filters, label conditions and vocabularies of a schema occur in the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.label_copies import filter_warning
from longrec.data.sorted_log import SortedLog
from longrec.errors import DataError, nearest
from longrec.features.entity_table import open_array
from longrec.features.feature_encoders import FIRST, IdEncoder, Lists
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import match_condition
from longrec.features.schema import Condition, Label, Schema

_CHUNK = 1_000_000


class Filters:
    """Filters (``where``) of all histories, evaluated chunk by chunk, with a record of the values that occur.

    Args:
        where: name of the log in error messages.
    """

    def __init__(self, schema: Schema, where: str) -> None:
        self.where = where
        self.histories = {name: history.where for name, history in schema.histories.items() if history.where}
        self._missing: dict[tuple[str, str], list[Any]] = {
            (history, column): _list_wanted(condition)
            for history, own in self.histories.items()
            for column, condition in own.items()
        }

        # Number of rows by condition and label, for columns that are not declared as feedback.
        self._labels = {
            (history, column): np.zeros((2, 2), np.int64)
            for history, own in self.histories.items()
            for column in own
            if not schema.is_feedback_column(column)
        }

    def columns(self) -> set[str]:
        """Return the names of the raw columns that filters use."""
        return {column for own in self.histories.values() for column in own}

    def select_rows(self, history: str, chunk: pa.RecordBatch, labels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return a mask of the rows of a chunk that pass the filter of a history, bool ``[n]``.

        Args:
            labels: label of each row, ``[n]``. NaN for rows that are not training rows.
        """
        masks = []
        for column, condition in self.histories[history].items():
            values = chunk[f"c.{column}"]
            passing = match_condition(condition, values, f"{self.where}: column {column!r}, filter of {history}")
            masks.append(passing)
            if (counts := self._labels.get((history, column))) is not None:
                counts += _label_counts(passing, labels)
            missing = self._missing[history, column]
            if missing and passing.any():
                # In most logs all values occur in the first chunks, so later chunks are not searched.
                here = [
                    Condition(at_least=v) if condition.at_least is not None else Condition(equals=v) for v in missing
                ]
                self._missing[history, column] = [
                    value for value, one in zip(missing, here) if not match_condition(one, values, self.where).any()
                ]
        return np.logical_and.reduce(masks)

    def warnings(self, log: SortedLog) -> list[str]:
        """Return one warning per value that no row has, and per undeclared column that leaks the label of its row.

        Args:
            log: the sorted log, with its raw columns.
        """
        messages = [filter_warning(*column_key, counts) for column_key, counts in self._labels.items()]
        messages = [sentence for sentence in messages if sentence]
        for (history, column), missing in self._missing.items():
            if not missing:
                continue
            condition = self.histories[history][column]
            if condition.at_least is not None:
                messages.append(
                    f"history {history!r}: no row has {column} of {condition.at_least:g} or more, so its filter passes "
                    f"nothing and the history is always empty; {_describe_range(log, column)}; correct its where"
                )
                continue
            values = ", ".join(repr(value) for value in missing[:5])
            wanted = len(_list_wanted(condition))
            share = "its filter passes nothing and the history is always empty"
            rest = (
                share if len(missing) == wanted else f"{len(missing)} of the {wanted} values of its filter do nothing"
            )
            common_values = log.count_values(column)
            messages.append(
                f"history {history!r}: the value {values} never occurs in column {column!r}, so {rest}; "
                f"{_describe_values(common_values)}{_suggest_value(missing[0], common_values)}; correct its where"
            )
        return messages


def _label_counts(passing: NDArray[np.bool_], labels: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the number of labeled rows by result of a condition and by label, int64 ``[2, 2]``."""
    labeled = ~np.isnan(labels)
    return np.bincount(2 * passing[labeled] + (labels[labeled] > 0.5), minlength=4).reshape(2, 2)


def _list_wanted(condition: Condition) -> list[Any]:
    if condition.at_least is not None:
        return [condition.at_least]
    return [condition.equals] if condition.among is None else list(condition.among)


def check_condition(label: Label, met: bool, log: SortedLog) -> None:
    """Raise an error with the values that occur if no row meets the condition of the label.

    Args:
        met: True if some row meets the condition.
    """
    if met:
        return
    column, where = label.column, log.describe(label.column)
    if label.at_least is not None:
        message = f"no row meets the label's condition at_least: {label.at_least:g}; {_describe_range(log, column)}"
        raise DataError(where, message, "rows of both classes", "lower label.at_least")
    common_values = log.count_values(column)
    message = f"no row meets the label's condition equals: {label.equals!r}; {_describe_values(common_values)}"
    raise DataError(
        where, message + _suggest_value(label.equals, common_values), "rows of both classes", "correct label.equals"
    )


def _describe_range(log: SortedLog, column: str) -> str:
    low, high = log.find_range(column)
    return "the column has only nulls" if high is None else f"its values are between {low} and {high}"


def _describe_values(values: list[tuple[Any, int]]) -> str:
    shown = ", ".join(f"{value!r} ({count:,} rows)" for value, count in values[:5])
    return f"the most frequent values are {shown}" if values else "the column has only nulls"


def _suggest_value(value: Any, values: list[tuple[Any, int]]) -> str:
    near = nearest(str(value), [str(one) for one, _ in values])
    if near is None:
        lower = {str(one).lower(): str(one) for one, _ in values}
        near = lower.get(str(value).strip().lower())
    return f" (did you mean {near!r}?)" if near is not None else ""


def vocabulary_warnings(
    fitted: FittedSchema, build: Path, tables: Iterable[Mapping[str, NDArray[Any] | Lists]]
) -> list[str]:
    """Return one warning per configured vocabulary without any value that occurs.

    Args:
        build: folder of the prepared log, with its columns.
        tables: encoded columns of users and of items.
    """
    features, tables = fitted.schema.features, list(tables)
    messages = []
    for feature, definition in features.items():
        encoder = fitted.encoders.get(feature)
        if definition.vocab is None or not isinstance(encoder, IdEncoder):
            continue
        names = [feature, *(other for other, one in features.items() if one.share == feature)]
        columns = [column for one in names for column in _columns(fitted, one, build, tables)]
        if any(_occurs(column, last=encoder.rows) for column in columns):
            continue
        keys = encoder.keys.values
        messages.append(
            f"feature {feature!r}: none of the {len(keys):,} values of its vocabulary (the first is "
            f"{keys[0].as_py()!r}) occurs in column {fitted.schema.column(feature)!r}, so it has no information: "
            "every value counts as unseen; correct vocab, or remove it to learn the values"
        )
    return messages


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
    """Return whether an id of a vocabulary value occurs in a column. ``last`` is the first id after them."""
    for start in range(0, len(column), _CHUNK):
        chunk = column[start : start + _CHUNK]
        if ((chunk >= FIRST) & (chunk < last)).any():
            return True
    return False
