"""Several histories of the same rows, read as one set of events.

Shapes: B rows, N positions of all histories, U stored positions of all (see nn/segments.py), T positions when shared,
D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longrec.nn.segments import Segments


class JoinedHistories:
    """The positions of several histories. Those of a row are next to each other, history by history.

    Args:
        every: the segments of each history, at least one.

    Attributes:
        segments: the rows over all positions.
    """

    def __init__(self, every: Sequence[Segments]) -> None:
        self.every = every
        self.segments, self._order = Segments.concat(every)

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Return the values of all stored positions, ``[U, D]``, from those of each history."""
        x_UD = torch.cat(list(values))
        return x_UD if self._order is None else x_UD.index_select(0, self._order)

    def split(self, w: Tensor) -> list[Tensor]:
        """Return the weights of each history from those of all positions: ``[N]``, shared ``[B, T]``."""
        if self._order is not None:
            order_N = torch.cat([segments.row for segments in self.every]).argsort(stable=True)
            w = w.index_select(0, order_N.argsort())
        return list(torch.split(w, [segments.positions for segments in self.every], -1))
