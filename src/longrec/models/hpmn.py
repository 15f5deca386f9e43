r"""HPMN: Lifelong Sequential Modeling with Personalized Memorization for User Response Prediction.

Ren, Qin, Fang, Zhang, Zheng, Bian, Zhou, Xu, Yu, Zhu, Gai, SIGIR 2019. https://arxiv.org/abs/1905.00758

A user's life is compressed into a memory of a few vectors, one per time scale. Recurrences are stacked, and each
updates less often than the one below, so that a higher level remembers longer. The memory does not depend on the
candidate, which only reads it:

    m_l <- GRU_l(m_{l-1}, m_l)   if t mod (t_1 ... t_l) = 0, else m_l        m_0 = e_t                     (update)
    w = softmax_l(MLP([v, m_l, v - m_l, v * m_l]))      v <- H v + sum_l w_l m_l      from v = W e_a       (read)
    logit = MLP([fields of the impression, v])
    L = L_label + covariance_weight |C - diag(C)|_F     C_jl = mean_d (m_j - mean m_j)(m_l - mean m_l)

t counts the events of a user from 1, t_1 = 1, and t_l is the period of a level in updates of the one below. A read runs
``hops`` times. The penalty lets levels store different things. The equations go by name here.

The memory of a user is kept up to date in constant time: see ``start_state``, ``update`` and ``read`` of
``PeriodicMemory``. The pass over whole histories has the same result as one update per event.

Departures from the paper
    - the authors' code pads histories at the front, so that the newest event always updates every level. That needs the
      whole history again after each event. Here the count starts at the oldest event of the history: the newest events
      may not have reached the upper levels yet, and the first level reads all of them. A history that a schema cuts
      to its last events is counted from the first event that is left;
    - the first level starts at zero, as the authors' GRUs, but a higher one at its step from zero with a learned input:
      the candidate reads a level before its first update too;
    - the mean of the penalty is over rows, where the code sums over 128 rows with a weight of 1e-5, and over histories;
    - the default periods are those of the code for Amazon (1, 2 and 4 events, T = 100). Its longest experiment has
      1, 2, 4, 8 and 16 events (``periods: [2, 2, 2, 2]``, T = 1024);
    - no dropout and no clipping of gradients by default; batch normalization in the top MLP;
    - the target is not an event of the history, as it is in the authors' preparation of data;
    - each history has a memory of its own.

Shapes: B rows (users of an update), R requests, U stored positions (see nn/segments.py), V of them that update a level,
K width of an event, Q width of the query, L levels, H units of a level.
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import Any, ClassVar, NamedTuple, cast, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.fields import Fields
from longrec.models.core.memory import MemoryRanker, UserMemory
from longrec.models.core.top import TopConfig, Width
from longrec.nn import kernels
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embeddings
from longrec.nn.host_plans import expand_rows, put
from longrec.nn.linear import Linear
from longrec.nn.memory_attention import MemoryAttention
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.stepped_gru import SteppedGRU
from longrec.nn.steps import gather_last, run_steps

_LAST_GAIN = 0.1
"""Factor of the initial weights of the final layer, so that training starts at the base rate of the labels."""


class HPMNConfig(TopConfig):
    """Settings of HPMN."""

    hidden: Width = Field(32, description="Units of every level.")
    periods: tuple[Width, ...] = Field(
        (2, 2), min_length=1, description="Period of each level above the first, in updates of the level below."
    )
    hops: Width = Field(3, description="Reads of the memory, each with the result of the one before.")
    attention: tuple[Width, ...] = Field((80, 40), min_length=1, description="Hidden units of the attention.")
    covariance_weight: float = Field(1e-3, ge=0, description="Weight of the covariance between levels.")
    mlp_activation: ActivationName = Field("elu", description="Activation of the top MLP.")


class HPMN(MemoryRanker):
    """HPMN over every history of the schema."""

    Config = HPMNConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"periods": [3], "hops": 1, "hidden": 12, "attention": [16], "covariance_weight": 0.0, "batch_norm": False},
        {"periods": [1, 2], "hops": 2, "hidden": 10, "mlp": [24], "dropout": 0.1},
    )

    def __init__(self, config: HPMNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "hpmn", project=False)
        self.memories = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            query, key = self.queries.query_widths[history], self.queries.key_widths[history]
            self.memories[f"memory_{history}"] = PeriodicMemory(query, key, config)
            top += config.hidden
        self.penalty_weight = config.covariance_weight
        self.set_top(top, config, _LAST_GAIN)


class MemoryState(NamedTuple):
    """Memory of B users. Its size does not depend on how many events it has read.

    Attributes:
        levels: float32 ``[B, L, H]``.
        events: int64 ``[B]``, the number of events that it has read.
    """

    levels: Tensor
    events: Tensor


class PeriodicMemory(UserMemory):
    """Memory of one history: levels that update with every event, with every t_2-th event, and so on.

    Args:
        query, key: width of the candidate and of an event.
    """

    spans: Tensor

    def __init__(self, query: int, key: int, config: HPMNConfig) -> None:
        super().__init__()
        hidden, self.periods, self.hops = config.hidden, config.periods, config.hops
        self.width = hidden
        widths = [key, *[hidden] * len(self.periods)]
        self.levels = nn.ModuleList(SteppedGRU(width, hidden) for width in widths)
        bound = hidden**-0.5
        self.first = nn.Parameter(torch.empty(len(self.periods), hidden).uniform_(-bound, bound))
        self.query, self.hop = Linear(query, hidden), Linear(hidden, hidden, bias=False)
        self.attention = MemoryAttention(hidden, config.attention)
        # Events between two updates of a level.
        spans = torch.tensor([1, *accumulate(self.periods, mul)])
        self.register_buffer("spans", spans, persistent=False)

    def start_state(self, users: int) -> MemoryState:
        """Return the memory of users without events."""
        zero_1H = torch.zeros_like(self.first[:1])
        upper = [level.step(zero_1H, self.first[at : at + 1]) for at, level in enumerate(self.upper())]
        levels_LH = torch.cat([zero_1H, *upper])
        return MemoryState(levels_LH.expand(users, -1, -1), self.spans.new_zeros(users))

    def update(self, state: MemoryState, e_BK: Float[Tensor, "B K"]) -> MemoryState:
        """Return the memory of B users after one more event of each."""
        events_B = state.events + 1
        due_BL = events_B.unsqueeze(1) % self.spans == 0
        return MemoryState(self._advance(state.levels, e_BK, due_BL), events_B)

    def read(self, state: MemoryState, q_BQ: Float[Tensor, "B Q"]) -> Float[Tensor, "B H"]:
        """Return what each candidate reads in the memory of its row."""
        v_BH = self.query(q_BQ)
        for _ in range(self.hops):
            w_BL = self.attention(v_BH, state.levels)
            v_BH = self.hop(v_BH) + (w_BL.unsqueeze(2) * state.levels).sum(1)
        return v_BH

    def states(self, e_UK: Float[Tensor, "U K"], segments: Segments, start: MemoryState | None = None) -> MemoryState:
        """Return the memory of every request after its history, of R requests."""
        if kernels.is_traced():
            return self._run_traced(e_UK, self.start_state(1) if start is None else start)
        rows = segments.requests
        if rows.shared:
            rows = Segments.of_offsets(np.array([0, rows.positions]), e_UK.device)
        if start is not None:
            folded: MemoryState = self.fold(start, e_UK, rows)
            return folded
        level, *upper = self.all_levels()
        h_VH = level.states(e_UK, rows)
        last = [gather_last(h_VH, rows)]
        for level, first_H, (at_V, own) in zip(upper, self.first.unbind(), self._plan(rows), strict=True):
            h_VH = level.states(torch.cat([first_H.unsqueeze(0), h_VH]).index_select(0, at_V), own)
            last.append(gather_last(h_VH, own))
        return MemoryState(torch.stack(last, 1), rows.offsets.diff())

    def compute_penalty(self, state: MemoryState) -> Float[Tensor, " B"]:
        """Return the covariance between the levels of each row."""
        return covariance(state.levels)

    @no_type_check
    def pack(self, state: MemoryState) -> Tensor:
        """Return states as vectors, float32 ``[B, W]``. The number of events is that since all levels were due."""
        return super().pack(MemoryState(state.levels, state.events % self.spans[-1]))

    def all_levels(self) -> list[SteppedGRU]:
        """Return the recurrences, the one of the events first."""
        return [cast(SteppedGRU, level) for level in self.levels]

    def upper(self) -> list[SteppedGRU]:
        """Return the recurrences above the first."""
        return self.all_levels()[1:]

    def _plan(self, rows: Segments) -> list[tuple[Tensor, Segments]]:
        """Return the inputs of each upper level, and its segments.

        Inputs are an index of the states of the level below after the learned input, which is the first one of every
        row.
        """
        key = "periods", self.periods
        if key not in rows.memo:
            lengths_B, plan, span = np.diff(rows.host_offsets), [], 1
            before_B = rows.host_offsets[:-1] - 1  # state number k of a row is at before + k
            for period in self.periods:
                span *= period
                offsets = np.concatenate([[0], (1 + lengths_B // span).cumsum()])
                number_V = np.arange(offsets[-1]) - expand_rows(offsets, offsets[:-1])
                below_V = expand_rows(offsets, before_B) + number_V * period
                at_V = np.where(number_V > 0, 1 + below_V, 0)
                plan.append((put(at_V, rows.offsets.device), Segments.of_offsets(offsets, rows.offsets.device)))
                before_B = offsets[:-1]
            rows.memo[key] = plan
        levels: list[tuple[Tensor, Segments]] = rows.memo[key]
        return levels

    # A function inside a traced scan must not be wrapped by a shape checker.
    @no_type_check
    def _advance(self, levels_BLH: Tensor, e_BK: Tensor, due_BL: Tensor) -> Tensor:
        """Return the levels after one event. Only those that are due change."""
        below, levels = e_BK, []
        for level, h_BH, due_B in zip(self.levels, levels_BLH.unbind(1), due_BL.unbind(1)):
            below = torch.where(due_B.unsqueeze(1), level.step(h_BH, below), h_BH)
            levels.append(below)
        return torch.stack(levels, 1)

    @no_type_check
    def _run_traced(self, e_TK: Tensor, start: MemoryState) -> MemoryState:
        """Return the memory of one history of any length as one scan of the updates."""
        shape = (1, len(self.levels), self.first.shape[1])
        index_T = torch.arange(e_TK.shape[0], device=e_TK.device) + 1 + start.events
        due_T1L = (index_T.view(-1, 1, 1) % self.spans.view(1, 1, -1) == 0).to(e_TK.dtype)

        def step(state, e_1K, due_1L):
            return (self._advance(state[0].view(shape), e_1K, due_1L > 0).view(1, -1),)

        last_1X, _ = run_steps(step, (start.levels.reshape(1, -1),), (e_TK.unsqueeze(1), due_T1L))
        return MemoryState(last_1X.view(shape), start.events + e_TK.shape[0])


def covariance(m_BLH: Float[Tensor, "B L H"]) -> Float[Tensor, " B"]:
    """Return the Frobenius norm of the covariance between different levels of each row. 0 if all are orthogonal."""
    own_BLH = m_BLH - m_BLH.mean(2, keepdim=True)
    c_BLL = (own_BLH.unsqueeze(2) * own_BLH.unsqueeze(1)).mean(3)
    return torch.linalg.vector_norm((c_BLL * (1 - torch.eye(c_BLL.shape[1], device=c_BLL.device))).flatten(1), dim=1)
