"""Lists: the candidates of each request of a batch, which a re-ranker lets see each other.

In a single batch each candidate is a list of its own, in a shared batch all candidates are one list, and in a grouped
batch a list has the candidates of one request. Lists are ragged: nothing is computed on padding.

Shapes: R lists (requests), C candidates, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.features.batch import Layout
from longrec.nn.host_plans import invert, put_all
from longrec.nn.segments import Segments


class Lists:
    """The lists of a batch.

    Args:
        layout: which request each candidate belongs to.
        device: device of the tensors.

    Attributes:
        segments: R rows over the candidates in the order of their lists.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._order: Tensor | None = None
        self._back: Tensor | None = None
        if layout.kind == "shared":
            # Offsets of a shared batch are not read.
            self.segments = Segments(torch.arange(2, device=device), 1, layout.candidates, shared=True)
            return
        if layout.kind == "single":
            self.segments = Segments.of_offsets(np.arange(layout.candidates + 1), device)
            return
        owner = layout.host_owner
        if owner is None:
            raise ValueError("candidates of a catalog belong to no list")
        lengths = np.bincount(owner, minlength=layout.requests)
        self.segments = Segments.of_offsets(np.concatenate([[0], np.cumsum(lengths)]), device)
        if (owner[1:] < owner[:-1]).any():
            order = np.argsort(owner, kind="stable")
            self._order, self._back = put_all([order, invert(order)], device)

    def gather(self, x_C: Tensor) -> Tensor:
        """Reorder a tensor over candidates from the order of the batch to that of the lists."""
        return x_C if self._order is None else x_C.index_select(0, self._order)

    def restore(self, x_C: Tensor) -> Tensor:
        """Reorder a tensor over candidates from the order of the lists to that of the batch."""
        return x_C if self._back is None else x_C.index_select(0, self._back)

    def rank(self, score_C: Float[Tensor, " C"]) -> Int[Tensor, " C"]:
        """Return how many candidates of its list have a higher score, int64, in the order of the batch.

        Candidates of equal scores have the same rank, so that it does not depend on their order.
        """
        if self.segments.shared:
            return (score_C.unsqueeze(0) > score_C.unsqueeze(1)).sum(1)
        score_C = self.gather(score_C)
        down_C = score_C.argsort(descending=True, stable=True)
        at_C = down_C.index_select(0, self.segments.row.index_select(0, down_C).argsort(stable=True))
        sorted_C = score_C.index_select(0, at_C)
        position_C = torch.arange(len(score_C), device=score_C.device)
        start_C = self.segments.expand_rows(self.segments.offsets[:-1])  # a list keeps its positions
        is_new_C = position_C == start_C
        is_new_C[1:] |= sorted_C[1:] != sorted_C[:-1]
        first_C = torch.where(is_new_C, position_C, 0).cummax(0).values if len(score_C) else position_C
        return self.restore(torch.empty_like(position_C).index_copy(0, at_C, first_C - start_C))

    def softmax(self, score_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """Return the softmax of the scores over each list."""
        return self.restore(self.segments.softmax(self.gather(score_C)))

    def log_softmax(self, score_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """Return the logarithm of ``softmax``, also where that rounds to 0."""
        score_C1 = self.gather(score_C).float().unsqueeze(1)
        top_R1 = self.segments.max(score_C1.detach())
        shifted_C1 = score_C1 - self.segments.expand(top_R1)
        total_R1 = self.segments.sum(shifted_C1.exp())
        log_C1 = shifted_C1 - self.segments.expand(total_R1.clamp(min=1).log())  # an empty list has no candidate
        return self.restore(log_C1.squeeze(1))
