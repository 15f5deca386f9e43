"""Scale of the tokens of one source version: (vector - mean) / deviation, or unscaled."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class Scale(msgspec.Struct, frozen=True):
    """Mean and deviation of each number of the vectors, or None for unscaled vectors."""

    mean: list[float] | None = None
    std: list[float] | None = None

    def standardize(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """Convert vectors of the source model to tokens, float32 ``[n, W]``."""
        if self.mean is None or self.std is None:
            return vectors.astype(np.float32)
        return ((vectors - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def unstandardize(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Convert tokens to vectors of the source model, float64 ``[n, W]``."""
        if self.mean is None or self.std is None:
            return tokens.astype(np.float64)
        return tokens.astype(np.float64) * np.array(self.std) + np.array(self.mean)
