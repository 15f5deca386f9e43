"""Paths of the items of a bundle of a generator, and their trie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.exporting.bundle import GeneratorFacts
from longrec.exporting.catalog import NEWEST
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import MISSING
from longrec.generation.trie import Trie


def build_item_trie(facts: GeneratorFacts, items: EntityTable) -> Trie:
    """Return the trie of all items that have codes. It numbers them from 0, without the unknown item."""
    rows, paths = _read_servable(facts, items, np.arange(1, len(items)))
    return Trie.build(paths, rows - 1, facts.sizes)


def update_item_trie(trie: Trie, facts: GeneratorFacts, items: EntityTable, rows: NDArray[np.int64]) -> Trie:
    """Return a trie in which some rows of the item table have their present paths, or none without codes."""
    servable, paths = _read_servable(facts, items, rows)
    return trie.remove(rows - 1).add(paths, servable - 1)


def _read_servable(
    facts: GeneratorFacts, items: EntityTable, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the rows whose items have codes, and their paths ``[n, S]``."""
    columns = items.as_of(rows, NEWEST)
    paths = np.stack([np.asarray(columns[name]) for name in facts.path], 1).astype(np.int32)
    servable = (paths[:, facts.attributes :] != MISSING).all(1)
    return rows[servable], paths[servable]
