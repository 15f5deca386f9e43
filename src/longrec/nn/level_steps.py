"""Steps of a level of a hierarchy: the positions of a history at which its recurrence steps.

The first level steps at every position. A higher level steps where an id changes: with every item, say, at its last
event. Steps are gathered from ragged histories. In a shared history they are masked in place, so that lengths are
static.

Shapes: R requests, U stored positions (see nn/segments.py), T positions of a shared history, V steps (all T in a shared
history), D width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from longrec.nn.embedding import RESERVED
from longrec.nn.host_plans import fetch, put
from longrec.nn.segments import Segments


class LevelSteps:
    """Positions at which a level steps: all, or those of a mask.

    Args:
        whole: the requests over all stored positions.
        mask_U: in a ragged batch on the host.

    Attributes:
        segments: the requests over the steps.
        moves: bool ``[T]`` of a shared history. None for all positions.
    """

    def __init__(self, whole: Segments, mask_U: Bool[Tensor, " U"] | None = None) -> None:
        self.whole, self.mask, self.segments = whole, mask_U, whole
        self.moves = mask_U if whole.shared else None
        self._at = None
        if mask_U is not None and not whole.shared:
            mask = fetch(mask_U)
            self._host_at = np.flatnonzero(mask)
            self._count = np.concatenate([[0], mask.cumsum()])
            self._at = put(self._host_at, whole.offsets.device)
            self.segments = Segments.of_offsets(self._count[whole.host_offsets], whole.offsets.device)

    def ends(self, ids_U: Shaped[Tensor, " U"]) -> LevelSteps:
        """Return the steps that are followed by another id, or by none. Missing and unseen ids always change.

        Args:
            ids_U: in a ragged batch on the host, or on the device, from which they are copied.
        """
        whole = self.whole if self.whole.shared else self.whole.on_host
        ids_U = ids_U.to(whole.offsets.device)
        end_U = (F.pad(ids_U, (0, 1), value=-1)[1:] != ids_U) | (ids_U < RESERVED)
        if not whole.shared:
            stops = whole.offsets[1:] - 1
            end_U = end_U.index_fill(0, stops[stops >= whole.offsets[:-1]], True)
        return LevelSteps(self.whole, end_U if self.mask is None else end_U & self.mask)

    def of_all(self, x_UD: Float[Tensor, "U D"]) -> Float[Tensor, "V D"]:
        """Select the steps from values of all positions."""
        return x_UD if self._at is None else x_UD.index_select(0, self._at)

    def of_those(self, x_VD: Float[Tensor, "V D"], below: LevelSteps) -> Float[Tensor, "W D"]:
        """Select the steps from values of the steps of the level below."""
        if self._at is None or below._at is None:
            return self.of_all(x_VD)
        return x_VD.index_select(0, put(below._count[self._host_at], x_VD.device))

    def to_all(self, x_V: Float[Tensor, " V"]) -> Float[Tensor, " U"]:
        """Scatter values of the steps to all positions. 0 elsewhere."""
        if self._at is None:
            return x_V
        return x_V.new_zeros(self.whole.positions).index_copy(0, self._at, x_V)

    def softmax(self, s_V: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """Return the softmax of the scores over the steps of each history. 0 at positions that are no steps."""
        if self.moves is None:
            return self.segments.softmax(s_V)
        return self.segments.softmax(s_V.masked_fill(~self.moves, torch.finfo(s_V.dtype).min)) * self.moves
