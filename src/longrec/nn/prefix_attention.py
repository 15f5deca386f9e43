"""Prefixes of a history: attention of each to its events, with scores that do not depend on the prefix.

    o_tk = sum_{i <= t} softmax_{i <= t}(s_ik) v_i                    for each event t and each of K scores

One pass over the rows of a batch gives the results of all their prefixes: the last one of a row is the attention to the
whole row, as ``attend_each`` computes it alone.

Shapes: N positions, U stored positions of a history, B rows, R rows of a rectangle (see nn/rectangles.py), T events of
its longest row, K scores of an event, D width of a value.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.rectangles import Rectangles
from longrec.nn.segments import Segments


def attend_each(s_NK: Float[Tensor, "N K"], v_ND: Float[Tensor, "N D"], segments: Segments) -> Float[Tensor, "B K D"]:
    """Return the attention of whole rows. 0 for a row without positions."""
    return torch.stack([segments.weighted_sum(segments.softmax(s_N), v_ND) for s_N in s_NK.unbind(1)], 1)


def attend_each_prefix(
    s_NK: Float[Tensor, "N K"], v_ND: Float[Tensor, "N D"], segments: Segments
) -> Float[Tensor, "N K D"]:
    """Return the attention of the prefix that ends at each position.

    Args:
        segments: rows that share no positions, or one shared history, which is one row.
    """
    (scores, width), plan = s_NK.shape[1:] + v_ND.shape[1:], Rectangles.of(segments)
    if not plan.shapes:
        return v_ND.unsqueeze(1).expand(-1, scores, -1)
    every = [_attend(*torch.split(sv_RTW, [scores, width], 2)) for sv_RTW in plan.fill(torch.cat([s_NK, v_ND], 1))]
    return plan.restore(every).view(-1, scores, width)


def _attend(s_RTK: Tensor, v_RTD: Tensor) -> Tensor:
    """``[R, T, K D]`` of one rectangle."""
    rows, longest, scores = s_RTK.shape
    s_RTKT = s_RTK.transpose(1, 2).unsqueeze(1).masked_fill(find_later(longest, s_RTK.device).unsqueeze(1), -torch.inf)
    o_RTKD = torch.bmm(s_RTKT.softmax(3).view(rows, longest * scores, longest), v_RTD)
    return o_RTKD.view(rows, longest, -1)


def count_older(segments: Segments) -> Tensor:
    """Return int64 ``[U]``: the number of older positions in the history of each stored position."""
    stored = segments.requests
    index_U = torch.arange(stored.positions, device=stored.offsets.device)
    return index_U if stored.shared else index_U - stored.expand_rows(stored.offsets[:-1])


def find_later(longest: int, device: torch.device) -> Tensor:
    """Return bool ``[T, T]``: True if the event of the column is later than that of the row."""
    rank_T = torch.arange(longest, device=device)
    return rank_T.unsqueeze(0) > rank_T.unsqueeze(1)
