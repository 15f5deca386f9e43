"""Attention of several queries per request to the positions of its history.

Keys and values of all layers are computed once per request, and put into rectangles of requests of similar length
(nn/length_buckets.py). Every call then reads them: a training step one per layer, a beam search one per layer and step.
The result of a request without positions is 0.

Shapes: R requests, N positions, U queries per request, L layers, H heads, d width of a head, X = H d, r requests of a
rectangle, T positions of its longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.segments import Segments


@dataclass(frozen=True)
class HistoryKeys:
    """Keys and values of every layer.

    Attributes:
        attention: the requests and their rectangles.
        blocks: ``[r, H, T, d]`` per rectangle: keys and values of every layer, alternating. One with r = 1 of a
            shared history.
        masks: bool ``[r, 1, 1, T]`` per rectangle, True for positions. None if none is padded.
    """

    attention: BucketedAttention
    blocks: Sequence[Sequence[Tensor]]
    masks: Sequence[Tensor | None]

    @classmethod
    def build(cls, x_NX: Tensor, segments: Segments, layers: int, heads: int) -> HistoryKeys:
        """Put the keys and values of positions into rectangles.

        Args:
            x_NX: ``[N, 2 L X]``, layer after layer, keys before values.
        """
        attention = BucketedAttention(segments)
        if attention.shared:
            return cls(attention, [_split(x_NX.unsqueeze(0), layers, heads)], [None])
        chunks = torch.split(attention.gather_positions(x_NX), attention.sizes)
        blocks = [_split(bucket.pad(chunk), layers, heads) for bucket, chunk in zip(attention.buckets, chunks)]
        masks = [None if bucket.real is None else bucket.real[:, None, None, :] for bucket in attention.buckets]
        return cls(attention, blocks, masks)

    @classmethod
    def unpack(cls, x_TX: Tensor, layers: int, heads: int) -> HistoryKeys:
        """Return the keys and values of one shared history from the result of ``pack``."""
        length = x_TX.shape[0]
        return cls.build(x_TX, Segments(torch.arange(2) * length, 1, length, shared=True), layers, heads)

    def pack(self) -> Tensor:
        """Return the keys and values of a shared history, ``[T, 2 L X]``, as ``build`` reads them."""
        (block,) = self.blocks
        return torch.stack([x_1HTd[0].transpose(0, 1) for x_1HTd in block], 1).flatten(1)

    def attend(self, q_RUX: Tensor, layer: int) -> Tensor:
        """Return ``[R, U, X]``: what each query takes from its history."""
        if self.attention.shared:
            return self._attend_shared(q_RUX, layer)
        if not self.blocks:
            return torch.zeros_like(q_RUX)
        q_RUX, outputs = self.attention.gather_rows(q_RUX), []
        for bucket, block, mask in zip(self.attention.buckets, self.blocks, self.masks):
            q = self._split_heads(q_RUX[bucket.rows], block)
            o = F.scaled_dot_product_attention(q, block[2 * layer], block[2 * layer + 1], attn_mask=mask)
            outputs.append(o.transpose(1, 2).flatten(2))
        if self.attention.filled < len(q_RUX):
            outputs.append(q_RUX.new_zeros(len(q_RUX) - self.attention.filled, *q_RUX.shape[1:]))
        return self.attention.restore_rows(torch.cat(outputs))

    def _attend_shared(self, q_1UX: Tensor, layer: int) -> Tensor:
        """``[1, U, X]`` in operators that every runtime supports, for any number of positions."""
        (block,) = self.blocks
        q = self._split_heads(q_1UX, block)
        s = torch.matmul(q * q.shape[3] ** -0.5, block[2 * layer].transpose(2, 3))
        return torch.matmul(s.softmax(3), block[2 * layer + 1]).transpose(1, 2).flatten(2)

    @staticmethod
    def _split_heads(q_rUX: Tensor, block: Sequence[Tensor]) -> Tensor:
        """``[r, H, U, d]``."""
        return q_rUX.view(q_rUX.shape[0], q_rUX.shape[1], block[0].shape[1], block[0].shape[3]).transpose(1, 2)


def _split(x_rTX: Tensor, layers: int, heads: int) -> Sequence[Tensor]:
    """``[r, H, T, d]`` for keys and values of every layer."""
    rows, length, width = x_rTX.shape
    every = x_rTX.view(rows, length, 2 * layers, heads, width // (2 * layers * heads))
    return [x_rTHd.transpose(1, 2) for x_rTHd in every.unbind(2)]
