"""Time steps of recurrences: ragged rows step by step, and rows of one length together.

Shapes: B rows, N positions, T steps, H width of a state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch._higher_order_ops.scan import scan

from longrec.nn import kernels
from longrec.nn.host_plans import expand_rows, invert, put
from longrec.nn.scans import State, scan_states
from longrec.nn.segments import Segments


@dataclass(frozen=True)
class Steps:
    """Positions of ragged rows ordered by time step.

    Attributes:
        positions: int64 ``[N]``: the positions, first those that begin a row, then the second ones, and so on.
        rows: B.
        counts: active rows at each step, in descending order. They are a prefix of the rows, longest first.
    """

    positions: Tensor
    rows: int
    counts: list[int]

    @classmethod
    def of(cls, segments: Segments, reverse: bool = False) -> Steps:
        """Return the steps of ragged segments, which are made once. ``reverse`` starts a row at its last position."""
        if ("steps", reverse) not in segments.memo:
            segments.memo["steps", reverse] = cls._plan(segments, reverse)
        steps: Steps = segments.memo["steps", reverse]
        return steps

    @classmethod
    def _plan(cls, segments: Segments, reverse: bool) -> Steps:
        offsets = segments.host_offsets
        rank_B = invert((-np.diff(offsets)).argsort(kind="stable"))
        position_N = np.arange(segments.positions)
        if reverse:
            at_N = expand_rows(offsets, offsets[1:]) - 1 - position_N
        else:
            at_N = position_N - expand_rows(offsets, offsets[:-1])
        counts_T = np.bincount(at_N)
        starts_T = counts_T.cumsum() - counts_T
        positions_N = np.empty_like(position_N)
        positions_N[starts_T[at_N] + expand_rows(offsets, rank_B)] = position_N
        return cls(put(positions_N, segments.offsets.device), segments.rows, counts_T.tolist())


def find_followed(segments: Segments) -> Tensor:
    """Return int64 ``[M]``: the positions of ragged rows that another one of their row follows."""
    if "followed" not in segments.memo:
        offsets = segments.host_offsets
        followed_N = np.ones(segments.positions, bool)
        followed_N[offsets[1:][np.diff(offsets) > 0] - 1] = False
        segments.memo["followed"] = put(np.flatnonzero(followed_N), segments.offsets.device)
    followed: Tensor = segments.memo["followed"]
    return followed


def rank_longest_first(rows: Segments) -> Tensor:
    """Return int64 ``[B]``: the index of each row among all rows ordered by length, the longest first (see Steps)."""
    if "rank" not in rows.memo:
        rank_B = invert((-np.diff(rows.host_offsets)).argsort(kind="stable"))
        rows.memo["rank"] = put(rank_B, rows.offsets.device)
    rank: Tensor = rows.memo["rank"]
    return rank


def gather_last(h_NH: Float[Tensor, "N H"], segments: Segments, reverse: bool = False) -> Float[Tensor, "B H"]:
    """Return the value at the last (``reverse``: the first) position of each ragged row. 0 for an empty one."""
    lengths_B = segments.offsets[1:] - segments.offsets[:-1]
    full_B = lengths_B > 0
    if not segments.positions:
        return h_NH.new_zeros(segments.rows, h_NH.shape[1])
    at_B = segments.offsets[:-1] if reverse else segments.offsets[1:] - 1
    last_BH = h_NH.index_select(0, at_B.clamp(0, segments.positions - 1))
    return torch.where(full_B.unsqueeze(1), last_BH, torch.zeros_like(last_BH))


# A function inside a traced scan must not be wrapped by a shape checker.
@no_type_check
def run_steps(
    step: Callable[..., State], start: State, inputs: tuple[Tensor, ...], moves_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the last state ``[B, H]`` and all states ``[T, B, H]`` of rows of one length, computed step by step.

    Args:
        step: function of a state and one step of each input that returns the next state. The first tensor of a state is
            the one returned here.
        start: the state before the first step.
        inputs: ``[T, ...]`` each.
        moves_T: bool: steps that update the state. The others leave it unchanged.

    Raises:
        NotImplementedError: if a capture runs over a further dimension that an input has.
    """
    if kernels.is_traced():

        def masked_step(state: State, at: tuple[Tensor, ...]) -> State:
            *step_inputs, real = at
            return tuple(old + real * (new - old) for old, new in zip(state, step(state, *step_inputs)))

        def emitting_step(state: State, at: tuple[Tensor, ...]) -> tuple[State, Tensor]:
            state = masked_step(state, at)
            return state, state[0].clone()

        # A step without an update comes first, because programs cannot scan an empty history.
        inputs = tuple(torch.cat([torch.zeros_like(x.sum(0, keepdim=True)), x]) for x in inputs)
        first, rest = inputs[0].new_zeros(1), torch.ones_like(inputs[0][1:].flatten(1)[:, 0])
        real_T = torch.cat([first, rest if moves_T is None else moves_T.to(rest.dtype)])
        # As wide as a state: if T is dynamic, the exporter treats all sizes of 1 as one dynamic size.
        real_T1H = real_T.view(-1, 1, 1).expand(-1, 1, start[0].shape[1])
        if kernels.is_vectorized():
            (last, *_), (states_TBH, *_) = scan_states(masked_step, start, (*inputs, real_T1H))
            return last, states_TBH[1:]
        state, states_TBH = scan(emitting_step, start, (*inputs, real_T1H))
        return state[0], states_TBH[1:]
    state, states = start, []
    for *step_inputs, moves in zip(*inputs, [True] * len(inputs[0]) if moves_T is None else moves_T.tolist()):
        state = step(state, *step_inputs) if moves else state
        states.append(state[0])
    return state[0], torch.stack(states) if states else start[0].new_zeros(0, *start[0].shape)
