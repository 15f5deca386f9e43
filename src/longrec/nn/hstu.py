"""Layers of HSTU over jagged histories, and over candidates that read them.

    [u_i, q_i, k_i, v_i] = SiLU(W LN(x_i))
    x_i <- x_i + W^O (LN(o_i) * u_i)

where o_i is the pointwise attention of nn/pointwise_attention.py. Both normalizations have no weights. An event sees no
later one and no candidate. So a stack reads a history once, whatever reads it, and each candidate reads the keys and
values of every layer.

The newest event of a history is not final until the time of the next one is known, because its row is biased by the
time that follows it. Its keys and values in the first layer are final at once. All else of its row follows when the
next event or a request comes, and no row before it ever changes.

Shapes: N positions, U stored positions, B rows (candidates), D width, X width of all heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn.dropout import Dropout
from longrec.nn.event_times import EventTimes
from longrec.nn.linear import Linear
from longrec.nn.pointwise_attention import Bands, RelativeBias, attend_candidates
from longrec.nn.segments import Segments

_EPSILON = 1e-6
"""Added to the variances. It is not negligible: sums that are divided by n are small, and few events stay small."""

_INITIAL_STD = 0.02
"""Standard deviation of the initial weights of the projections."""


@dataclass(frozen=True)
class StackForm:
    """Form of a stack.

    Attributes:
        width: D.
        layers: number of layers.
        heads: heads of the attention.
        head_width: width of the queries, keys, values and gates of a head.
        n: divisor of all sums over events.
        window: number of events that an event sees, itself included.
        timed: add a bias of time.
        dropout: rate before the output projection of a layer.
    """

    width: int
    layers: int
    heads: int
    head_width: int
    n: int
    window: int
    timed: bool
    dropout: float


class HSTULayer(nn.Module):
    """One layer, in steps that a stack or a streaming state calls."""

    def __init__(self, form: StackForm) -> None:
        super().__init__()
        self.form, inside = form, form.heads * form.head_width
        self.inner = Linear(form.width, 4 * inside, bias=False)
        self.outer = Linear(inside, form.width)
        self.bias = RelativeBias(form.window, form.timed)
        self.dropout = Dropout(form.dropout)
        nn.init.normal_(self.inner.weight, std=_INITIAL_STD)
        nn.init.xavier_uniform_(self.outer.weight)

    def project(self, x_ND: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return gates, queries, keys and values, ``[N, X]`` each."""
        u, q, k, v = F.silu(self.inner(normalize(x_ND))).chunk(4, 1)
        return u, q, k, v

    def mix(self, x_ND: Float[Tensor, "N D"], o_NX: Float[Tensor, "N X"], u_NX: Float[Tensor, "N X"]) -> Tensor:
        """Return ``x + W^O (LN(o) * u)``."""
        out: Tensor = self.outer(self.dropout(normalize(o_NX) * u_NX))
        return x_ND + out

    def forward(self, x_ND: Float[Tensor, "N D"], bands: Bands) -> Float[Tensor, "N D"]:
        """Return the events after the layer."""
        return self.advance(x_ND, self.project(x_ND), bands)

    def advance(self, x_ND: Tensor, projected: tuple[Tensor, Tensor, Tensor, Tensor], bands: Bands) -> Tensor:
        """Return the events after the layer, from their projections."""
        u_NX, q_NX, k_NX, v_NX = projected
        return self.mix(x_ND, bands.attend(q_NX, k_NX, v_NX, self.form.heads, self.bias, self.form.n), u_NX)

    def join(
        self,
        y_BD: Float[Tensor, "B D"],
        k_UX: Tensor,
        v_UX: Tensor,
        segments: Segments,
        times: EventTimes | None,
        real_U: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " N"]]:
        """Return candidates after the layer, and the mean weight of every position over the heads.

        Args:
            k_UX, v_UX: keys and values of the histories in this layer.
            real_U: 0 for a stored position without an event, see ``attend_candidates``.
        """
        form = self.form
        u_BX, *own = self.project(y_BD)
        o_BX, w_N = attend_candidates(
            (own[0], own[1], own[2]), k_UX, v_UX, form.heads, self.bias, form.n, form.window, segments, times, real_U
        )
        return self.mix(y_BD, o_BX, u_BX), w_N


class HSTUStack(nn.Module):
    """Layers, one after the other."""

    def __init__(self, form: StackForm) -> None:
        super().__init__()
        self.form = form
        self.layers = nn.ModuleList(HSTULayer(form) for _ in range(form.layers))

    def forward(
        self, x_ND: Float[Tensor, "N D"], segments: Segments, times: EventTimes | None = None
    ) -> Float[Tensor, "N D"]:
        """Return the state after each event.

        Args:
            segments: the requests over stored positions.
            times: required if the form is timed.
        """
        bands = Bands(segments, self.form.window, times)
        for layer in self.layers:
            x_ND = layer(x_ND, bands)
        return x_ND

    def read(
        self, y_BD: Float[Tensor, "B D"], x_UD: Float[Tensor, "U D"], segments: Segments, times: EventTimes | None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " N"]]:
        """Return candidates after all layers, and the mean weight of every position in the last layer.

        Each history is computed once. The last layer needs its keys and values alone.
        """
        bands = Bands(segments.requests, self.form.window, times) if len(self.layers) > 1 else None
        w_N = y_BD.new_zeros(0)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, HSTULayer)
            projected = layer.project(x_UD)
            y_BD, w_N = layer.join(y_BD, projected[2], projected[3], segments, times)
            if bands is not None and number < len(self.layers) - 1:
                x_UD = layer.advance(x_UD, projected, bands)
        return y_BD, w_N


def normalize(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Return the layer normalization without weights."""
    return F.layer_norm(x, x.shape[1:], eps=_EPSILON)
