"""Cache of the keys and values of a stack of HSTU layers, from which its pass over a history goes on.

An event sees itself and the W - 1 events before it, in every layer. So a pass over later events needs the keys and
values of the last W - 1 events in each layer, and of nothing else. What it computes is that of one pass over the whole
history, whose mask is a band: an event still depends on those of its band through all layers. A pass over the last W
events alone has other results from the second layer on.

With a bias of time an entry also has the time from its event to the next event after the cache, whose time is that of
the request or of the first event that follows. An event is final, and enters the cache, when that time is known.

The cache of a user is one tensor, so that a server stores it and a program passes it on. Its entry is

    [k_1, v_1, ..., k_L, v_L, seen, time]        seen: 1, or 0 for an entry without an event

with the newest event last. Times are integers in half seconds (see nn/event_times.py), in two numbers of 23 bits each,
so that float32 has them exactly.

Later events are computed in blocks of queries against the keys of their band, as in nn/pointwise_attention.py, but with
the same operators when traced: a long history costs its length times the window there too.

Shapes: B users, T later events, C = W - 1 entries, D width, X width of all heads, E width of an entry, L layers, H
heads, S queries of a block, N blocks, K = C + S keys of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from longrec.nn.event_times import EventTimes, bucket_times
from longrec.nn.hstu import HSTULayer, HSTUStack
from longrec.nn.pointwise_attention import RelativeBias
from longrec.nn.segments import Segments

_BLOCK = 32
"""Queries of a block."""
_BASE = 1 << 23
"""Times are written to this base."""


@dataclass(frozen=True)
class LaterEvents:
    """Events of B users that follow their caches, each row oldest first.

    Attributes:
        x_BTD: inputs of the layers. A row may end with padding.
        counts: number of events of each row, int64 ``[B, 1]``, or one for all rows.
        times: of the events, ``[B, T]``, from the first event of the row on. None without a bias of time.
        end_B1: int64 ``[B, 1]``, the time of what follows the last event of a row. None without a bias of time.
    """

    x_BTD: Tensor
    counts: Tensor | int
    times: EventTimes | None = None
    end_B1: Tensor | None = None


class BandCache:
    """Functions of the caches of a stack.

    Attributes:
        entries: C. At least 1, so that no cache is empty.
        width: E.
    """

    def __init__(self, stack: HSTUStack) -> None:
        self.form, self.entries = stack.form, max(stack.form.window - 1, 1)
        self.layers = [layer for layer in stack.layers if isinstance(layer, HSTULayer)]
        self._inside = self.form.heads * self.form.head_width
        self._keys = 2 * self._inside * self.form.layers
        self.width = self._keys + (3 if self.form.timed else 1)

    def start(self, users: int) -> Float[Tensor, "B C E"]:
        """Return the caches of users without events."""
        return torch.zeros(users, self.entries, self.width)

    def update(self, cache_BCE: Float[Tensor, "B C E"], later: LaterEvents) -> Float[Tensor, "B C E"]:
        """Return the caches after later events."""
        users, length = later.x_BTD.shape[:2]
        seen_BA = torch.cat([cache_BCE[:, :, self._keys], torch.ones_like(later.x_BTD[:, :, 0])], 1)
        at_BA = None
        if later.times is not None:
            at_BA = torch.cat([-unpack_times(cache_BCE[:, :, -2:]), later.times.at], 1)
        band = _Band(self.form.window, self.entries, seen_BA, at_BA, later.times)
        columns, x_ND = [], later.x_BTD.flatten(0, 1)
        for number, layer in enumerate(self.layers):
            u_NX, *qkv = layer.project(x_ND)
            q_BTX, k_BTX, v_BTX = (x.view(users, length, self._inside) for x in qkv)
            first = 2 * number * self._inside
            k_BCX, v_BCX = cache_BCE[:, :, first : first + 2 * self._inside].chunk(2, 2)
            k_BAX, v_BAX = torch.cat([k_BCX, k_BTX], 1), torch.cat([v_BCX, v_BTX], 1)
            columns += [k_BAX, v_BAX]
            if number < len(self.layers) - 1:
                o_BTX = band.attend(q_BTX, k_BAX, v_BAX, self.form.heads, layer.bias) / self.form.n
                x_ND = layer.mix(x_ND, o_BTX.flatten(0, 1), u_NX)
        every_BAE = torch.cat([*columns, seen_BA.unsqueeze(2)], 2)
        newest_BC = torch.arange(self.entries, device=x_ND.device) + later.counts
        flat_M = (torch.arange(users, device=x_ND.device).unsqueeze(1) * every_BAE.shape[1] + newest_BC).flatten()
        new = [every_BAE.flatten(0, 1).index_select(0, flat_M).view(users, self.entries, every_BAE.shape[2])]
        if at_BA is not None:
            assert later.end_B1 is not None
            before_BC = later.end_B1 - at_BA.flatten().index_select(0, flat_M).view(users, self.entries)
            new.append(pack_times(before_BC))
        return torch.cat(new, 2)

    def read(
        self, cache_CE: Float[Tensor, "C E"], y_QD: Float[Tensor, "Q D"]
    ) -> tuple[Float[Tensor, "Q D"], Float[Tensor, " M"]]:
        """Return candidates of one user after all layers, and the weights of the entries for each in the last one.

        With a bias of time the time of the cache is that of the request.
        """
        segments = Segments(torch.arange(2) * self.entries, y_QD.shape[0], self.entries, shared=True)
        times, seen_C = None, cache_CE[:, self._keys]
        if self.form.timed:
            before_C = unpack_times(cache_CE[:, -2:])
            times = EventTimes(-before_C, torch.zeros_like(before_C))
        w_M = y_QD.new_zeros(0)
        for number, layer in enumerate(self.layers):
            first = 2 * number * self._inside
            k_CX, v_CX = cache_CE[:, first : first + 2 * self._inside].chunk(2, 1)
            y_QD, w_M = layer.join(y_QD, k_CX, v_CX, segments, times, seen_C)
        return y_QD, w_M


class _Band:
    """Pairs of later events and the events that they see, in blocks. One object serves all layers.

    Args:
        seen_BA: 0 for an entry of a cache without an event, of caches and later events.
        at_BA: int64 times of caches and later events.
    """

    def __init__(
        self, window: int, entries: int, seen_BA: Tensor, at_BA: Tensor | None, times: EventTimes | None
    ) -> None:
        device, length = seen_BA.device, seen_BA.shape[1] - entries
        # One block more than needed if S divides T, so that there is always one.
        self.length, self.blocks, self.keys = length, length // _BLOCK + 1, entries + _BLOCK
        first_N1 = torch.arange(self.blocks, device=device).unsqueeze(1) * _BLOCK
        self._queries = (first_N1 + torch.arange(_BLOCK, device=device)).flatten()
        self._seen_keys = (first_N1 + torch.arange(self.keys, device=device)).flatten()
        own_S1 = torch.arange(_BLOCK, device=device).unsqueeze(1) + entries
        distance_SK = own_S1 - torch.arange(self.keys, device=device)
        self._distance = distance_SK.clamp(0, window - 1)
        mask_SK = ((distance_SK >= 0) & (distance_SK < window)).to(seen_BA.dtype)
        self._mask = mask_SK * self._cut_keys(seen_BA.unsqueeze(2)).transpose(2, 3)
        self._bucket = None
        if times is not None and at_BA is not None:
            following_BNS1 = self._cut(times.following.unsqueeze(2), self._queries, _BLOCK)
            self._bucket = bucket_times(following_BNS1 - self._cut_keys(at_BA.unsqueeze(2)).transpose(2, 3))

    def attend(self, q_BTX: Tensor, k_BAX: Tensor, v_BAX: Tensor, heads: int, bias: RelativeBias) -> Tensor:
        """Return the sums of each later event ``[B, T, X]``, not yet divided by n."""
        users, _, width = q_BTX.shape
        q_BNSX, k_BNKX, v_BNKX = self._cut(q_BTX, self._queries, _BLOCK), self._cut_keys(k_BAX), self._cut_keys(v_BAX)
        q, k, v = (
            x.view(users, self.blocks, size, heads, width // heads).transpose(2, 3)
            for x, size in ((q_BNSX, _BLOCK), (k_BNKX, self.keys), (v_BNKX, self.keys))
        )
        b = bias(self._distance, self._bucket)
        s_BNHSK = torch.matmul(q, k.transpose(3, 4)) + (b if b.ndim == 2 else b.unsqueeze(2))
        o_BNHSd = torch.matmul(F.silu(s_BNHSK) * self._mask.unsqueeze(2), v)
        o_BOX = o_BNHSd.transpose(2, 3).reshape(users, self.blocks * _BLOCK, width)
        return o_BOX.index_select(1, torch.arange(self.length, device=o_BOX.device))

    def _cut_keys(self, x_BAX: Tensor) -> Tensor:
        return self._cut(x_BAX, self._seen_keys, self.keys)

    def _cut(self, x: Tensor, index: Tensor, size: int) -> Tensor:
        """Return the positions of every block, ``[B, N, size, X]``. Those after the last event are 0."""
        padded = torch.cat([x, x.new_zeros(x.shape[0], _BLOCK, x.shape[2])], 1)
        return padded.index_select(1, index).view(x.shape[0], self.blocks, size, x.shape[2])


def pack_times(half_seconds: Int64[Tensor, "B C"]) -> Float[Tensor, "B C 2"]:
    """Return times as two numbers each, of 23 bits."""
    # In float64, since programs divide integers in float32.
    bounded = half_seconds.clamp(0, _BASE**2 - 1).double()
    high = (bounded / _BASE).floor()
    return (torch.stack([high, bounded - high * _BASE], -1) / _BASE).float()


def unpack_times(written: Tensor) -> Tensor:
    """Return the times of their two numbers, int64 half seconds ``[...]``."""
    high, low = (written * _BASE).round().long().unbind(-1)
    return high * _BASE + low
