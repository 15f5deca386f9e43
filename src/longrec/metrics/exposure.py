"""Coverage, concentration and entropy of the items that lists show, with intervals over users.

A resample of users has some users twice and others not at all, so that its lists show fewer different items than all
lists do: the draws of coverage and entropy are too low, and those of Gini too high. They are shifted so that their mean
is the value, as those of ECE are. An interval is about how much the value depends on who was measured. It is no
interval for the coverage of more users, which only grows with their number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.columns import Floats, Ints
from longrec.metrics.diversity import entropy_of_exposure, gini
from longrec.metrics.interval import Interval
from longrec.metrics.resamples import MetricDraws, UserResamples


def draw_exposure(item: ArrayLike, group: ArrayLike, catalog: int, resamples: UserResamples) -> MetricDraws:
    """Return coverage, Gini and entropy of exposure on all lists and on every resample.

    Args:
        item: ``[N]`` number of each listed item in the catalog, from 0.
        group: ``[N]`` number of the list of each item, a position in the users of ``resamples``.
        catalog: number of items that can be listed.

    Raises:
        DataError: if there are no listed items, or an item is outside of the catalog.

    >>> drawn = draw_exposure([0, 1, 0, 2], [0, 0, 1, 1], catalog=4, resamples=UserResamples([7, 8], n_resamples=10))
    >>> {name: round(value, 4) for name, value in drawn.values.items()}
    {'coverage': 0.75, 'gini': 0.375, 'entropy': 1.5}
    """
    item_N = _check_items(item, catalog)
    owner_N = resamples.owner[np.asarray(group)]
    distinct, number_N = np.unique(item_N, return_inverse=True)
    own = _measure(np.bincount(number_N).astype(np.float64), catalog)
    draws = np.empty((resamples.n_resamples, 3))
    for r, drawn_U in enumerate(resamples):
        draws[r] = _measure(np.bincount(number_N, drawn_U[owner_N], len(distinct)).astype(np.float64), catalog)
    names = ("coverage", "gini", "entropy")
    highest = np.array([1.0, 1.0, np.log2(catalog)])
    defined = np.isfinite(draws[:, 0])
    mean = draws[defined].mean(0) if defined.any() else own
    shifted = np.where(defined[:, None], np.clip(draws + (own - mean), 0.0, highest), np.nan)
    return MetricDraws(
        dict(zip(names, own.tolist())),
        {name: shifted[:, index] for index, name in enumerate(names)},
        {"coverage": "higher", "gini": "neither", "entropy": "neither"},
    )


def summarize_exposure(
    item: ArrayLike, group: ArrayLike, user: ArrayLike, catalog: int, *, n_resamples: int = 300, seed: int = 0
) -> dict[str, Interval]:
    """Return coverage, Gini and entropy of exposure, each with a 95 % bootstrap interval over users.

    Args:
        item: ``[N]`` number of each listed item in the catalog, from 0.
        group: ``[N]`` number of the list of each item, from 0.
        user: ``[L]`` user of each list.
        catalog: number of items that can be listed.

    Raises:
        DataError: if there are no listed items, an item is outside of the catalog, or there is one user.

    >>> print(summarize_exposure([0, 0, 1, 0], [0, 1, 2, 3], [7, 8, 9, 9], catalog=4, n_resamples=20)["coverage"])
    0.5000 [0.3125, 0.5625]
    """
    return draw_exposure(item, group, catalog, UserResamples(user, n_resamples, seed)).summarize()


def _measure(exposure: Floats, catalog: int) -> Floats:
    """Return coverage, Gini and entropy of counts, without those of items that are never listed."""
    shown = exposure[exposure > 0]
    if not len(shown):  # a resample of users without a listed item
        return np.full(3, np.nan)
    with_absent = np.zeros(catalog) if len(shown) < catalog else shown
    with_absent[: len(shown)] = shown
    return np.array([len(shown) / catalog, gini(with_absent), entropy_of_exposure(shown)])


def _check_items(item: ArrayLike, catalog: int) -> Ints:
    item_N = np.asarray(item)
    if item_N.ndim != 1 or not len(item_N):
        do = "list items for at least one request"
        raise DataError("column 'item'", f"an array of shape {item_N.shape}", "one listed item or more", do)
    if item_N.dtype.kind not in "iu" or item_N.min() < 0 or item_N.max() >= catalog:
        expected = f"numbers of the catalog's {catalog:,} items, from 0"
        raise DataError("column 'item'", f"values of type {item_N.dtype}, {item_N.min()} to {item_N.max()}", expected)
    return item_N.astype(np.int64)
