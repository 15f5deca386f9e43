"""Value of the top of a list: its click rate, and its share of all value."""

from __future__ import annotations

from numpy.typing import ArrayLike

from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import as_labels, as_numbers
from longrec.metrics.ranking import compute_ranks


def ctr_at_k(label: ArrayLike, score: ArrayLike, group: ArrayLike, k: int) -> float:
    """Return the click rate of the rows that the score ranks among the first ``k`` of their list.

    On logged data this is no forecast of an online rate, because only shown items could be clicked. Ties are ranked
    with the unclicked first.

    Args:
        label: ``[N]`` of 0 and 1.
        score: ``[N]`` finite numbers.
        group: ``[N]`` the list of each row. All rows of a list shorter than ``k`` count.

    Raises:
        DataError: if a column cannot be used.
        ConfigError: if ``k`` is below 1.

    >>> ctr_at_k([1, 0, 0, 1], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2], k=1)
    0.5
    """
    y = as_labels(label)
    return float(y[compute_ranks(as_numbers(score, "score", len(y)), y, group) <= _check_k(k)].mean())


def value_share_at_k(value: ArrayLike, score: ArrayLike, group: ArrayLike, k: int) -> float:
    """Return the share of all value (revenue, watch time, clicks times price) in the first ``k`` rows of each list.

    Args:
        value: ``[N]`` value of each row, not negative.
        score, group, k: as :func:`ctr_at_k`.

    Raises:
        DataError: if a value is negative, all values are 0, or a column cannot be used.
        ConfigError: if ``k`` is below 1.

    >>> value_share_at_k([30, 0, 0, 10], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2], k=1)
    0.75
    """
    v = as_numbers(value, "value")
    if (v < 0).any() or not v.any():
        raise DataError("column 'value'", f"values from {v.min():g} to {v.max():g}", "none negative, one positive")
    return float(v[compute_ranks(as_numbers(score, "score", len(v)), v, group) <= _check_k(k)].sum() / v.sum())


def _check_k(k: int) -> int:
    if k < 1:
        raise ConfigError("k", [f"must be at least 1, got {k}"])
    return k
