"""Check that the predictions of two runs are of the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import RunError


def check_same_rows(
    columns: Sequence[str], split: str, first: str, one: pa.Table, second: str, other: pa.Table
) -> None:
    """Refuse the predictions of two runs that are not of the same rows.

    Raises:
        RunError: what differs.
    """
    do = "compare runs of one log and one split, on the rows that both have (--common), or on a new log (--log FILE)"
    if len(one) != len(other):
        raise RunError(f"{split} rows of {first} and {second}", f"{len(one):,} and {len(other):,}", "the same rows", do)
    # The index of a user depends on the other users of the log. The last row of a user does not.
    if ("weight" in one.column_names) != ("weight" in other.column_names):
        description, expected = "one with sample weights and one without", "both with the same weights"
        raise RunError(
            f"{split} rows of {first} and {second}", description, expected, "set the same evaluate.sample_weight"
        )
    for name in (column for column in columns if column in one.column_names):
        a, b = one[name].to_numpy(), other[name].to_numpy()
        differ = _find_ends(a) != _find_ends(b) if name == "user" else a != b
        if differ.any():
            at = int(np.flatnonzero(differ)[0])
            raise RunError(
                f"{split} rows of {first} and {second}", f"another {name} in sample {at:,}", "the same rows", do
            )


def _find_ends(user: NDArray[Any]) -> NDArray[np.bool_]:
    return np.diff(user) != 0
