r"""MMR: The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing Summaries.

Carbonell, Goldstein, SIGIR 1998. https://doi.org/10.1145/290941.291025

The next item is relevant and unlike every item before it:

    next = argmax_{i not in S}  lambda r_i - (1 - lambda) max_{j in S} <f_i, f_j>        (maximum 0 if S is empty)

r is relevance scaled to 0 .. 1 within the list, because scores and similarities have different units. f are unit
vectors. Each item keeps its largest similarity so far, which the last chosen item alone can raise: O(N K D).

A duplicate of a chosen item loses (1 - lambda)(1 - similarity) against a new item. It comes after each new item that is
as relevant, and before one that is less relevant by more than this loss over lambda.

Shapes: N items of the list, K chosen items, D width of a vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.pipeline.rerank_inputs import check_count, check_share, normalize_relevance, normalize_vectors


def mmr(relevance_N: ArrayLike, vectors_ND: ArrayLike, k: int, trade_off: float) -> NDArray[np.int64]:
    """Return the indices of the first ``k`` items in the order of MMR, int64 ``[min(k, N)]``.

    Of equal values the most relevant item comes first, then the first one of the list.

    Args:
        relevance_N: score of every item, in any unit. Higher is better.
        vectors_ND: vector of every item, of any length. A zero vector is similar to no item.
        k: number of items.
        trade_off: lambda. 1 sorts by relevance, 0 regards similarity alone.

    Raises:
        ConfigError: if ``k`` is negative, or the trade-off is outside 0 .. 1.
        DataError: if a shape is wrong or a value is not finite.

    >>> mmr([0.9, 0.8, 0.7], [[1, 0], [1, 0], [0, 1]], k=3, trade_off=0.5).tolist()  # the second repeats the first
    [0, 2, 1]
    """
    check_count("k", k)
    check_share("trade_off", trade_off)
    r_N = normalize_relevance(relevance_N)
    order = np.argsort(-r_N, kind="stable")
    f_ND = normalize_vectors(vectors_ND, len(r_N))[order]
    gain_N = trade_off * r_N[order]
    chosen = np.zeros(min(k, len(r_N)), np.int64)
    nearest_N = np.full(len(r_N), -np.inf)
    value_N = gain_N.copy()
    for step in range(len(chosen)):
        best = chosen[step] = value_N.argmax()
        gain_N[best] = -np.inf
        np.maximum(nearest_N, f_ND @ f_ND[best], out=nearest_N)
        value_N = gain_N - (1 - trade_off) * nearest_N
    return order[chosen]
