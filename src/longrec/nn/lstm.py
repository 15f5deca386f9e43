"""A long short-term memory over ragged histories, as one fused scan.

    i, f, o = sigmoid(x_ifo + p + U_ifo h + b_ifo)      g = m * tanh(x_g + U_g h + b_g)
    c' = f * c + i * g                                  h' = o * tanh(c')

x is the term of the input. p, if given, is added inside the gates only (Ni et al. 2018: the property of an event). m,
if given, scales the new content (Gu et al. 2020: weight and time of an event). ``reverse`` runs from the last position
of a row to its first.

It runs as nn/recurrent.py does: the term of the input is one product over all positions of the batch, a step is a slice
of the rows that are still active, and the gradient is written by hand. On a GPU an ordinary LSTM runs on
``nn/packed.py``. The forget gate f starts open (its bias at 1),
so that the state is kept by default.

Shapes: B rows, N positions, U entries of the history (see ``Segments``), T positions of a shared history, I inputs, H
hidden units, G inputs of a step (4 H: i, f, o, g), X those of its gates (3 H).
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.nn import gemm, kernels
from longrec.nn.linear import linear
from longrec.nn.packed import run_lstm
from longrec.nn.segments import Segments
from longrec.nn.steps import Steps, gather_last, run_steps


class LSTM(nn.Module):
    """One LSTM layer. See the module.

    Args:
        inputs: I.
        hidden: H.
        reverse: run from the last position to the first.
    """

    def __init__(self, inputs: int, hidden: int, reverse: bool = False) -> None:
        super().__init__()
        self.hidden, self.reverse = hidden, reverse
        bound = hidden**-0.5
        self.weight = nn.Parameter(torch.empty(4 * hidden, inputs).uniform_(-bound, bound))
        self.recurrent = nn.Parameter(torch.empty(4 * hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.cat([torch.zeros(hidden), torch.ones(hidden), torch.zeros(2 * hidden)]))

    def states(
        self,
        x_UI: Float[Tensor, "U I"],
        segments: Segments,
        gates_UX: Float[Tensor, "U X"] | None = None,
        scale_UH: Float[Tensor, "U H"] | None = None,
        moves_T: Bool[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "U H"]:
        """Return h after every position. A row begins at zero.

        Args:
            gates_UX: p, added inside i, f and o.
            scale_UH: m, the factor of g.
            moves_T: positions of a shared history that update the state. The others leave it unchanged. (For ragged
                rows, select these positions before, so that nothing is computed for the others.)
        """
        return self._run(x_UI, segments.requests, gates_UX, scale_UH, moves_T)[0]

    def last(
        self,
        x_UI: Float[Tensor, "U I"],
        segments: Segments,
        gates_UX: Float[Tensor, "U X"] | None = None,
        scale_UH: Float[Tensor, "U H"] | None = None,
        moves_T: Bool[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "B H"]:
        """Return h after the last position of each row (``reverse``: the first). 0 for an empty one. Arguments as
        above.
        """
        return self.states_and_last(x_UI, segments, gates_UX, scale_UH, moves_T)[1]

    def states_and_last(
        self,
        x_UI: Float[Tensor, "U I"],
        segments: Segments,
        gates_UX: Float[Tensor, "U X"] | None = None,
        scale_UH: Float[Tensor, "U H"] | None = None,
        moves_T: Bool[Tensor, " T"] | None = None,
    ) -> tuple[Float[Tensor, "U H"], Float[Tensor, "B H"]]:
        """Return the results of ``states`` and ``last`` from one run."""
        stored = segments.requests
        h_UH, last_1H = self._run(x_UI, stored, gates_UX, scale_UH, moves_T)
        return h_UH, segments.repeat(gather_last(h_UH, stored, self.reverse) if last_1H is None else last_1H)

    def _run(
        self,
        x_UI: Tensor,
        segments: Segments,
        gates_UX: Tensor | None,
        scale_UH: Tensor | None,
        moves_T: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return h after every stored position, and after the last one of a shared history."""
        plain = gates_UX is None and scale_UH is None and not segments.shared and segments.positions > 0
        if plain and kernels.choose(x_UI) == "cuda":
            return run_lstm(x_UI, self.weight, self.recurrent, self.bias, Steps.of(segments, self.reverse)), None
        x_UG = linear(x_UI, self.weight, self.bias)
        if gates_UX is not None:
            x_UG = x_UG + F.pad(gates_UX, (0, self.hidden))
        if segments.shared:
            return self._run_steps(x_UG, scale_UH, moves_T)
        assert moves_T is None, "ragged rows take the selected positions, not a mask of them"
        if segments.positions == 0:
            return x_UG.new_zeros(0, self.hidden), None
        scale = None if scale_UH is None else scale_UH.float()
        states: Tensor = _Scan.apply(  # type: ignore[no-untyped-call]
            x_UG.float(), self.recurrent, scale, Steps.of(segments, self.reverse)
        )
        return states, None

    @no_type_check
    def _run_steps(self, x_TG: Tensor, scale_TH: Tensor | None, moves_T: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = (x_TG,) if scale_TH is None else (x_TG, scale_TH)
        if self.reverse:
            inputs, moves_T = tuple(x.flip(0) for x in inputs), None if moves_T is None else moves_T.flip(0)
        start = x_TG.new_zeros(1, self.hidden)
        last_1H, states_T1H = run_steps(
            self._step, (start, start.clone()), tuple(x.unsqueeze(1) for x in inputs), moves_T
        )
        states_TH = states_T1H.squeeze(1)
        return states_TH.flip(0) if self.reverse else states_TH, last_1H

    @no_type_check
    def _step(self, state: tuple[Tensor, Tensor], x_BG: Tensor, scale_BH: Tensor | None = None) -> tuple[Tensor, ...]:
        h_BH, c_BH = state
        i, f, o, g = (h_BH @ self.recurrent.t() + x_BG).split(self.hidden, 1)
        g = torch.tanh(g) if scale_BH is None else torch.tanh(g) * scale_BH
        c_BH = torch.sigmoid(f) * c_BH + torch.sigmoid(i) * g
        return torch.sigmoid(o) * torch.tanh(c_BH), c_BH


class _Scan(torch.autograd.Function):
    """h in the order of the positions, with a hand-written gradient."""

    @staticmethod
    def forward(ctx: Any, x_NG: Tensor, w_GH: Tensor, m_NH: Tensor | None, steps: Steps) -> Tensor:
        width, total = w_GH.shape[1], len(x_NG)
        # Step by step. The gates and the new content overwrite their inputs.
        x_NG = x_NG.index_select(0, steps.positions)
        m_NH = None if m_NH is None else m_NH.index_select(0, steps.positions)
        before_NH, out_NH = (gemm.allocate_rows(x_NG, total, width) for _ in range(2))
        kept_NH, tanh_NH = torch.empty_like(out_NH), torch.empty_like(out_NH)  # c before, and tanh(c) after
        w_HG, start = w_GH.t().contiguous(), 0
        h_BH, c_BH = (x_NG.new_zeros(steps.rows, width) for _ in range(2))
        for count in steps.counts:
            at = slice(start, start + count)
            h, c, x = h_BH[:count], c_BH[:count], x_NG[at]
            before_NH[at], kept_NH[at] = h, c
            if start:
                x.add_(h @ w_HG)
            x[:, : 3 * width].sigmoid_()
            i, f, o, g = (x[:, first : first + width] for first in range(0, 4 * width, width))
            g.tanh_()
            c.mul_(f).addcmul_(i, g if m_NH is None else g * m_NH[at])
            tanh_c = torch.tanh(c, out=tanh_NH[at])
            torch.mul(o, tanh_c, out=h)
            out_NH[at] = h
            start += count
        ctx.steps = steps
        ctx.save_for_backward(x_NG, before_NH, kept_NH, tanh_NH, w_GH, m_NH)
        states_NH = torch.empty_like(out_NH)
        states_NH[steps.positions] = out_NH
        return states_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NH: Tensor) -> tuple[Tensor | None, ...]:
        x_NG, before_NH, kept_NH, tanh_NH, w_GH, m_NH = ctx.saved_tensors
        steps, width = ctx.steps, w_GH.shape[1]
        g_NH = g_NH.index_select(0, steps.positions)
        gx_NG = gemm.allocate_rows(x_NG, *x_NG.shape)
        gm_NH = None if m_NH is None else torch.empty_like(m_NH)
        dh_BH, dc_BH = (x_NG.new_zeros(steps.rows, width) for _ in range(2))
        stop = len(x_NG)
        for count in reversed(steps.counts):
            at = slice(stop - count, stop)
            dh, dc, gx, tanh_c = dh_BH[:count], dc_BH[:count], gx_NG[at], tanh_NH[at]
            i, f, o, g = (x_NG[at, first : first + width] for first in range(0, 4 * width, width))
            dh.add_(g_NH[at])
            do = torch.mul(dh, tanh_c, out=gx[:, 2 * width : 3 * width])
            dc.add_(dh.mul_(o).sub_(do * (o * tanh_c)))
            torch.mul(dc, kept_NH[at], out=gx[:, width : 2 * width])
            new, dg = (g, dc * i) if m_NH is None else (g * m_NH[at], dc * i)
            torch.mul(dc, new, out=gx[:, :width])
            if gm_NH is not None:
                torch.mul(dg, g, out=gm_NH[at])
                dg.mul_(m_NH[at])
            gates = x_NG[at, : 3 * width]
            gx[:, : 3 * width].mul_(gates - gates * gates)
            torch.addcmul(dg, dg * g, g, value=-1, out=gx[:, 3 * width :])
            dc.mul_(f)
            torch.mm(gx, w_GH, out=dh)
            stop -= count
        g_w = gemm.weight_gradient(gx_NG, before_NH)
        back_NG = torch.empty_like(gx_NG)
        back_NG[steps.positions] = gx_NG
        if gm_NH is None:
            return back_NG, g_w, None, None
        g_m = torch.empty_like(gm_NH)
        g_m[steps.positions] = gm_NH
        return back_NG, g_w, g_m, None
