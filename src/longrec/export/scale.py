"""The scale on which a version of a source delivers its tokens: (vector - mean) / deviation, or as they are."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class Scale(msgspec.Struct, frozen=True):
    """Mean and deviation of each number of the vectors, or None for vectors as the source makes them."""

    mean: list[float] | None = None
    std: list[float] | None = None

    def standardize(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """float32 ``[n, W]``: vectors of the source as tokens."""
        if self.mean is None or self.std is None:
            return vectors.astype(np.float32)
        return ((vectors - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def unstandardize(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """float64 ``[n, W]``: tokens as vectors of the source."""
        if self.mean is None or self.std is None:
            return tokens.astype(np.float64)
        return tokens.astype(np.float64) * np.array(self.std) + np.array(self.mean)
