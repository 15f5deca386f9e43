"""Causal attention over the rows of a batch: each row attends to earlier rows of its own group (nn/timeline.py).

One layer, pre-norm, computes

    x' = x + W_o softmax_j(q_i . (k_j + a_s) / sqrt(d) + b_g + c_p) (v_j + d_s),      q, k, v = W_qkv LN(x)
    x" = x' + W_2 gelu(W_1 LN(x'))

for each head. Here g is the log2 bucket of the time ``t_i - t_j`` and p the bucket of the rank distance of row j (rows
back), and b and c are learned per bucket. With ``labels``, s is the label of row j as available to row i, a and d are
learned per label, and "not yet available" is one of the labels. A row's own label is never available to itself.

Attention is computed in buckets of groups of similar length, so that no cost grows with the longest group of a batch.
All other operations run on the flat rows.

Shapes: N rows, M output rows, W width of a row, D width inside, H heads, U groups of a bucket, T rows of its longest
group, P rank buckets, G gap buckets, X columns.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn.linear import Linear
from longrec.nn.padding import Pad
from longrec.nn.timeline import GAPS, NOT_YET, RANKS, UNSEEN, Bucket, Timeline


class CausalAttention(nn.Module):
    """Multi-head attention over the rows of a timeline.

    Args:
        labels: add the labels of earlier rows to keys and values.
    """

    renamed_parameters: ClassVar[dict[str, str]] = {"places": "rank_bias"}

    def __init__(self, width: int, heads: int, labels: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.inner = Linear(width, 3 * width)
        self.outer = _zero_init(Linear(width, width))
        self.gaps = nn.Parameter(torch.zeros(heads, GAPS))
        # Some heads start with a preference for recent rows, others weigh all rows alike.
        slopes = torch.linspace(1, 0, heads) if heads > 1 else torch.ones(1)
        octaves = (torch.arange(RANKS) - 1).clamp(min=0) / 2
        self.rank_bias = nn.Parameter(-slopes.unsqueeze(1) * octaves)
        self.labels = nn.Parameter(torch.randn(2, heads, NOT_YET + 1, width // heads) * 0.02) if labels else None

    def forward(
        self, x_ND: Float[Tensor, "N D"], timeline: Timeline | None, wanted: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Return the attention output of rows in timeline order. Without a timeline, each row attends to itself alone.

        Args:
            wanted: rows to return, in this order. None for all.
        """
        qkv_NX = self.inner(x_ND)
        if timeline is None:
            v_ND = _select(qkv_NX, wanted)[:, 2 * x_ND.shape[1] :]
            return self.outer(v_ND if self.labels is None else v_ND + self.labels[1, :, NOT_YET].flatten())
        chunks = qkv_NX.split([bucket.stop - bucket.start for bucket in timeline.buckets])
        outputs = [self._attend(chunk, bucket) for chunk, bucket in zip(chunks, timeline.buckets)]
        return self.outer(_select(torch.cat(outputs) if outputs else x_ND, wanted))

    def _attend(self, qkv_NX: Tensor, bucket: Bucket) -> Tensor:
        groups, longest, heads = bucket.groups, bucket.longest, self.heads
        width = qkv_NX.shape[1] // 3
        if bucket.from_flat is not None:
            qkv_NX = Pad.apply(qkv_NX, bucket.from_flat, bucket.to_flat)  # type: ignore[no-untyped-call]
        q, k, v = qkv_NX.view(groups * longest, 3, heads, width // heads).permute(1, 2, 0, 3).unbind()
        shape = (heads * groups, longest, width // heads)
        q, k, v = q.reshape(shape), k.reshape(shape), v.reshape(shape)
        scale = (width // heads) ** -0.5
        b_HUTT = _Bias.apply(self.rank_bias, self.gaps, bucket.distance)  # type: ignore[no-untyped-call]
        s = torch.baddbmm(b_HUTT.view(-1, longest, longest).to(q.dtype), q, k.transpose(1, 2), alpha=scale)
        if self.labels is None:
            out = torch.bmm(s.softmax(-1).to(v.dtype), v)
        elif bucket.label is None:
            # No label is available: a vector added to every key changes no weight, one added to every value remains.
            own_HD = self.labels[1, :, NOT_YET].repeat_interleave(groups, 0)
            out = torch.bmm(s.softmax(-1).to(v.dtype), v) + own_HD.unsqueeze(1)
        else:
            out = self._with_labels(s, q, v, bucket.label, scale)
        # [H, U, T, d] back to flat rows.
        out_ND = out.view(heads, groups * longest, -1).transpose(0, 1).reshape(groups * longest, width)
        return out_ND if bucket.to_flat is None else out_ND.index_select(0, bucket.to_flat)

    def _with_labels(self, s: Tensor, q: Tensor, v: Tensor, label_UTT: Tensor, scale: float) -> Tensor:
        """Add the label vectors to keys and values, without a key per pair of rows."""
        assert self.labels is not None
        heads, kinds = self.heads, NOT_YET + 1
        groups, longest, _ = label_UTT.shape
        key, value = self.labels
        index = label_UTT.unsqueeze(0).expand(heads, -1, -1, -1)
        label_scores = torch.bmm(q.reshape(heads, groups * longest, -1), key.transpose(1, 2)) * scale
        label_scores = label_scores.view(heads, groups, longest, kinds).gather(3, index)
        w = (s + label_scores.view_as(s)).softmax(-1)
        share = w.new_zeros(heads, groups, longest, kinds).scatter_add(3, index, w.view(heads, *label_UTT.shape))
        own = torch.bmm(share.view(heads, groups * longest, kinds).to(value.dtype), value)
        return torch.bmm(w.to(v.dtype), v) + own.view_as(v)


class CausalLayer(nn.Module):
    """One pre-norm layer: attention, then a GELU network of four times the width."""

    def __init__(self, width: int, heads: int, labels: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = CausalAttention(width, heads, labels)
        self.network = nn.Sequential(Linear(width, 4 * width), nn.GELU(), _zero_init(Linear(4 * width, width)))

    def forward(
        self, x_ND: Float[Tensor, "N D"], timeline: Timeline | None, wanted: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Apply the layer to rows in timeline order and return the ``wanted`` rows, as in the attention."""
        x_MD = _select(x_ND, wanted) + self.attention(self.norms[0](x_ND), timeline, wanted)
        return x_MD + self.network(self.norms[1](x_MD))


class CausalTransformer(nn.Module):
    """Layers over the rows of a timeline. At initialization it is the identity.

    If the inner width differs from that of the rows, rows are projected up, and the output of the layers is projected
    down and added: ``z = x + W_down layers(W_up x)``.

    Args:
        outer: W.
        width: D.
        labels: add the labels of earlier rows to keys and values.
    """

    def __init__(self, outer: int, width: int, layers: int, heads: int, labels: bool = False) -> None:
        super().__init__()
        self.lift = None if width == outer else Linear(outer, width)
        self.layers = nn.ModuleList(CausalLayer(width, heads, labels) for _ in range(layers))
        self.lower = None if width == outer else _zero_init(Linear(width, outer))

    def forward(
        self, x_NW: Float[Tensor, "N W"], timeline: Timeline | None, wanted: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M W"]:
        """Return each row after attention to earlier rows. Rows are in any order. Without a timeline, each row is
        alone.

        Args:
            wanted: rows to return, in this order. None for all. The last layer computes no others.
        """
        x_ND = x_NW if self.lift is None else self.lift(x_NW)
        rows = wanted
        if timeline is not None:
            x_ND = x_ND.index_select(0, timeline.order)
            rows = timeline.back if wanted is None else timeline.back.index_select(0, wanted)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            x_ND = layer(x_ND, timeline, rows if number == last else None)
        return x_ND if self.lower is None else _select(x_NW, wanted) + self.lower(x_ND)


def _select(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _zero_init(layer: Linear) -> Linear:
    """Set a layer that ends a residual branch to zero, so that the branch adds nothing at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class _Bias(torch.autograd.Function):
    """``[H, U, T, T]``: the sum of the biases of each pair's distance. -inf where row i does not see row j."""

    @staticmethod
    def forward(ctx: Any, ranks_HP: Tensor, gaps_HG: Tensor, distance_UTT: Tensor) -> Tensor:
        ctx.save_for_backward(distance_UTT)
        both = (ranks_HP.unsqueeze(2) + gaps_HG.unsqueeze(1)).flatten(1)
        table = torch.cat([both, both.new_full((len(both), 1), -torch.inf)], 1)
        return table.index_select(1, distance_UTT.flatten()).view(-1, *distance_UTT.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_HUTT: Tensor) -> tuple[Tensor, Tensor, None]:
        (distance_UTT,) = ctx.saved_tensors
        flat = distance_UTT.view(1, -1).expand(len(g_HUTT), -1)
        wide = torch.promote_types(g_HUTT.dtype, torch.float32)
        sums = g_HUTT.new_zeros(len(g_HUTT), UNSEEN + 1, dtype=wide)
        sums = sums.scatter_add_(1, flat, g_HUTT.flatten(1).to(wide))[:, :UNSEEN].reshape(-1, RANKS, GAPS)
        return sums.sum(2), sums.sum(1), None
