"""Index of the vectors of a catalog that changes: a large base, and a small segment of changed and added items.

Shapes: I rows (items), B rows of the base, S rows of the side segment, K queries (interests of one request), D width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.index.inverted_lists import InvertedLists
from longrec.index.top import select_top

_BLOCK = 16_384
"""Rows that are multiplied with all queries together, while they are in the cache. A multiple of 4, as kernels of
matrix products need it for the same bits in every block."""
_NARROW = 16
"""Width below which these kernels depend on the number of rows, so that there are no blocks."""
_FEW = 0.05
"""Share of the rows below which inverted lists would return too few of them, and the rows themselves are compared."""
_GATHERED = 0.2
"""Share of the rows below which copying their vectors is faster than comparing all."""
_SIDE = 0.1
"""Share of the base above which the side segment is moved into the inverted lists."""


class ItemIndex:
    """Search for the rows with the largest inner products, the largest one over the queries of a request.

    Args:
        vectors: float32 ``[B, D]``, which may be mapped from a file. It is not changed.
        lists: inverted lists of the base. None: exact search.

    Attributes:
        side_rows: int64 ``[S]``, the rows whose vectors are not those of the base, ascending.
        side_vectors: float32 ``[S, D]``, their vectors.
    """

    def __init__(self, vectors: NDArray[np.float32], lists: InvertedLists | None = None) -> None:
        self.base, self.lists = vectors, lists
        self.side_rows = np.zeros(0, np.int64)
        self.side_vectors = np.zeros((0, vectors.shape[1]), np.float32)
        self._pending = np.zeros(0, np.int64)  # rows of the side segment that the inverted lists lack

    def __len__(self) -> int:
        return max(len(self.base), int(self.side_rows.max(initial=-1)) + 1)

    @property
    def is_exact(self) -> bool:
        """True without inverted lists."""
        return self.lists is None

    def replace(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> bool:
        """Set the vectors of some distinct rows: of the base, added before, or new ones after the last row.

        Returns:
            True if the side segment was moved into the inverted lists, whose recall may have changed.

        Raises:
            ValueError: if new rows leave a gap.
        """
        kept = ~np.isin(self.side_rows, rows)
        every = np.concatenate([self.side_rows[kept], rows])
        if len(np.unique(every[every >= len(self.base)])) != max(int(every.max(initial=-1)) + 1 - len(self.base), 0):
            raise ValueError("rows of new items must follow each other")
        order = np.argsort(every, kind="stable")
        self.side_vectors = np.concatenate([self.side_vectors[kept], vectors.astype(np.float32)])[order]
        self.side_rows = every[order]
        self._pending = np.union1d(self._pending, rows)
        if self.lists is None or len(self._pending) <= _SIDE * len(self.lists):
            return False
        self.compact()
        return True

    def compact(self) -> None:
        """Move the side segment into the inverted lists, if there are any. Their centroids remain."""
        if self.lists is not None:
            self.lists.replace(self._pending, self.read(self._pending))
            self._pending = np.zeros(0, np.int64)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of some rows, float32 ``[n, D]``."""
        if not len(self.side_rows):
            return self.base.take(rows, axis=0)
        at = np.minimum(self.side_rows.searchsorted(rows), len(self.side_rows) - 1)
        own = self.side_rows[at] == rows
        vectors = np.empty((len(rows), self.base.shape[1]), np.float32)
        vectors[own] = self.side_vectors[at[own]]
        vectors[~own] = self.base[rows[~own]]
        return vectors

    def score(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the score of every row, float32 ``[I]``."""
        scores = np.empty(len(self), np.float32)
        _multiply(self.base, queries, scores[: len(self.base)])
        scores[self.side_rows] = _multiply(self.side_vectors, queries)
        return scores

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None, exact: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best rows, best first, and their scores: k of them, or all that are allowed if there are fewer.

        Of equal scores the first rows come first.

        Args:
            queries: float32 ``[K, D]``.
            allowed: mask ``[I]`` of the rows that may be returned. None: all.
            exact: compare all rows in spite of inverted lists.
        """
        count = len(self) if allowed is None else int(np.count_nonzero(allowed))
        if self.lists is None or exact or count < _FEW * len(self):
            return self._search_exactly(queries, k, allowed, count)
        rows, scores = self.search_lists(queries, k, allowed)
        if len(rows) < min(k, count):  # the lists that were read hold too few allowed rows
            return self._search_exactly(queries, k, allowed, count)
        return rows, scores

    def _search_exactly(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if allowed is None or count >= _GATHERED * len(self):
            scores = self.score(queries)
            if allowed is not None:
                scores[~allowed] = -np.inf
            rows = select_top(scores, min(k, count))
            return rows, scores[rows]
        some = np.flatnonzero(allowed)
        scores = _multiply(self.read(some), queries)
        best = select_top(scores, k)
        return some[best], scores[best]

    def search_lists(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best rows in the inverted lists nearest to the queries, which may be fewer than k.

        Args:
            queries, k, allowed: as in ``search``.
        """
        lists = self.lists
        assert lists is not None
        # The k best rows by the largest score over the queries are among the k best of each query that wins.
        side = self._pending
        kept = None if allowed is None else allowed[: lists.rows]
        stale = side[side < lists.rows]
        if len(stale):
            kept = np.ones(lists.rows, bool) if kept is None else kept.copy()
            kept[stale] = False
        share = 1.0 if allowed is None else max(np.count_nonzero(allowed) / len(allowed), _FEW)
        rows_KN, scores_KN = lists.search(queries, k, kept, share)
        rows, scores = rows_KN.ravel(), scores_KN.ravel()
        rows, scores = rows[rows >= 0], scores[rows >= 0]
        if len(side):
            own = side if allowed is None else side[allowed[side]]
            rows = np.concatenate([rows, own])
            scores = np.concatenate([scores, _multiply(self.read(own), queries)])
        order = np.lexsort((rows, -scores))
        rows, scores = rows[order], scores[order]
        if len(queries) > 1:  # a row keeps its best score, which comes first
            first = np.sort(np.unique(rows, return_index=True)[1])
            rows, scores = rows[first], scores[first]
        return rows[:k], scores[:k]


def _multiply(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the largest inner product of each vector with a query, float32 ``[n]``."""
    if out is None:
        out = np.empty(len(vectors), np.float32)
    step = _BLOCK if len(queries) > 1 and vectors.shape[1] >= _NARROW else max(len(vectors), 1)
    own = np.empty(min(step, len(vectors)), np.float32)
    for first in range(0, len(vectors), step):
        block, best = vectors[first : first + step], out[first : first + step]
        np.dot(block, queries[0], out=best)
        for query in queries[1:]:
            np.maximum(best, np.dot(block, query, out=own[: len(block)]), out=best)
    return out
