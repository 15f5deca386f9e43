"""A gated recurrent unit over ragged histories, as one fused scan.

    u = sigmoid(x_u + U_u h + b_u)      r = sigmoid(x_r + U_r h + b_r)      n = tanh(x_n + r * (U_n h) + b_n)
    h' = h + z * (n - h)

The update z is u itself. With an attention weight a per position it is, by DIEN's names

    ``agru``       a                    the attention replaces the gate (Zhou et al. 2019)
    ``augru``      a u                  a = 0 keeps the state
    ``released``   1 - (1 - a)(1 - u)   DIEN's released code: a = 0 is an ordinary step, a = 1 replaces the state

The term of the input is one product over all positions of the batch. The scan then runs over time steps. Rows are
sorted by length and positions ordered by step, so that a step is a slice of the rows that are still active and no
padding is computed. The gradient is written by hand. That of the recurrent weights is again one product. On a GPU an
ordinary GRU runs on ``nn/packed.py``.

Shapes: B rows, N positions, U entries of the history (see ``Segments``), T positions of a shared history, I inputs, H
hidden units, G inputs of a step (3 H; 2 H for ``agru``, which has no u), X those of its gates (G - H).
"""

from __future__ import annotations

from typing import Any, Literal, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn import gemm, kernels
from longrec.nn.linear import linear
from longrec.nn.packed import run_gru
from longrec.nn.segments import Segments
from longrec.nn.steps import Steps, gather_last, run_steps

Update = Literal["gru", "agru", "augru", "released"]


class GRU(nn.Module):
    """One GRU layer. See the module.

    Args:
        inputs: I.
        hidden: H.
        update: rule of the state update.
    """

    def __init__(self, inputs: int, hidden: int, update: Update = "gru") -> None:
        super().__init__()
        self.update, self.hidden = update, hidden
        gates = 2 if update == "agru" else 3
        bound = hidden**-0.5
        self.weight = nn.Parameter(torch.empty(gates * hidden, inputs).uniform_(-bound, bound))
        self.recurrent = nn.Parameter(torch.empty(gates * hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(gates * hidden))

    def states(
        self, x_UI: Float[Tensor, "U I"], segments: Segments, gates_UX: Float[Tensor, "U X"] | None = None
    ) -> Float[Tensor, "U H"]:
        """Return the state after every position. A row begins at zero.

        Args:
            gates_UX: terms added inside the gates u and r, not inside n.
        """
        if gates_UX is None and self._runs_packed(x_UI, segments):
            return run_gru(x_UI, self.weight, self.recurrent, self.bias, Steps.of(segments.requests))
        x_UG = self._inputs(x_UI, gates_UX)
        if segments.shared:
            return self._run_steps(x_UG.unsqueeze(1), None, 1)[1].squeeze(1)
        return self._scan_rows(x_UG, segments.requests, None)

    def last(
        self, x_UI: Float[Tensor, "U I"], segments: Segments, a_N: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, "B H"]:
        """Return the state after the last position of each row. 0 for an empty one.

        Args:
            a_N: the attention of each row at each of its positions, for the updates that use one.
        """
        assert (a_N is None) == (self.update == "gru"), (
            "attention must be passed to updates that use it, and to no other"
        )
        if self._runs_packed(x_UI, segments):
            return segments.repeat(gather_last(self.states(x_UI, segments), segments.requests))
        x_UG = self._inputs(x_UI)
        if segments.shared:
            rows = segments.rows if a_N is not None else 1
            a_TB = None if a_N is None else a_N.reshape(segments.rows, segments.positions).t()
            return self._run_steps(x_UG.unsqueeze(1), a_TB, rows)[0].expand(segments.rows, -1)
        if a_N is None:
            stored = segments.requests
            return segments.repeat(gather_last(self._scan_rows(x_UG, stored, None), stored))
        x_NG, segments = segments.flatten(x_UG)
        return gather_last(self._scan_rows(x_NG, segments, a_N), segments)

    def last_of_each(
        self, x_NI: Float[Tensor, "N I"], segments: Segments, a_N: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, "B H"]:
        """Return ``last`` of rows that have separate inputs even in a shared batch."""
        x_NG = self._inputs(x_NI)
        if not segments.shared:
            return gather_last(self._scan_rows(x_NG, segments, a_N), segments)
        x_TBG = x_NG.reshape(segments.rows, segments.positions, x_NG.shape[1]).transpose(0, 1)
        a_TB = None if a_N is None else a_N.reshape(segments.rows, segments.positions).t()
        return self._run_steps(x_TBG, a_TB, segments.rows)[0]

    def _runs_packed(self, x_UI: Tensor, segments: Segments) -> bool:
        """Return True if torch's own GRU computes the same and is faster."""
        ragged = not segments.shared and segments.positions > 0
        return ragged and self.update == "gru" and kernels.choose(x_UI) == "cuda"

    def _inputs(self, x_UI: Tensor, gates_UX: Tensor | None = None) -> Tensor:
        x_UG = linear(x_UI, self.weight, self.bias)
        return x_UG if gates_UX is None else x_UG + F.pad(gates_UX, (0, self.hidden))

    def _scan_rows(self, x_NG: Tensor, segments: Segments, a_N: Tensor | None) -> Tensor:
        if segments.positions == 0:
            return x_NG.new_zeros(0, self.hidden)
        states: Tensor = _Scan.apply(  # type: ignore[no-untyped-call]
            x_NG.float(), self.recurrent, None if a_N is None else a_N.float(), Steps.of(segments), self.update
        )
        return states

    @no_type_check
    def _run_steps(self, x_TBG: Tensor, a_TB: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
        """Return the last state ``[B, H]`` and all states ``[T, B, H]`` of rows of one length. B is 1 in shared
        tensors.
        """
        attention = x_TBG.new_ones(x_TBG.shape[0], 1) if a_TB is None else a_TB
        start = x_TBG.new_zeros(rows, self.hidden)
        return run_steps(lambda state, *at: (self._step(*state, *at),), (start,), (x_TBG, attention))

    @no_type_check
    def _step(self, h_BH: Tensor, x_BG: Tensor, a_B: Tensor) -> Tensor:
        terms = [*(h_BH @ self.recurrent.t()).split(self.hidden, 1)], [*x_BG.split(self.hidden, 1)]
        *gates, (h_n, x_n) = zip(*terms)
        r_BH = torch.sigmoid(gates[-1][0] + gates[-1][1])
        n_BH = torch.tanh(x_n + r_BH * h_n)
        u_BH = torch.sigmoid(gates[0][0] + gates[0][1]) if len(gates) == 2 else None
        return h_BH + _compute_share(self.update, u_BH, a_B.unsqueeze(1)) * (n_BH - h_BH)


@no_type_check
def _compute_share(update: Update, u_BH: Tensor | None, a_B1: Tensor) -> Tensor:
    """Return z, the share of the new state."""
    if u_BH is None:
        return a_B1
    if update == "augru":
        return a_B1 * u_BH
    return u_BH if update == "gru" else u_BH + a_B1 - a_B1 * u_BH


class _Scan(torch.autograd.Function):
    """All states in the order of the positions, with a hand-written gradient."""

    @staticmethod
    def forward(ctx: Any, x_NG: Tensor, w_GH: Tensor, a_N: Tensor | None, steps: Steps, update: Update) -> Tensor:
        width, total = w_GH.shape[1], len(x_NG)
        gates = w_GH.shape[0] // width
        # Step by step. The gates and the new state overwrite their inputs.
        x_NG = x_NG.index_select(0, steps.positions)
        a_N1 = None if a_N is None else a_N.index_select(0, steps.positions).unsqueeze(1)
        hn_NH, before_NH, out_NH = (gemm.allocate_rows(x_NG, total, width) for _ in range(3))
        w_HG, h_BH, start = w_GH.t().contiguous(), x_NG.new_zeros(steps.rows, width), 0
        for count in steps.counts:
            at = slice(start, start + count)
            h, x = h_BH[:count], x_NG[at]
            before_NH[at] = h
            if start:
                own = h @ w_HG
                x[:, :-width].add_(own[:, :-width])
                hn = hn_NH[at]
                hn.copy_(own[:, -width:])
            else:
                hn = hn_NH[at].zero_()
            x[:, :-width].sigmoid_()
            n = x[:, -width:].addcmul_(x[:, -2 * width : -width], hn).tanh_()
            u = x[:, :width] if gates == 3 else None
            a = a_N1[at] if a_N1 is not None else x[:0, :1]
            h.add_(_compute_share(update, u, a) * (n - h))
            out_NH[at] = h
            start += count
        ctx.steps, ctx.update = steps, update
        ctx.save_for_backward(x_NG, hn_NH, before_NH, w_GH, a_N1)
        states_NH = torch.empty_like(out_NH)
        states_NH[steps.positions] = out_NH
        return states_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NH: Tensor) -> tuple[Tensor | None, ...]:
        x_NG, hn_NH, before_NH, w_GH, a_N1 = ctx.saved_tensors
        steps, update, width = ctx.steps, ctx.update, w_GH.shape[1]
        three = w_GH.shape[0] == 3 * width
        g_NH = g_NH.index_select(0, steps.positions)
        gx_NG = gemm.allocate_rows(x_NG, *x_NG.shape)  # with respect to the inputs
        gh_NG = gemm.allocate_rows(x_NG, *x_NG.shape)  # with respect to the terms of the last state
        ga_N1 = None if a_N1 is None else torch.empty_like(a_N1)
        d_BH, stop = x_NG.new_zeros(steps.rows, width), len(x_NG)
        for count in reversed(steps.counts):
            at = slice(stop - count, stop)
            d, x = d_BH[:count], x_NG[at]
            d.add_(g_NH[at])
            r, n = x[:, -2 * width : -width], x[:, -width:]
            u = x[:, :width] if three else None
            a = a_N1[at] if a_N1 is not None else x[:0, :1]
            dz = d * (n - before_NH[at])
            z = _compute_share(update, u, a)
            gx, gh = gx_NG[at], gh_NG[at]
            dn = torch.mul(d * z, 1 - n * n, out=gx[:, -width:])
            torch.mul(dn * hn_NH[at], r * (1 - r), out=gx[:, -2 * width : -width])
            if u is not None:
                du = dz * a if update == "augru" else dz if update == "gru" else dz * (1 - a)
                torch.mul(du, u * (1 - u), out=gx[:, :width])
            if ga_N1 is not None:
                da = dz if u is None else dz * u if update == "augru" else dz * (1 - u)
                torch.sum(da, 1, keepdim=True, out=ga_N1[at])
            gh[:, :-width] = gx[:, :-width]
            torch.mul(dn, r, out=gh[:, -width:])
            d.mul_(1 - z).addmm_(gh, w_GH)
            stop -= count
        g_w = gemm.weight_gradient(gh_NG, before_NH)
        back_NG = torch.empty_like(gx_NG)
        back_NG[steps.positions] = gx_NG
        if ga_N1 is None:
            return back_NG, g_w, None, None, None
        g_a = torch.empty_like(ga_N1)
        g_a[steps.positions] = ga_N1
        return back_NG, g_w, g_a.squeeze(1), None, None
