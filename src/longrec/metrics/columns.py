"""Validation of the inputs of metrics: columns of equal length, with messages a user can act on."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def as_numbers(values: ArrayLike, name: str, rows: int | None = None) -> Floats:
    """Return a column of finite numbers as float64 ``[N]``.

    Raises:
        DataError: if the column is not one-dimensional, is empty, does not have ``rows`` rows, or has values that are
            not finite numbers.
    """
    column = _as_flat(values, name, rows)
    if column.dtype.kind not in "biuf":
        raise DataError(f"column '{name}'", f"values of type {column.dtype}", "numbers")
    result: Floats = column.astype(np.float64)
    bad = ~np.isfinite(result)
    if bad.any():
        raise DataError(
            f"column '{name}'",
            f"{int(bad.sum())} values that are NaN or infinite (first at row {int(bad.argmax())})",
            "finite numbers",
            "check the model that wrote them: a diverged training run scores NaN",
        )
    return result


def as_labels(values: ArrayLike, name: str = "label") -> Floats:
    """Return a column of 0 and 1 as float64 ``[N]``.

    Raises:
        DataError: as :func:`as_numbers`, and if a value is neither 0 nor 1.
    """
    column = as_numbers(values, name)
    bad = (column != 0) & (column != 1)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"column '{name}'", f"the value {column[row]:g} at row {row}", "0 or 1 in every row")
    return column


def require_both_classes(label: Floats, name: str = "label") -> None:
    """Raise a DataError if ``label`` holds one class only."""
    ones = int(label.sum())
    if ones in (0, len(label)):
        raise DataError(
            f"column '{name}'",
            f"{len(label):,} rows that are all {int(label[0])}",
            "at least one row of each class",
            "check the rule that makes the label, or measure a larger split",
        )


def as_probabilities(values: ArrayLike, rows: int, name: str = "score") -> Floats:
    """Return a column of numbers within [0, 1] as float64 ``[N]``.

    Raises:
        DataError: as :func:`as_numbers`, and if a value is outside [0, 1].
    """
    column = as_numbers(values, name, rows)
    bad = (column < 0) | (column > 1)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"column '{name}'",
            f"the value {column[row]:g} at row {row}",
            "probabilities between 0 and 1",
            "pass the scores through a sigmoid first",
        )
    return column


def as_weights(values: ArrayLike | None, rows: int) -> Floats:
    """Return row weights as float64 ``[N]``: ones when ``values`` is None.

    Raises:
        DataError: as :func:`as_numbers`, and if a weight is negative or all weights are 0.
    """
    if values is None:
        return np.ones(rows)
    column = as_numbers(values, "weight", rows)
    if (column < 0).any() or not column.any():
        raise DataError(
            "column 'weight'",
            f"weights from {column.min():g} to {column.max():g}",
            "none negative, one positive",
        )
    return column


def number_groups(values: ArrayLike, name: str, rows: int) -> tuple[Ints, int]:
    """Number the groups of a key column (user, list) 0, 1, ...: ``([N] group of each row, number of groups)``.

    Raises:
        DataError: if the column is not one-dimensional, or does not have ``rows`` rows.
    """
    distinct, group = np.unique(_as_flat(values, name, rows), return_inverse=True)
    return group.astype(np.int64, copy=False), len(distinct)


def _as_flat(values: ArrayLike, name: str, rows: int | None) -> NDArray[Any]:
    column = np.asarray(values)
    if column.ndim != 1:
        raise DataError(f"column '{name}'", f"an array of shape {column.shape}", "one value per row")
    if len(column) == 0:
        raise DataError(f"column '{name}'", "no rows", "at least one row")
    if rows is not None and len(column) != rows:
        raise DataError(f"column '{name}'", f"{len(column):,} rows", f"{rows:,} rows, as the label has")
    return column
