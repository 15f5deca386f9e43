"""Dynamic routing: the events of a history vote for K capsules, which agree with some of them.

    w_ij = softmax_j(b_ij)          z_j = sum_i w_ij v_ij          u_j = squash(z_j)          b_ij <- b_ij + u_j . v_ij

v_ij is the vote of event i for capsule j, and squash(z) = |z|^2 / (1 + |z|^2) z / |z|, so that |u_j| < 1. Sabour,
Frosst and Hinton, NeurIPS 2017. https://arxiv.org/abs/1710.09829

The softmax is over the capsules of one event. All iterations but the last read the votes without a gradient, so the
weights are constants. ``route`` runs on whole histories, and ``route_prefixes`` on every prefix of each at once: the
votes of an event are the same in all prefixes that hold it, its weights are not.

With ``adaptive``, n events have K' = max(1, min(K, floor(log2 n))) capsules. The others take no share of an event.
They repeat the first capsule in the result, so that they change no maximum over capsules.

Shapes: N positions, B rows, R rows of a rectangle (see nn/rectangles.py), T events of its longest row (as prefixes, and
as events), K capsules, J votes of an event (K, or 1 that is the same for all capsules), D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.prefix_attention import find_later
from longrec.nn.rectangles import Rectangles
from longrec.nn.segments import Segments

_TINY = 1e-9
"""Added to a squared norm, so that a capsule of zero has a gradient. A program may drop it: nothing divides by it."""


def squash(z: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D"]:
    """Return a vector of the same direction whose norm is ``|z|^2 / (1 + |z|^2)``."""
    square = z.square().sum(-1, keepdim=True)
    return z * ((square + _TINY).sqrt() / (1 + square))


def route(
    votes_NJD: Float[Tensor, "N J D"],
    logit_NK: Float[Tensor, "N K"],
    segments: Segments,
    iterations: int,
    adaptive: bool = False,
) -> Float[Tensor, "B K D"]:
    """Return the capsules of whole rows. 0 for a row without positions.

    Args:
        logit_NK: b at the start, constants.
        segments: rows that share no positions, or one shared history, which is one row.
    """
    count, width = logit_NK.shape[1], votes_NJD.shape[2]
    active_BK = None
    if adaptive:
        active_BK = _find_active(_count_events(segments), count)
        logit_NK = logit_NK.masked_fill(~segments.expand_rows(active_BK), -torch.inf)

    def pool(w_NK: Tensor, v_NJD: Tensor) -> Tensor:
        return segments.pool((w_NK.unsqueeze(2) * v_NJD).flatten(1), "sum").reshape(-1, count, width)

    def agree(u_BKD: Tensor, v_NJD: Tensor) -> Tensor:
        return (segments.expand(u_BKD.flatten(1)).reshape(-1, count, width) * v_NJD).sum(2)

    u_BKD = _run(votes_NJD, logit_NK, pool, agree, iterations)
    return u_BKD if active_BK is None else torch.where(active_BK.unsqueeze(2), u_BKD, u_BKD[:, :1])


def route_prefixes(
    votes_NJD: Float[Tensor, "N J D"],
    logit_NK: Float[Tensor, "N K"],
    segments: Segments,
    iterations: int,
    adaptive: bool = False,
) -> Float[Tensor, "N K D"]:
    """Return the capsules of the prefix that ends at each position. Arguments as above."""
    capsules, plan, (votes, width) = logit_NK.shape[1], Rectangles.of(segments), votes_NJD.shape[1:]
    if not plan.shapes:
        return votes_NJD.expand(-1, capsules, -1)
    every = [
        _route_rectangle(votes_RTX.view(*logit_RTK.shape[:2], votes, width), logit_RTK, iterations, adaptive)
        for votes_RTX, logit_RTK in zip(plan.fill(votes_NJD.flatten(1)), plan.fill(logit_NK.detach()))
    ]
    return plan.restore(every).view(-1, capsules, width)


def _route_rectangle(votes_RTJD: Tensor, logit_RTK: Tensor, iterations: int, adaptive: bool) -> Tensor:
    """``[R, T, K D]``: the capsules of every prefix of the rows of a rectangle."""
    rows, longest, capsules = logit_RTK.shape
    votes_RJTD = votes_RTJD.transpose(1, 2)
    # Weights are [R, K, T, T]: of the capsule, of the prefix, of the event.
    earlier_TT = ~find_later(longest, logit_RTK.device)
    logit_RKTT, active_KT = logit_RTK.transpose(1, 2).unsqueeze(2).expand(-1, -1, longest, -1), None
    if adaptive:
        active_KT = _find_active(1 + torch.arange(longest, device=logit_RTK.device).unsqueeze(1), capsules).t()
        logit_RKTT = logit_RKTT.masked_fill(~active_KT.unsqueeze(2), -torch.inf)

    def pool(w_RKTT: Tensor, v_RJTD: Tensor) -> Tensor:
        w_RKTT = w_RKTT * earlier_TT
        if v_RJTD.shape[1] > 1:
            return torch.matmul(w_RKTT, v_RJTD)
        return torch.bmm(w_RKTT.view(rows, -1, longest), v_RJTD.squeeze(1)).view(rows, capsules, longest, -1)

    def agree(u_RKTD: Tensor, v_RJTD: Tensor) -> Tensor:
        if v_RJTD.shape[1] > 1:
            return torch.matmul(u_RKTD, v_RJTD.transpose(2, 3))
        v_RDT = v_RJTD.squeeze(1).transpose(1, 2)
        return torch.bmm(u_RKTD.view(rows, capsules * longest, -1), v_RDT).view(rows, capsules, longest, longest)

    u_RKTD = _run(votes_RJTD, logit_RKTT, pool, agree, iterations)
    if active_KT is not None:
        u_RKTD = torch.where(active_KT.unsqueeze(2), u_RKTD, u_RKTD[:, :1])
    return u_RKTD.transpose(1, 2).flatten(2)


def _run(
    votes: Tensor,
    logit: Tensor,
    pool: Callable[[Tensor, Tensor], Tensor],
    agree: Callable[[Tensor, Tensor], Tensor],
    iterations: int,
) -> Tensor:
    """Return the capsules after some iterations.

    Args:
        pool: function of weights and votes that returns z.
        agree: function of capsules and votes that returns the inner product of each vote and its capsule.
    """
    still = votes.detach()
    for _ in range(iterations - 1):
        logit = logit + agree(squash(pool(logit.softmax(1), still)), still)
    return squash(pool(logit.softmax(1), votes))


def _count_events(segments: Segments) -> Tensor:
    """Return the number of events of each row, ``[B, 1]``."""
    lengths = segments.lengths()
    if isinstance(lengths, Tensor):
        return lengths
    # A sum instead of the length, so that a traced length stays dynamic.
    return torch.ones(segments.positions, device=segments.offsets.device).sum().reshape(1, 1)


def _find_active(events_B1: Tensor, capsules: int) -> Tensor:
    """Return bool ``[B, K]``: capsule j takes part if it is the first, or if ``log2 n >= j + 1``."""
    index_K = torch.arange(capsules, device=events_B1.device)
    return (index_K == 0) | (events_B1 >= 2 ** (index_K + 1))
