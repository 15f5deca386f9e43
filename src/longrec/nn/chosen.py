"""Chosen events: those positions of a history that an attention reads.

Layouts of the chosen positions
    - as the history, with fewer events: the newest ones of a history of each kind (nn/segments.py);
    - ragged, each row with its own choice;
    - lists of S positions per row, of candidates that share a history.

In a program S is a traced size, the length of a short history. So no position is missing, and only those that come
from a state (``models/core/stateful.py``), whose size is constant, can lack an event.

Shapes: B rows, N positions, U stored positions (nn/segments.py), M chosen positions, S length of a list, K width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn import kernels, lookup
from longrec.nn.host_plans import expand_rows, put
from longrec.nn.segments import GroupedSegments, Segments
from longrec.nn.selection import limit_slots


@dataclass(frozen=True)
class Chosen:
    """Chosen positions of the histories of a batch.

    Attributes:
        segments: the rows over the chosen positions. Not read for lists.
        stored_M: int64: stored position of each chosen one. None: all positions, in their order.
        size: S of lists, which contain M = B S positions. None: no lists.
        real_M: mask of the positions that have an event, of a choice that all rows share. None: all have.
        position_M: int64: which of the N positions each chosen one is, if rows have choices of their own.
    """

    segments: Segments
    stored_M: Tensor | None = None
    size: int | None = None
    real_M: Tensor | None = None
    position_M: Tensor | None = None

    def gather(self, k_UK: Float[Tensor, "U K"]) -> Float[Tensor, "M K"]:
        """Return the values of the history at the chosen positions."""
        return k_UK if self.stored_M is None else k_UK.index_select(0, self.stored_M)

    def spread(self, w_M: Float[Tensor, " M"], positions: int) -> Float[Tensor, " N"]:
        """Return weights of chosen positions as weights of all N ``positions``, 0 at those that are not chosen."""
        if self.position_M is None:
            return w_M
        return w_M.new_zeros(positions).index_copy(0, self.position_M, w_M)


def gather_each(k_UK: Float[Tensor, "U K"], choices: Sequence[Chosen]) -> list[Tensor]:
    """Return the values of each choice from one history, ``[M, K]`` each.

    They are gathered together, so that the gradient of the history is made once.
    """
    every = [chosen.stored_M for chosen in choices if chosen.stored_M is not None]
    if kernels.is_traced() or len(every) < len(choices):
        return [chosen.gather(k_UK) for chosen in choices]
    return list(torch.split(lookup.take(k_UK, torch.cat(every)), [len(stored_M) for stored_M in every]))


def choose_newest(segments: Segments, count: int) -> Chosen:
    """Return the ``count`` newest positions of each history, or all of a shorter one, in their order."""
    if segments.shared:
        return _choose_newest_shared(segments, count)
    stored = segments.requests
    offsets = stored.host_offsets
    lengths = np.minimum(np.diff(offsets), count)
    if lengths.sum() == stored.positions:
        return Chosen(segments)
    if ("newest", count) not in stored.memo:
        bounds = np.append(0, lengths.cumsum())
        index_M = np.arange(bounds[-1]) + expand_rows(bounds, offsets[1:] - bounds[1:])
        device = stored.offsets.device
        stored.memo["newest", count] = Segments.of_offsets(bounds, device), put(index_M, device)
    newest, stored_M = stored.memo["newest", count]
    if isinstance(segments, GroupedSegments):
        newest = GroupedSegments(newest, segments.layout)
    return Chosen(newest, stored_M)


def _choose_newest_shared(segments: Segments, count: int) -> Chosen:
    length = segments.positions
    if not kernels.is_traced() and length <= count:
        return Chosen(segments)
    size = limit_slots(length, count)
    newest = Segments(segments.offsets, segments.rows, size, shared=True)
    return Chosen(newest, torch.arange(size, device=segments.offsets.device) + (length - size))
