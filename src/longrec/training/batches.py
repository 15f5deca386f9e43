"""Batches of a prepared log for a training loop in Python."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from longrec.data.loader import Loader
from longrec.data.log import Log
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.models.core.base import Model
from longrec.training.loaders import build_loader


class Batches:
    """Batches of one split. Each loop over it is one epoch, in an order of its own if it is shuffled.

    Attributes:
        rows: row indices of the samples in the log, int64.
        next_epoch: number of the epoch that the next loop yields.
    """

    def __init__(
        self, log: Log, split: str, batch_size: int, seed: int, shuffle: bool, model: Model | None, epoch: int
    ) -> None:
        if batch_size < 1:
            raise ConfigError("batches", [f"batch_size: must be at least 1, got {batch_size}"])
        self.rows: NDArray[np.int64] = log.rows_of(split)
        self.next_epoch = epoch
        self._loader = (
            Loader(log, self.rows, batch_size, seed=seed, shuffle=shuffle)
            if model is None
            else build_loader(model, log, self.rows, batch_size, seed=seed, shuffle=shuffle)
        )

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        number, self.next_epoch = self.next_epoch, self.next_epoch + 1
        return self._loader.epoch(number)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Return the batches of an epoch by its number, counted from 0."""
        return self._loader.epoch(number)

    def __repr__(self) -> str:
        return f"Batches({len(self.rows):,} rows in {len(self):,} batches)"
