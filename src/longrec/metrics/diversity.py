"""Metrics of a set of recommendations: coverage, concentration, entropy, novelty and diversity.

:mod:`longrec.metrics.exposure` has intervals over users of the first three.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.columns import Floats, as_numbers, number_groups


def coverage(items: ArrayLike, catalog: int) -> float:
    """Return the share of the catalog that was recommended at least once.

    Args:
        items: ``[N]`` recommended item of each row, all lists together.
        catalog: number of items.

    Raises:
        DataError: if there are more distinct items than in the catalog, or no rows.

    >>> coverage([3, 3, 5], catalog=4)
    0.5
    """
    _, distinct = number_groups(items, "items", len(np.asarray(items)))
    if distinct > catalog:
        raise DataError("column 'items'", f"{distinct:,} distinct items", f"at most the catalog's {catalog:,}")
    return distinct / catalog


def gini(exposure: ArrayLike) -> float:
    r"""Return the concentration of exposure: 0 when all items are shown equally often, near 1 when one item gets all.

        G = sum_i (2 i - n - 1) x_i / (n sum_i x_i)        x sorted, i = 1..n

    Args:
        exposure: ``[n]`` number of times each item of the catalog was shown. Items never shown count as 0.

    Raises:
        DataError: if a count is negative, nothing was shown, or there are no items.

    >>> gini([1, 1, 1, 1]), gini([0, 0, 0, 4])
    (0.0, 0.75)
    """
    x, n = _check_exposure(exposure)
    x = np.sort(x[x > 0])  # items never shown come first, and add nothing
    i = np.arange(n - len(x) + 1, n + 1)
    return float((2 * i - n - 1) @ x / (n * x.sum()))


def entropy_of_exposure(exposure: ArrayLike) -> float:
    r"""Return the Shannon entropy of exposure in bits: 0 when one item gets all, log2(n) when all items get the same.

        H = - sum_i p_i log2 p_i        p_i = x_i / sum_j x_j

    Shannon, Bell System Technical Journal 1948.

    Args:
        exposure: ``[n]`` number of times each item of the catalog was shown. Items never shown add nothing.

    Raises:
        DataError: if a count is negative, nothing was shown, or there are no items.

    >>> entropy_of_exposure([1, 1, 1, 1]), entropy_of_exposure([0, 4])
    (2.0, 0.0)
    """
    x, _ = _check_exposure(exposure)
    x = x[x > 0]
    p = x / x.sum()
    return float(abs(p @ np.log2(p)))


def _check_exposure(exposure: ArrayLike) -> tuple[Floats, int]:
    """Return the counts and the number of items."""
    x = as_numbers(exposure, "exposure")
    if x.min() < 0 or x.max() == 0:
        raise DataError("column 'exposure'", f"counts from {x.min():g} to {x.max():g}", "none negative, one positive")
    return x, len(x)


def novelty(popularity: ArrayLike) -> float:
    r"""Return the mean self-information of the recommended items, in bits.

        - mean_i log2 p_i        p_i = share of users (or of events) that item i already had

    Zhou et al., PNAS 2010; Vargas and Castells, RecSys 2011.

    Args:
        popularity: ``[N]`` p of the item in each recommended row, in (0, 1].

    Raises:
        DataError: if a share is outside (0, 1].

    >>> novelty([0.5, 0.125])
    2.0
    """
    p = as_numbers(popularity, "popularity")
    if (p <= 0).any() or (p > 1).any():
        raise DataError(
            "column 'popularity'",
            f"shares from {p.min():g} to {p.max():g}",
            "above 0 and at most 1",
            "use item_shares, whose floor is for items that nobody had",
        )
    return float(-np.log2(p).mean())


def intra_list_diversity(vectors: ArrayLike, group: ArrayLike) -> float:
    r"""Return the mean pairwise cosine distance within each list, averaged over lists.

        1 - (|sum_i u_i|^2 - sum_i |u_i|^2) / (n (n - 1))        u_i = v_i / |v_i|

    It is computed without forming the pairs, in O(N D). A zero vector has distance 1 to every vector. Lists of one item
    have no pair and are skipped. Ziegler et al., WWW 2005.

    Args:
        vectors: ``[N, D]`` vector of each recommended item.
        group: ``[N]`` list of each item.

    Raises:
        DataError: if shapes are wrong, values are not finite, or no list has two items.

    >>> intra_list_diversity([[1, 0], [0, 1], [2, 0], [3, 0]], [1, 1, 2, 2])  # distances 1 and 0
    0.5
    """
    values_L = list_diversity(vectors, group)
    if np.isnan(values_L).all():
        raise DataError("column 'group'", "no list with two items", "lists of two items or more")
    return float(np.nanmean(values_L))


def list_diversity(vectors: ArrayLike, group: ArrayLike, lists: int | None = None) -> Floats:
    """Return the mean pairwise cosine distance of each list, float64 ``[L]``. NaN for fewer than two items.

    Args:
        vectors: ``[N, D]`` vector of each recommended item.
        group: ``[N]`` list of each item; its number, from 0, with ``lists``.
        lists: number of lists. None: those in ``group``, in ascending order.

    Raises:
        DataError: if shapes are wrong, or values are not finite.

    >>> list_diversity([[1, 0], [0, 1], [2, 0]], [0, 0, 1], lists=2).tolist()
    [1.0, nan]
    """
    v_ND = np.asarray(vectors, np.float64)
    if v_ND.ndim != 2 or not np.isfinite(v_ND).all():
        raise DataError("vectors", f"an array of shape {v_ND.shape}", "[N, D] finite numbers")
    owner, count = number_groups(group, "group", len(v_ND)) if lists is None else (np.asarray(group), lists)
    norm_N = np.linalg.norm(v_ND, axis=1)
    u_ND = v_ND / np.where(norm_N > 0, norm_N, 1.0)[:, None]
    sum_GD = np.zeros((count, v_ND.shape[1]))
    np.add.at(sum_GD, owner, u_ND)
    n_G = np.bincount(owner, minlength=count)
    alone_G = np.bincount(owner, weights=norm_N > 0, minlength=count)
    pairs_G = n_G * (n_G - 1)
    distance_G = 1 - ((sum_GD**2).sum(1) - alone_G) / np.maximum(pairs_G, 1)
    return np.where(pairs_G > 0, distance_G, np.nan)
