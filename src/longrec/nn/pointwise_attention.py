"""Pointwise attention: SiLU weights without a softmax, of each event over itself and earlier events of its row.

    o_i = (1 / n) sum_{i - W < j <= i} SiLU(q_i . k_j + b_(i - j) + c_(bucket of t_(i+1) - t_j)) v_j     in each head

n and the window W are settings, and no length of a batch is in the formula: padding and the other rows of a batch
change nothing. The mask is applied after the SiLU, which is 0 for the pairs that are not seen. A pair depends on its
own two events and on the time that follows the later one. A state that is updated event by event may therefore hold
keys, values and times of the last W events of each layer. It has the results of one pass over the whole history, whose
mask is a band. A pass over the last W events alone has others from the second layer on.

Rows of similar length are put into rectangles (``nn/rectangles.py``), in which causality hides the padding. Queries are
computed in blocks against the keys of their band, so that a long row costs its length times the window.

Shapes: N positions, U stored positions, R rows of a rectangle, T events of its longest row, Q queries and K keys of a
block, H heads, X width of all heads, W window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn import kernels
from longrec.nn.event_times import TIME_BUCKETS, EventTimes, bucket_times
from longrec.nn.rectangles import Rectangles
from longrec.nn.segments import Segments

_BLOCK = 256
"""Queries of a block, unless the window is longer."""


class RelativeBias(nn.Module):
    """Bias of a pair of events, from the number of events and from the time between them.

    Args:
        window: W, the number of distances in events. Larger ones share the last.
        timed: add the bias of time.
    """

    def __init__(self, window: int, timed: bool, std: float = 0.02) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(window) * std)
        self.time = nn.Parameter(torch.randn(TIME_BUCKETS + 1) * std) if timed else None

    def forward(self, distance: Tensor, bucket: Tensor | None = None) -> Tensor:
        """Return the bias of distances and, if they are there, of buckets of times, whose shape ends with theirs."""
        bias = self.position.index_select(0, distance.flatten()).view(distance.shape)
        if self.time is None or bucket is None:
            return bias
        return bias + self.time.index_select(0, bucket.flatten()).view(bucket.shape)


@dataclass(frozen=True)
class _Block:
    """Pairs of consecutive queries and their keys, of all rows of a rectangle.

    Attributes:
        queries, keys: positions in the rows.
        distance: int64 ``[Q, K]``, 0 to W - 1.
        seen: bool ``[Q, K]``.
        bucket: int32 ``[R, Q, K]`` of the time between, or None.
    """

    queries: slice
    keys: slice
    distance: Tensor
    seen: Tensor
    bucket: Tensor | None


class Bands:
    """Pairs of events that see each other, of all rows of a batch. One object serves all layers.

    Args:
        segments: rows that share no positions, or one shared history, which is one row.
        window: W, the number of events that an event sees, itself included.
        times: None for an attention without a bias of time.
    """

    def __init__(self, segments: Segments, window: int, times: EventTimes | None = None) -> None:
        self._traced = segments.shared and kernels.is_traced()
        self._plan = None if self._traced else Rectangles.of(segments)
        every: list[Tensor] | list[None] = [None] * (1 if self._plan is None else len(self._plan.shapes))
        if times is not None and every:
            every = self._fill(torch.stack([times.at, times.following], 1))
        shapes = [(1, segments.positions)] if self._plan is None else self._plan.shapes
        device = segments.offsets.device
        self._blocks = [
            list(_cut(longest, window, both, device, whole=self._traced)) for (_, longest), both in zip(shapes, every)
        ]

    def attend(
        self, q_NX: Tensor, k_NX: Tensor, v_NX: Tensor, heads: int, bias: RelativeBias, n: int
    ) -> Float[Tensor, "N X"]:
        """Return the attention of each position to the positions that it sees."""
        if not self._blocks:
            return v_NX
        width = q_NX.shape[1]
        every = []
        for qkv_RTX, blocks in zip(self._fill(torch.cat([q_NX, k_NX, v_NX], 1)), self._blocks):
            rows, longest = qkv_RTX.shape[:2]
            q, k, v = qkv_RTX.view(rows, longest, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind()
            outputs = [_attend(q, k, v, block, bias) for block in blocks]
            o_RHTd = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
            every.append(o_RHTd.transpose(1, 2).reshape(rows, longest, width) / n)
        return every[0].squeeze(0) if self._plan is None else self._plan.restore(every)

    def _fill(self, x_NX: Tensor) -> list[Tensor]:
        return [x_NX.unsqueeze(0)] if self._plan is None else self._plan.fill(x_NX)


def _cut(longest: int, window: int, times: Tensor | None, device: torch.device, whole: bool) -> Iterator[_Block]:
    """Yield the blocks of a rectangle.

    Args:
        times: int64 ``[R, T, 2]``, of each event and of what follows it.
        whole: all pairs are one block, whatever T is.
    """
    size = max(window, _BLOCK)
    for first in [0] if whole else range(0, longest, size):
        stop, oldest = (longest, 0) if whole else (min(first + size, longest), max(first - window + 1, 0))
        queries, keys = slice(first, stop), slice(oldest, stop)
        distance = torch.arange(first, stop, device=device).unsqueeze(1) - torch.arange(oldest, stop, device=device)
        seen = (distance >= 0) & (distance < window)
        bucket = None
        if times is not None:
            bucket = bucket_times(times[:, queries, 1].unsqueeze(2) - times[:, keys, 0].unsqueeze(1))
        yield _Block(queries, keys, distance.clamp(0, window - 1), seen, bucket)


def _attend(q_RHTd: Tensor, k_RHTd: Tensor, v_RHTd: Tensor, block: _Block, bias: RelativeBias) -> Tensor:
    """``[R, H, Q, d]``: the sums over the keys of a block, not yet divided by n."""
    k, v = k_RHTd[:, :, block.keys], v_RHTd[:, :, block.keys]
    b = bias(block.distance, block.bucket)
    s_RHQK = torch.matmul(q_RHTd[:, :, block.queries], k.transpose(2, 3)) + (b if b.ndim == 2 else b.unsqueeze(1))
    w_RHQK = F.silu(s_RHQK) * block.seen
    return torch.matmul(w_RHQK.to(v.dtype), v)


def attend_candidates(
    qkv: tuple[Tensor, Tensor, Tensor],
    k_UX: Tensor,
    v_UX: Tensor,
    heads: int,
    bias: RelativeBias,
    n: int,
    window: int,
    segments: Segments,
    times: EventTimes | None,
    real_U: Tensor | None = None,
) -> tuple[Float[Tensor, "B X"], Float[Tensor, " N"]]:
    """Return the attention of candidates, each as the newest event of its row, and the mean weight of every position.

    Candidates do not see each other, so keys and values of a history serve all of its candidates.

    Args:
        qkv: ``[B, X]`` queries, keys and values of the candidates.
        times: the candidates follow the newest event, at the time of the request.
        real_U: 1, or 0 for a stored position without an event. None: all have one.
    """
    newer_U = segments.count_newer()
    bucket_U, own = None, None
    if times is not None:
        newest_U = torch.arange(newer_U.shape[0], device=newer_U.device) + newer_U
        bucket_U = bucket_times(times.following.index_select(0, newest_U) - times.at)
        own = newer_U.new_zeros(1)
    b_U1 = bias((newer_U + 1).clamp(max=window - 1), bucket_U).unsqueeze(1)
    seen_U = (newer_U + 1 < window).to(v_UX.dtype)
    seen_U1 = (seen_U if real_U is None else seen_U * real_U).unsqueeze(1)
    b_N, seen_N = (segments.keys(x_U1).squeeze(1) for x_U1 in (b_U1, seen_U1))
    own_1 = bias(newer_U.new_zeros(1), own)
    outputs, weights = [], []
    for q_Bd, own_k_Bd, own_v_Bd, k_Ud, v_Ud in zip(*(x.chunk(heads, 1) for x in (*qkv, k_UX, v_UX))):
        w_N = F.silu(segments.dot(q_Bd, k_Ud) + b_N) * seen_N
        own_B1 = F.silu((q_Bd * own_k_Bd).sum(1, keepdim=True) + own_1)
        outputs.append(segments.weighted_sum(w_N, v_Ud) + own_B1 * own_v_Bd)
        weights.append(w_N)
    return torch.cat(outputs, 1) / n, torch.stack(weights).mean(0) / n
