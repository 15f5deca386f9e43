"""Float32 values of numbers: nothing becomes infinite in the cast."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError


def to_float32(values: NDArray[np.float64], where: str) -> NDArray[np.float32]:
    """Cast numbers to float32.

    Args:
        values: numbers of any shape. The first axis counts rows.
        where: name of the column in the error.

    Raises:
        DataError: if a number is beyond the range of float32.
    """
    with np.errstate(over="ignore"):
        narrow: NDArray[Any] = values.astype(np.float32)
    beyond = np.argwhere(np.isinf(narrow))
    if len(beyond):
        position = tuple(beyond[0])
        message = f"{values[position]:.3g} at row {position[0]}, beyond the range of float32"
        raise DataError(where, message, "numbers between -3.4e38 and 3.4e38", "scale or correct the values")
    return narrow
