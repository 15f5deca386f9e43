"""Vectors and index of the items of a vector retriever, in its bundle."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longrec.exporting.bundle import INDEX, LISTS, REQUESTS, Bundle
from longrec.exporting.catalog import build_catalog_tensors, build_item_tensors
from longrec.exporting.runtime import Program
from longrec.features.entity_table import EntityTable, open_array
from longrec.features.fitted_schema import FittedSchema
from longrec.index.build import IndexFacts, IndexSettings, Queries, build_index
from longrec.index.inverted_lists import InvertedLists
from longrec.index.item_index import ItemIndex

_AT_ONCE = 65_536
"""Number of items whose vectors are computed in one run."""


def write_index(
    program: Program,
    fitted: FittedSchema,
    items: EntityTable,
    folder: Path,
    settings: IndexSettings,
    queries: Queries | None,
) -> IndexFacts:
    """Write the vectors of all items and their index into a bundle.

    Args:
        queries: function that returns the vectors of requests of users, to measure the recall of inverted lists. A
            bundle with lists keeps them, to measure it again after changes (``tuned_lists.py``).

    Raises:
        BundleError: if there are too few requests.
    """
    vectors = [
        program.run(build_catalog_tensors(fitted, items, first, min(first + _AT_ONCE, len(items))))
        for first in range(1, len(items), _AT_ONCE)
    ]
    every: NDArray[np.float32] = np.concatenate(vectors)
    np.save(folder / INDEX, every)
    queries = None if queries is None else cache(queries)
    lists, facts = build_index(every, settings, queries)
    if lists is not None and queries is not None:
        lists.save(folder / LISTS)
        np.save(folder / REQUESTS, queries())
    return facts


def open_index(bundle: Bundle, exact: bool = False) -> ItemIndex:
    """Open the index of a bundle.

    Args:
        exact: leave out inverted lists.
    """
    vectors, facts = open_array(bundle.files / INDEX), bundle.manifest.index
    if exact or facts is None or not facts.lists:
        return ItemIndex(vectors)
    return ItemIndex(vectors, InvertedLists.open(bundle.files / LISTS, len(vectors), facts.nprobe, facts.nprobe_half))


def compute_vectors(
    program: Program, fitted: FittedSchema, items: EntityTable, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the vectors of some rows of the item table, float32 ``[n, D]``."""
    vectors: NDArray[np.float32] = program.run(build_item_tensors(fitted, items, rows))
    return vectors
