"""Churn of semantic IDs between two fits: how many items change their codes, after codes are aligned.

The numbers of codes are arbitrary: two fits may name equal clusters differently. So the codes of the second fit are
renamed first, level by level, by the permutation under which most items have equal codes (``assignment.py``).

Shapes: N items that both have, L levels, K codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.semantic_ids.assignment import assign_exactly
from longrec.semantic_ids.stored import SemanticIds

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Churn:
    """Differences between the codes of items that two fits have in common.

    Attributes:
        items: number of items that both have.
        prefixes: share of them whose first l codes differ after alignment, for l = 1 .. L.
        unaligned: the same without alignment.
        permutations: int64 ``[L, K]``, the code of the first fit that each code of the second one is renamed to.
    """

    items: int
    prefixes: tuple[float, ...]
    unaligned: tuple[float, ...]
    permutations: Int64[NDArray[np.int64], "L K"]


def align_codes(before: Int32[Codes, "N L"], after: Int32[Codes, "N L"], size: int) -> Int64[NDArray[np.int64], "L K"]:
    """Return for each level the code of ``before`` that each code of ``after`` is renamed to, a permutation."""
    permutations = []
    for level in range(before.shape[1]):
        pairs = after[:, level].astype(np.int64) * size + before[:, level]
        shared = np.bincount(pairs, minlength=size * size).reshape(size, size)
        permutations.append(assign_exactly(shared.astype(np.float64)))
    return np.stack(permutations)


def measure_churn(before: Int32[Codes, "N L"], after: Int32[Codes, "N L"], size: int) -> Churn:
    """Measure how many items change their codes. Row i of both is the same item.

    Raises:
        DataError: codes of different numbers of levels or items.
    """
    if before.shape != after.shape:
        raise DataError(
            "churn",
            f"codes of the shapes {before.shape} and {after.shape}",
            "the same items and levels",
            "tokenize both with equal method.levels",
        )
    permutations = align_codes(before, after, size)
    renamed = np.take_along_axis(permutations.T, after.astype(np.int64), 0)
    return Churn(len(before), _compare(before, renamed), _compare(before, after), permutations)


def compare_semantic_ids(before: SemanticIds, after: SemanticIds) -> Churn:
    """Measure the churn of the items that two folders have in common.

    Raises:
        DataError: folders without common items, or with different numbers of levels.
    """
    same_kind = before.items.type == after.items.type
    row = pc.index_in(after.items, before.items) if same_kind else pa.nulls(len(after.items), pa.int32())
    is_common = row.is_valid().to_numpy(zero_copy_only=False)
    if not is_common.any():
        raise DataError("churn", "no item that both have", "semantic IDs of the same catalog")
    at = pc.fill_null(row, 0).to_numpy()[is_common]
    size = max(ids.tokenizer.codebooks.shape[1] for ids in (before, after))
    return measure_churn(before.codes[at], after.codes[is_common], size)


def _compare(before: NDArray[np.integer], after: NDArray[np.integer]) -> tuple[float, ...]:
    """Return the share of rows whose prefix differs, by its length."""
    differs = np.logical_or.accumulate(before != after, 1)
    return tuple(float(share) for share in differs.mean(0)) if len(before) else (0.0,) * before.shape[1]
