"""Input of a model: one batch, with jagged histories and no padding.

Shapes: B rows (impressions), N flat positions of one history over the whole batch, M some of them, T positions of a
shared history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Jagged:
    """Rows of different lengths, concatenated.

    Attributes:
        values: the values of all rows, row after row.
        offsets: int64 ``[rows + 1]``. Row r has ``values[offsets[r]:offsets[r + 1]]``, which may be empty.
        weights: float32, one weight per value, or None.
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None

    def lengths(self) -> Tensor:
        """Return the number of values of each row: int64 ``[rows]``."""
        return self.offsets[1:] - self.offsets[:-1]

    def rows(self) -> Tensor:
        """Return the row of each value: int64 ``[values]``."""
        lengths = self.lengths()
        rows = torch.arange(lengths.shape[0], device=lengths.device)
        return torch.repeat_interleave(rows, lengths, output_size=self.values.shape[0])

    def select_rows(self, rows_M: Tensor) -> Jagged:
        """Select rows, in the order of ``rows_M``."""
        lengths_M = self.lengths().index_select(0, rows_M)
        offsets = torch.cat([lengths_M.new_zeros(1), lengths_M.cumsum(0)])
        start_M = self.offsets.index_select(0, rows_M) - offsets[:-1]
        total = int(offsets[-1])
        positions = torch.repeat_interleave(start_M, lengths_M, output_size=total)
        positions = positions + torch.arange(total, device=positions.device)
        weights = None if self.weights is None else self.weights.index_select(0, positions)
        return Jagged(self.values.index_select(0, positions), offsets, weights)


@dataclass(frozen=True)
class HistoryBatch:
    """One history of a batch, oldest event first.

    Attributes:
        columns: values of all positions ``[N]`` (or jagged over them), by column.
        offsets: int64 ``[B + 1]``, or ``[0, T]`` if shared.
        shared: True if every row of the batch reads the history of one user.
    """

    columns: Mapping[str, Tensor | Jagged]
    offsets: Tensor
    shared: bool = False

    def select_events(self, positions_M: Tensor) -> HistoryBatch:
        """Select the events at some positions, int64 and ascending. The number of rows stays the same."""
        columns = {
            name: column.select_rows(positions_M) if isinstance(column, Jagged) else column.index_select(0, positions_M)
            for name, column in self.columns.items()
        }
        return HistoryBatch(columns, torch.searchsorted(positions_M, self.offsets), self.shared)


@dataclass(frozen=True)
class Batch:
    """One batch of impressions.

    In a shared batch (one user, ``size`` candidates) user and context fields have one entry and item fields have
    ``size`` entries. In any other batch every field has ``size`` entries.

    Attributes:
        features: int32 ids or float32 numbers ``[B]``, or jagged over B, by field.
        label: float32 ``[B]``, if available.
        rows: int64 ``[B]`` rows of the log that the samples come from, if they come from a log.
        users: int64 ``[B]`` user row of each sample, if they come from a log.
        timestamps: int64 ``[B]`` timestamp of each sample.
        label_time: int64 ``[B]`` timestamp at which the label of each sample became available.
        available: int64 ``[B]`` timestamp from which later samples may read each sample. None: its own timestamp.
        loss_mask: bool ``[B]``, True for rows that contribute to the loss. None: all. Other rows are context only.
        task_labels: further labels by feedback feature, float32 ``[B]``: 0, 1, or NaN if it is missing or was not
            available when the training window ended. Only the loss of the model in training reads them.
        weight: float32 ``[B]`` weight of each row in a loss, at least 0. None: equal weights.
    """

    size: int
    features: Mapping[str, Tensor | Jagged]
    histories: Mapping[str, HistoryBatch] = field(default_factory=dict)
    label: Tensor | None = None
    rows: Tensor | None = None
    shared: bool = False
    users: Tensor | None = None
    timestamps: Tensor | None = None
    label_time: Tensor | None = None
    available: Tensor | None = None
    loss_mask: Tensor | None = None
    task_labels: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None

    @property
    def loss_rows(self) -> int:
        """Number of rows that contribute to the loss."""
        return self.size if self.loss_mask is None else int(self.loss_mask.sum())
