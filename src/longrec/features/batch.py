"""What a model is given: one batch, with jagged histories and no padding.

Letters: B rows (impressions), N flat positions of one history over the whole batch, M some of them, T positions of a
shared history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Jagged:
    """Rows of different lengths, end to end.

    Attributes:
        values: the values of all rows, row after row.
        offsets: int64 ``[rows + 1]``; row r owns ``values[offsets[r]:offsets[r + 1]]``, which may be empty.
        weights: float32, one a value, or None.
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None

    def lengths(self) -> Tensor:
        """int64 ``[rows]``: how many values each row owns."""
        return self.offsets[1:] - self.offsets[:-1]

    def rows(self) -> Tensor:
        """int64 ``[values]``: the row of each value."""
        lengths = self.lengths()
        rows = torch.arange(lengths.shape[0], device=lengths.device)
        return torch.repeat_interleave(rows, lengths, output_size=self.values.shape[0])

    def select_rows(self, rows_M: Tensor) -> Jagged:
        """These rows, in this order."""
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
        columns: for each column the values of all positions ``[N]`` (or jagged over them).
        offsets: int64 ``[B + 1]``; or ``[0, T]`` when shared.
        shared: one user's history that every row of the batch reads.
    """

    columns: Mapping[str, Tensor | Jagged]
    offsets: Tensor
    shared: bool = False

    def select_events(self, positions_M: Tensor) -> HistoryBatch:
        """The events at these positions, int64 and rising; rows stay as many as they are, some of them now shorter."""
        columns = {
            name: column.select_rows(positions_M) if isinstance(column, Jagged) else column.index_select(0, positions_M)
            for name, column in self.columns.items()
        }
        return HistoryBatch(columns, torch.searchsorted(positions_M, self.offsets), self.shared)


@dataclass(frozen=True)
class Batch:
    """One batch of impressions.

    In a shared batch (one user, ``size`` candidates) user and event fields carry a single entry and
    item fields carry ``size``; otherwise every field carries ``size``.

    Attributes:
        features: for each field int32 ids or float32 numbers ``[B]``, or jagged over B.
        label: float32 ``[B]``, when known.
        rows: int64 ``[B]`` rows of the log the samples came from, when they came from one.
        users: int64 ``[B]`` user row of each sample, when they came from a log.
        timestamps: int64 ``[B]`` moment of each sample.
        label_time: int64 ``[B]`` moment at which the label of each sample became known.
        available: int64 ``[B]`` moment from which on later samples may look back at each; None: from its own.
        loss_mask: bool ``[B]``: whether a row's loss counts; None for all. The others stand there to be looked back at.
        task_labels: further labels by feedback feature, float32 ``[B]``: 0, 1, or NaN where it is missing or was not
            known when the training window ended. They are for losses only: those of the model that learns.
        weight: float32 ``[B]``: how much each row counts in a loss, 0 or more; None for all alike.
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
        """How many rows have a loss that counts."""
        return self.size if self.loss_mask is None else int(self.loss_mask.sum())
