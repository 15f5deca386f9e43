"""Counts of nulls in numeric features, whose encoded values have replaced them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.data.splits import SPLITS

UNLABELED = len(SPLITS)
"""Added to the split code of a row without a label."""
STATES = 2 * UNLABELED


def compute_states(labels: NDArray[np.float32], codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return the split code of each row, plus 3 for rows without a label, int8 ``[n]``."""
    return np.where(np.isnan(labels), codes + np.int8(UNLABELED), codes).astype(np.int8)


@dataclass
class NullCounts:
    """Nulls of the numeric features of a log.

    Attributes:
        rows: number of rows with a null by feature of the row and by state, int64 ``[6]``.
        entities: mask of nulls by feature of users or items, bool, one entry per row of its table.
    """

    rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    entities: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def add(self, name: str, values: pa.Array, states: NDArray[np.int8]) -> None:
        """Count the nulls of a chunk of a feature of the row.

        Args:
            states: from ``compute_states``, of the rows of the chunk.
        """
        counts = self.rows.setdefault(name, np.zeros(STATES, np.int64))
        if values.null_count or not pa.types.is_integer(values.type):
            counts += np.bincount(states[mask_nulls(values)], minlength=STATES)


def mask_nulls(values: pa.Array) -> NDArray[np.bool_]:
    """Return the mask of nulls, NaN and empty text, bool ``[n]``."""
    nulls: Any = pc.is_null(values, nan_is_null=True)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        nulls = pc.or_(nulls, pc.fill_null(pc.equal(values, ""), True))
    mask: NDArray[np.bool_] = nulls.to_numpy(zero_copy_only=False)
    return mask
