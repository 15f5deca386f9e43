"""Search of the events of one shared history by a key, without a comparison of every candidate with every event.

Events and candidates are sorted together by key, so that the candidates of a key follow its events, and the newest of
these are the entries right before the first of them:

    events       key 5, 7, 5, 7, 9              candidates    key 7, 5, 7
    sorted       5 5 (5)  7 7 (7) (7)  9        candidates in brackets, events of a key from old to new

So a search costs a sort of T + B numbers, however many pairs of candidate and event there are. Every runtime can sort.

Shapes: B rows (candidates), T positions of the history, K slots of a row, X = T + B.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from longrec.nn.embedding import RESERVED


def find_key(wanted_B: Int[Tensor, " B"], key_T: Int[Tensor, " T"], slots: int) -> Int[Tensor, "B K"]:
    """Return the numbers of the newest events with the key of each row, newest first, 0 in the slots that are left.

    The number of an event is its position plus 1. A missing or unseen key has no event.

    Args:
        slots: K, at most T. A program traces it.
    """
    key_X = torch.cat([key_T, wanted_B]).long()
    rows, events, device = wanted_B.shape[0], key_T.shape[0], key_X.device
    index_X = torch.arange(events + rows, device=device)
    order_X = torch.sort(key_X * (events + rows) + index_X)[1]
    rank_B = torch.empty_like(index_X).scatter(0, order_X, index_X)[events:]
    row_B = torch.arange(rows, device=device)
    same_BB = (wanted_B.unsqueeze(1) == wanted_B) & (row_B < row_B.unsqueeze(1))
    first_B = rank_B - same_BB.sum(1)  # rank of the first candidate with the key
    rank_BK = first_B.unsqueeze(1) - 1 - torch.arange(slots, device=device)
    at_M = order_X.index_select(0, rank_BK.clamp(min=0).reshape(-1))
    wanted_B1, at_BK = wanted_B.unsqueeze(1), at_M.reshape(rank_BK.shape)
    same_BK = key_X.index_select(0, at_M).reshape(rank_BK.shape) == wanted_B1
    real_BK = same_BK & (rank_BK >= 0) & (wanted_B1 >= RESERVED)
    return torch.where(real_BK, at_BK + 1, 0)
