"""Inverted lists of item vectors (IVF): an approximate search that reads the lists nearest to a query.

faiss is imported when lists are built or opened, so that a bundle with exact search does without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ConfigError

_SEED = 1
_LEAST_POINTS, _MOST_POINTS = 1, 256
"""Numbers of training vectors per list: at least, without a warning, and at most."""


class InvertedLists:
    """Lists of rows by the nearest of their centroids, for one thread.

    Attributes:
        rows: number of rows that ids may have.
        nprobe: number of lists that a search reads.
        nprobe_half: number of them if half of the rows may be returned, whose best ones lie in more lists.
    """

    def __init__(self, lists: Any, rows: int, nprobe: int, nprobe_half: int = 0) -> None:
        self._lists, self.rows, self.nprobe = lists, rows, nprobe
        self.nprobe_half = nprobe_half or 2 * nprobe

    @classmethod
    def train(cls, vectors: NDArray[np.float32], count: int, nprobe: int = 1) -> InvertedLists:
        """Build lists of all vectors. The same vectors give the same lists.

        Args:
            vectors: float32 ``[I, D]``.
            count: number of lists.
        """
        faiss = import_faiss()
        with _one_thread(faiss):
            width = vectors.shape[1]
            lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, count, faiss.METRIC_INNER_PRODUCT)
            lists.cp.seed, lists.cp.min_points_per_centroid = _SEED, _LEAST_POINTS
            lists.cp.max_points_per_centroid = _MOST_POINTS
            lists.train(vectors)
            lists.add(vectors)
        return cls(lists, len(vectors), nprobe)

    def with_nprobe(self, nprobe: int) -> InvertedLists:
        """Return the same lists, of which a search reads another number, under any filter."""
        return InvertedLists(self._lists, self.rows, nprobe, nprobe)

    @property
    def count(self) -> int:
        """Number of lists."""
        return int(self._lists.nlist)

    def __len__(self) -> int:
        return int(self._lists.ntotal)

    def count_read(self, share: float) -> int:
        """Return the number of lists that a search reads if a share of the rows may be returned.

        It grows with every halving of the share as it does with the first.
        """
        growth = max(self.nprobe_half / self.nprobe, 1.0)
        return min(math.ceil(self.nprobe * growth ** -math.log2(share)), self.count)

    def save(self, path: Path) -> None:
        """Write the lists into a file."""
        import_faiss().write_index(self._lists, str(path))

    @classmethod
    def open(cls, path: Path, rows: int, nprobe: int, nprobe_half: int = 0) -> InvertedLists:
        """Read the lists from a file."""
        return cls(import_faiss().read_index(str(path)), rows, nprobe, nprobe_half)

    def replace(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Set the vectors of some rows, known or new. The centroids remain."""
        faiss = import_faiss()
        with _one_thread(faiss):
            self._lists.remove_ids(rows)
            self._lists.add_with_ids(np.ascontiguousarray(vectors), rows)
        self.rows = max(self.rows, int(rows.max(initial=-1)) + 1)

    def search(
        self, queries: NDArray[np.float32], k: int, kept: NDArray[np.bool_] | None = None, share: float = 1.0
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows and scores of the best rows of every query, in no order, -1 where there are fewer than k.

        Args:
            queries: float32 ``[K, D]``.
            kept: mask ``[I]`` of the rows that may be returned. None: all.
            share: share of the rows that may be returned, above 0.
        """
        faiss = import_faiss()
        parameters = faiss.SearchParametersIVF(nprobe=self.count_read(share))
        if kept is not None:
            bits = np.packbits(kept, bitorder="little")
            parameters.sel = faiss.IDSelectorBitmap(bits)
        with _one_thread(faiss):
            scores, rows = self._lists.search(np.ascontiguousarray(queries), k, params=parameters)
        return rows, scores


def import_faiss() -> Any:
    """Return the module faiss.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError:
        fault = "an index of inverted lists needs faiss, which is not installed"
        do = "pip install 'longrec[serve]', or export with an exact index"
        raise ConfigError("index", [f"{fault}; {do}"]) from None
    return faiss


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    """Let faiss use one thread: sums of several threads have no fixed order, and servers run a process per core."""
    before = faiss.omp_get_max_threads()
    if before == 1:
        yield
        return
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
