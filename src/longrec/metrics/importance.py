"""Importance weights of a log of random draws, their effective sample size, and checks of the columns.

Shapes: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.columns import Floats

_LISTED = 5
"""Number of rows that an error names."""


def effective_sample_size(weight: ArrayLike) -> float:
    """Return (sum w)^2 / sum w^2: the number of rows of equal weight that are as informative. 0 if all weights are 0.

    >>> effective_sample_size([1, 1, 2])
    2.6666666666666665
    """
    w = np.asarray(weight, np.float64)
    square = float(w @ w)
    return float(w.sum()) ** 2 / square if square > 0 else 0.0


def importance_weights(propensity: ArrayLike, target: ArrayLike) -> Floats:
    """Return the weights w = target / propensity, float64 ``[N]``.

    Args:
        propensity: ``[N]`` probability with which the logging policy drew the item of each row, above 0 and at most 1.
        target: ``[N]`` probability of the target policy for the same item, within [0, 1].

    Raises:
        DataError: probabilities outside of these bounds, null or NaN, with the numbers of their rows from 0.

    >>> importance_weights([0.5, 0.25], [0.5, 1.0]).tolist()
    [1.0, 4.0]
    """
    mu = _as_column(propensity, "propensity")
    pi = _as_column(target, "target", len(mu))
    do = "log the probability with which each item was drawn; a policy that draws nothing at random has none"
    _refuse(mu, ~((mu > 0) & (mu <= 1)), "propensity", "probabilities above 0 and at most 1", do)
    do = "write the probability of the target policy for the shown item, 0 for an item that it never shows"
    _refuse(pi, ~((pi >= 0) & (pi <= 1)), "target", "probabilities between 0 and 1", do)
    weight: Floats = pi / mu
    return weight


def as_finite(values: ArrayLike, name: str, rows: int) -> Floats:
    """Return a column of finite numbers as float64 ``[N]``.

    Raises:
        DataError: null, NaN or infinite values, with the numbers of their rows, or another number of rows.
    """
    column = _as_column(values, name, rows)
    _refuse(column, ~np.isfinite(column), name, "finite numbers", "drop or fill these rows")
    return column


def _as_column(values: ArrayLike, name: str, rows: int | None = None) -> Floats:
    """Return a column as float64 ``[N]``, with NaN for null."""
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    try:
        column: Floats = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"column '{name}'", f"values of type {np.asarray(values).dtype}", "numbers") from None
    if masked is not None:
        column[masked] = np.nan
    if column.ndim != 1 or not len(column):
        raise DataError(f"column '{name}'", f"an array of shape {column.shape}", "one value per row")
    if rows is not None and len(column) != rows:
        raise DataError(f"column '{name}'", f"{len(column):,} rows", f"{rows:,} rows, as the propensity has")
    return column


def _refuse(column: Floats, bad: np.ndarray, name: str, expected: str, do: str) -> None:
    """Raise a DataError that names the bad rows."""
    if not bad.any():
        return
    numbers = np.flatnonzero(bad)
    shown = ", ".join(map(str, numbers[:_LISTED].tolist())) + (", ..." if len(numbers) > _LISTED else "")
    kinds = [f"{int(np.isnan(column).sum()):,} null or NaN"] if np.isnan(column).any() else []
    other = column[bad & ~np.isnan(column)]
    kinds += [f"{len(other):,} such as {other[0]:g}"] if len(other) else []
    what = f"{len(numbers):,} bad values in {len(column):,} rows ({', '.join(kinds)}; rows {shown}, from 0)"
    raise DataError(f"column '{name}'", what, expected, do)
