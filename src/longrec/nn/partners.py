"""Partners of a candidate: the positions of a history that are multiplied by weights of the row.

Positions of a row share their weights, so they are multiplied in tiles. The weights of a row are copied once per tile,
not once per position.

Shapes: B rows, N positions, U stored positions (see ``Segments``), C powers of a partner, I width of a partner, O
outputs of the unit.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from longrec.nn import kernels
from longrec.nn.host_plans import expand_rows, put_all
from longrec.nn.segments import Segments


@runtime_checkable
class Unit(Protocol):
    """A small network whose weights are an argument."""

    outputs: int

    def __call__(self, h_GMI: Tensor, w_GW: Tensor) -> Tensor:
        """Apply the weights of each group to ``[G, M, I]``, or those of every group to ``[M, I]``: ``[G, M, O]``."""


class Partners:
    """The positions of a history as partners of the rows.

    Args:
        tile: positions of a row that are multiplied at once. The last tile of a row is padded.
    """

    def __init__(self, segments: Segments, tile: int) -> None:
        self.segments, self.tile = segments, tile
        if not segments.shared and not kernels.is_traced():
            offsets = segments.host_offsets
            tiles = (np.diff(offsets) + tile - 1) // tile
            first = (tiles.cumsum() - tiles) * tile
            row = np.repeat(np.arange(segments.rows), tiles)
            index = np.arange(segments.positions) + expand_rows(offsets, first - offsets[:-1])
            self.row, self.index = put_all([row, index], segments.offsets.device)

    def sum_outputs(self, unit: Unit, p_UCI: Tensor, w_BW: Tensor) -> Tensor:
        """Return the sum over the partners of each row, ``[B, C, O]``."""
        segments, (powers, width) = self.segments, p_UCI.shape[1:]
        if segments.shared:
            h_BMO = unit(p_UCI.flatten(0, 1), w_BW)
            return h_BMO.reshape(segments.rows, segments.positions, powers, unit.outputs).sum(1)
        p_NX, segments = segments.flatten(p_UCI.flatten(1))
        if kernels.is_traced():
            h_NCO = unit(p_NX.view(-1, powers, width), w_BW.index_select(0, segments.row))
        else:
            x = p_NX.new_zeros(len(self.row) * self.tile, powers * width).index_copy(0, self.index, p_NX)
            h = unit(x.view(-1, self.tile * powers, width), w_BW.index_select(0, self.row))
            h_NCO = h.reshape(-1, powers, unit.outputs).index_select(0, self.index)
        return segments.sum(h_NCO.flatten(1)).reshape(-1, powers, unit.outputs)
