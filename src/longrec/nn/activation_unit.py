"""The activation unit of DIN with its pooling, in chunks of whole rows.

    h_1 = f(W_q q + W_k k_j + W_m (q * k'_j) + b),  h_l = f(W_l h_{l-1} + b_l),  s_j = w h + b
    u   = sum_j s_j k_j, or with a softmax over the history  sum_j softmax_j(s) k_j

All tensors of a chunk fit in the second cache of a core, so only the hidden units are written to memory, once, for the
gradient. The products ``q * k'`` are made anew in the gradient. f is a ReLU or a sigmoid, whose derivative follows from
its output.

Shapes: B rows, N positions, n positions of a chunk, Q query width, K key width, H hidden units, I inputs and O outputs
of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longrec.nn import gemm, segment_kernels
from longrec.nn.length_buckets import split_rows
from longrec.nn.segments import Segments

_CHUNK = 4_096
"""Positions of a chunk per thread, about: 64 numbers of each take a megabyte."""
ACTIVATIONS = ("relu", "sigmoid")
"""Names of the activations that ``pool`` computes."""


def pool(
    hq_BH: Tensor,
    q_BQ: Tensor,
    k_NK: Tensor,
    first: tuple[Tensor, Tensor],
    layers: list[Tensor | None],
    segments: Segments,
    activation: str,
    softmax: bool,
) -> Tensor:
    """Return the pooled keys of each row, ``[B, K]``, of flat segments.

    Args:
        hq_BH: the term of the query in the first layer, with its bias.
        first: weights of the key ``[H, K]`` and of the product ``[H, Q]`` in the first layer.
        layers: weight and bias of every further layer, the last one with one output.
    """
    out: Tensor = _PoolFunction.apply(  # type: ignore[no-untyped-call]
        hq_BH, q_BQ, k_NK, *first, segments, activation, softmax, *layers
    )
    return out


@dataclass(frozen=True)
class _Chunk:
    """Whole rows of a batch."""

    rows: slice
    positions: slice
    segments: Segments


def _split(segments: Segments) -> list[_Chunk]:
    """Return the chunks of a batch, which are made once."""
    most = _CHUNK * torch.get_num_threads()
    if ("chunks", most) not in segments.memo:
        rows, positions, every = split_rows(segments, most)
        spans = [[slice(*span) for span in pairwise([0, *accumulate(sizes)])] for sizes in (rows, positions)]
        segments.memo["chunks", most] = [_Chunk(*one) for one in zip(*spans, every)]
    chunks: list[_Chunk] = segments.memo["chunks", most]
    return chunks


class _PoolFunction(torch.autograd.Function):
    """``pool`` with a hand-written gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hq_BH: Tensor,
        q_BQ: Tensor,
        k_NK: Tensor,
        w_HK: Tensor,
        w_HQ: Tensor,
        segments: Segments,
        activation: str,
        softmax: bool,
        *layers: Tensor | None,
    ) -> Tensor:
        k_NK = k_NK.contiguous()
        weights, biases = [w for w in layers[::2] if w is not None], layers[1::2]
        widths = [hq_BH.shape[1], *(w.shape[0] for w in weights[:-1])]
        hidden = [gemm.allocate_rows(k_NK, len(k_NK), width) for width in widths]
        w_N, u_BK = k_NK.new_empty(len(k_NK)), k_NK.new_empty(segments.rows, k_NK.shape[1])
        chunks = _split(segments)
        scratch = _Scratch(k_NK, chunks)
        for chunk in chunks:
            k_nK, own = k_NK[chunk.positions], chunk.segments
            h_nH = torch.index_select(hq_BH[chunk.rows], 0, own.row, out=hidden[0][chunk.positions])
            gemm.add_product(h_nH, k_nK, w_HK)
            q_nQ = scratch.gather("query", q_BQ, chunk)
            gemm.add_product(h_nH, q_nQ.mul_(k_nK[:, : w_HQ.shape[1]]), w_HQ)
            _activate(h_nH, activation)
            for w_OI, b_O, h in zip(weights[:-1], biases[:-1], hidden[1:]):
                assert b_O is not None
                before_nI, h_nH = h_nH, h[chunk.positions].copy_(b_O)
                _activate(gemm.add_product(h_nH, before_nI, w_OI), activation)
            s_n = h_nH @ weights[-1][0]
            if biases[-1] is not None:
                s_n += biases[-1]
            w_n = segment_kernels.compute_softmax(s_n, own) if softmax else s_n
            w_N[chunk.positions], u_BK[chunk.rows] = w_n, own.add_up(k_nK, w_n)
        ctx.segments, ctx.activation, ctx.softmax, ctx.depth = segments, activation, softmax, len(hidden)
        ctx.biased = biases[-1] is not None
        ctx.save_for_backward(q_BQ, k_NK, w_HK, w_HQ, w_N, *hidden, *weights)
        return u_BK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BK: Tensor) -> tuple[Tensor | None, ...]:
        q_BQ, k_NK, w_HK, w_HQ, w_N, *saved = ctx.saved_tensors
        hidden, weights = saved[: ctx.depth], saved[ctx.depth :]
        query, g_BK = q_BQ.shape[1], g_BK.contiguous()
        g_hq, g_q, g_k = q_BQ.new_empty(len(q_BQ), len(w_HK)), torch.empty_like(q_BQ), torch.empty_like(k_NK)
        g_w = [torch.zeros_like(w) for w in (w_HK, w_HQ, *weights)]
        g_b = [w.new_zeros(w.shape[0]) for w in weights]
        chunks = _split(ctx.segments)
        scratch = _Scratch(k_NK, chunks)
        for chunk in chunks:
            k_nK, w_n, own = k_NK[chunk.positions], w_N[chunk.positions], chunk.segments
            g_nK, out_nK = scratch.gather("pooled", g_BK, chunk), g_k[chunk.positions]
            g_n = torch.mul(g_nK, k_nK, out=out_nK).sum(1)
            if ctx.softmax:
                g_n = segment_kernels.differentiate_softmax(w_n, g_n, own)
            g_nO = g_n.unsqueeze(1)
            for number in range(ctx.depth - 1, -1, -1):
                h_nH, w_OI = hidden[number][chunk.positions], weights[number]
                gemm.add_weight_gradient(g_w[number + 2], g_nO, h_nH)
                g_b[number] += g_nO.sum(0)
                g_nH = gemm.write_input_gradient(scratch.take(f"hidden{number}", chunk, h_nH.shape[1]), g_nO, w_OI)
                g_nO = _differentiate(g_nH, h_nH, ctx.activation)
            g_hq[chunk.rows] = own.add_up(g_nO)
            q_nQ, m_nQ = scratch.gather("query", q_BQ, chunk), scratch.take("product", chunk, query)
            gemm.add_weight_gradient(g_w[0], g_nO, k_nK)
            gemm.add_weight_gradient(g_w[1], g_nO, torch.mul(q_nQ, k_nK[:, :query], out=m_nQ))
            gemm.write_input_gradient(out_nK, g_nO, w_HK).addcmul_(g_nK, w_n.unsqueeze(1))
            gemm.write_input_gradient(m_nQ, g_nO, w_HQ)
            out_nK[:, :query] += q_nQ.mul_(m_nQ)
            g_q[chunk.rows] = own.add_up(m_nQ.mul_(k_nK[:, :query]))
        g_b_last = g_b[-1] if ctx.biased else None
        by_layer = [gradient for pair in zip(g_w[2:], [*g_b[:-1], g_b_last]) for gradient in pair]
        return g_hq, g_q, g_k, *g_w[:2], None, None, None, *by_layer


class _Scratch:
    """Memory that every chunk uses again, so that it stays in the cache."""

    def __init__(self, like: Tensor, chunks: list[_Chunk]) -> None:
        self.like, self.buffers = like, dict[str, Tensor]()
        self.most = max((chunk.segments.positions for chunk in chunks), default=0)

    def take(self, name: str, chunk: _Chunk, width: int) -> Tensor:
        """Return ``[n, width]`` without a value."""
        if name not in self.buffers:
            self.buffers[name] = gemm.allocate_rows(self.like, self.most, width)
        return self.buffers[name][: chunk.segments.positions]

    def gather(self, name: str, x_BW: Tensor, chunk: _Chunk) -> Tensor:
        """Return the value of its row at every position of a chunk."""
        out_nW = self.take(name, chunk, x_BW.shape[1])
        return torch.index_select(x_BW[chunk.rows], 0, chunk.segments.row, out=out_nW)


def _activate(h_nH: Tensor, name: str) -> Tensor:
    return h_nH.relu_() if name == "relu" else h_nH.sigmoid_()


def _differentiate(g_nH: Tensor, h_nH: Tensor, name: str) -> Tensor:
    """Return the gradient before the activation, in the memory of the one after it."""
    aten = torch.ops.aten
    if name == "relu":
        aten.threshold_backward.grad_input(g_nH, h_nH, 0, grad_input=g_nH)
    else:
        aten.sigmoid_backward.grad_input(g_nH, h_nH, grad_input=g_nH)
    return g_nH
