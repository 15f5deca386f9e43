r"""MIMN: Practice on Long Sequential User Behavior Modeling for Click-Through Rate Prediction.

Pi, Bian, Zhou, Zhu, Gai, KDD 2019. https://arxiv.org/abs/1905.09248

A neural Turing machine reads the events of a user one after the other and writes them into a few memory slots. Another
server can do so with every event, so that a request costs the same for a long life as for a short one. The memory does
not depend on the candidate, which only reads it:

    h_t = GRU([e_t; r_{t-1}], h_{t-1})            k, beta (of read and write), erase, add = heads(h_t)  (controller)
    w_i = softmax_i(beta (cos(k, M_i) + cos(k, K_i)) / 2)         r_t = sum_i w^r_i M_i                 (read)
    w~_t = w^w_t P_t       P_t = softmax(W_g g_t)       g_t = sum_{c<t} w~_c / (t - 1)                  (utilization)
    M_i <- (1 - w~_i erase) M_i + w~_i add                                                              (write)
    S_i <- GRU([M_i; e_t], S_i)   for the slots i of the ``induction`` largest w^r_i                    (induction unit)
    u = [r of one more step with the candidate as event; sum_i attention_i(e_a) S_i]
    logit = MLP([fields of the impression, u])
    L = L_label + utilization_weight sum_i (g_i - mean g)^2                                             (regularization)

The controller remembers, K are learned keys of the slots, and S are channels that follow one interest each. P_t moves
writes from slots that are used much to others, and the penalty teaches it to. The equations go by name here.

The state of a user is kept up to date in constant time: see ``start_state``, ``update`` and ``read`` of
``TuringMemory``. The pass over whole histories has the same result as one update per event.

Departures from the paper
    - addressing is that of the authors' code: a learned sharpness beta = 2 (softplus + 1), and the mean of two cosines,
      with the slots and with fixed keys. By the equations alone all slots would be equal at the start, and stay so;
    - the code has no transfer P: its write head shifts and sharpens the weights, as other neural Turing machines;
    - W_g has a bias, which starts so that P is near the identity: softmax(0) would write every event to all slots
      alike. The gradient does not flow through g into earlier writes, as in the code;
    - utilization is divided by the number of events, so that neither P nor the weight of the penalty depends on the
      length of a history;
    - the induction unit reads M_i as it was read, before the write; ``induction: 1`` is the code's. The candidate
      attends to the channels by a softmax;
    - the bias of erase starts at -3, so that the memory is kept until training finds what to erase, and the weights of
      r and M in both recurrences at a twentieth, since a slot sums up about twenty additions;
    - the memory starts at zero, where the code's starts at random numbers near it. The gradient of the induction unit
      flows into the memory, where the code stops it;
    - the code's top MLP also reads the sum of all events and the mean of all additions. Here it reads the state alone;
    - ``utilization_weight: 0`` and ``induction: 0`` give the plain neural Turing machine of the ablation;
    - columns of events that the candidate lacks are zero where the candidate takes the place of an event;
    - the target is not an event of the history, as it is in the authors' preparation of data;
    - each history has a memory of its own; batch normalization in the top MLP.

Shapes: B rows (users of an update), R requests, U stored positions (see nn/segments.py), K width of an event, Q width
of the query, M memory slots, D width of a slot, H units of the controller, G and S terms of the input of its step and
of that of the induction unit (3 H, 3 D), J keys, V width of what is read, X several of these side by side.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.fields import Fields
from longrec.models.core.memory import MemoryRanker, UserMemory, join_ended, split_ended
from longrec.models.core.top import TopConfig, Width
from longrec.nn import kernels
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embeddings
from longrec.nn.linear import Linear
from longrec.nn.memory_attention import MemoryAttention
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.stepped_gru import SteppedGRU
from longrec.nn.steps import Steps, rank_by_length, run_steps

_LAST_GAIN = 0.1
"""Factor of the initial weights of the final layer, so that training starts at the base rate of the labels."""
_ERASE = -3.0
"""First bias of erase: by default the memory is kept, as in an LSTM whose forget gate starts open."""
_SMALLEST = 1e-6
"""Added to squared norms: the cosine of an empty slot is 0, and its gradient is bounded."""


class MIMNConfig(TopConfig):
    """Settings of MIMN."""

    memory_slots: int = Field(4, ge=2, description="Vectors that the memory of a user consists of.")
    width: Width = Field(32, description="Width of a memory slot.")
    hidden: Width = Field(32, description="Units of the controller.")
    utilization_weight: float = Field(
        0.01, ge=0, description="Weight of the penalty on unequal use of slots; 0 also removes the transfer of writes."
    )
    induction: int = Field(1, ge=0, description="Channels that the induction unit updates per event; 0 removes it.")
    attention: tuple[Width, ...] = Field((80, 40), min_length=1, description="Hidden units of attention on channels.")
    mlp_activation: ActivationName = Field("prelu", description="Activation of the top MLP.")


class MIMN(MemoryRanker):
    """MIMN over every history of the schema."""

    Config = MIMNConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"memory_slots": 3, "width": 8, "hidden": 10, "induction": 2, "attention": [16], "mlp": [24], "dropout": 0.1},
        {"width": 12, "hidden": 12, "utilization_weight": 0.0, "induction": 0, "batch_norm": False},
    )

    def __init__(self, config: MIMNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if config.induction > config.memory_slots:
            most = f"must be at most model.memory_slots ({config.memory_slots}), got {config.induction}"
            raise ConfigError("config", [f"model.induction: {most}"])
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "mimn")
        self.memories = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            memory = TuringMemory(self.queries.query_widths[history], self.queries.key_widths[history], config)
            self.memories[f"memory_{history}"] = memory
            top += memory.width
        self.penalty_weight = config.utilization_weight
        self.set_top(top, config, _LAST_GAIN)


class MemoryState(NamedTuple):
    """State of B users, float32. Its size does not depend on how many events it has read.

    Attributes:
        hidden: ``[B, H]``, state of the controller.
        reading: ``[B, D]``, what it read last.
        slots: ``[B, M, D]``, the memory.
        utilization: ``[B, M]``, the sum of the weights of all writes. Its sum over slots is the number of events.
        channels: ``[B, M, D]``, states of the induction unit. ``[B, 0, D]`` without it.
    """

    hidden: Tensor
    reading: Tensor
    slots: Tensor
    utilization: Tensor
    channels: Tensor


class TuringMemory(UserMemory):
    """Memory of one history.

    Args:
        query, key: width of the candidate and of an event.

    Attributes:
        width: V.
    """

    def __init__(self, query: int, key: int, config: MIMNConfig) -> None:
        super().__init__()
        hidden, slots, width = config.hidden, config.memory_slots, config.width
        self.pad, self.induction = key - query, config.induction
        self.controller, self.of_reading = SteppedGRU(key, hidden), Linear(width, 3 * hidden, bias=False)
        # Keys and sharpnesses of the read head and the write head, then what is erased, and what is added.
        self.sizes = [2 * width, 2, width, width]
        self.heads = Linear(hidden, sum(self.sizes))
        with torch.no_grad():
            self.heads.bias[-2 * width : -width] = _ERASE
        self.keys = nn.Parameter(torch.empty(slots, width).normal_(std=0.5))
        self.transfer = Linear(slots, slots * slots) if config.utilization_weight else None
        if self.transfer is not None:
            with torch.no_grad():
                self.transfer.bias.copy_(3 * torch.eye(slots).flatten())
        self.unit = self.of_slot = self.query = self.attention = None
        if config.induction:
            self.unit, self.of_slot = SteppedGRU(key, width), Linear(width, 3 * width, bias=False)
            self.query, self.attention = Linear(query, width), MemoryAttention(width, config.attention)
        self.width = width * (2 if config.induction else 1)
        # A slot sums up additions until they are erased, and would saturate both units.
        with torch.no_grad():
            for of_sum in (self.of_reading, self.of_slot):
                if of_sum is not None:
                    of_sum.weight.mul_(torch.sigmoid(torch.tensor(_ERASE)))

    def start_state(self, users: int) -> MemoryState:
        """Return the state of users without events."""
        slots, width = self.keys.shape
        shapes = [(self.controller.hidden,), (width,), (slots, width), (slots,), (slots if self.unit else 0, width)]
        return MemoryState(*(self.keys.new_zeros(users, *shape) for shape in shapes))

    def update(self, state: MemoryState, e_BK: Float[Tensor, "B K"]) -> MemoryState:
        """Return the state of B users after one more event of each."""
        with kernels.disable_autocast():
            next_state: MemoryState = self._advance(state, *self._project(e_BK))
            return next_state

    def read(self, state: MemoryState, q_BQ: Float[Tensor, "B Q"]) -> Float[Tensor, "B V"]:
        """Return what each candidate reads in the state of its row."""
        width, x_BG = self.keys.shape[1], self.controller.project(F.pad(q_BQ, (0, self.pad)))
        _, (k_BX, beta_BJ, *_) = self._control(state, x_BG)
        w_BJM = self._address(k_BX[:, :width], beta_BJ[:, :1], state.slots)
        r_BD = _read_slots(w_BJM.squeeze(1), state.slots)
        if self.query is None or self.attention is None:
            return r_BD
        return torch.cat([r_BD, _read_slots(self.attention(self.query(q_BQ), state.channels), state.channels)], 1)

    def states(self, e_UK: Float[Tensor, "U K"], segments: Segments, start: MemoryState | None = None) -> MemoryState:
        """Return the state of every request after its history, of R requests."""
        if kernels.is_traced():
            return self._run_traced(self._project(e_UK), self.start_state(1) if start is None else start)
        rows = segments.requests
        if rows.shared:
            rows = Segments.of_offsets(np.array([0, rows.positions]), e_UK.device)
        if start is not None:
            folded: MemoryState = self.fold(start, e_UK, rows)
            return folded
        state, steps = self.start_state(rows.rows), Steps.of(rows)
        if not steps.counts:
            return state
        with kernels.disable_autocast():
            terms = (x.index_select(0, steps.positions) for x in self._project(e_UK))
            inputs = [torch.split(x, steps.counts) for x in terms]
            # Rows are ordered by length, so that those that have an event at a step come first.
            ended: list[MemoryState] = []
            for count, *now in zip(steps.counts, *inputs):
                state, ended = split_ended(state, count, ended)
                state = self._advance(state, *now)
            return join_ended(state, ended, rank_by_length(rows))

    def compute_penalty(self, state: MemoryState) -> Float[Tensor, " B"]:
        """Return the unequal use of the slots of each row."""
        return imbalance(state.utilization)

    def _project(self, e_UK: Tensor) -> tuple[Tensor, ...]:
        """Return the terms of events in the steps of the controller ``[U, G]`` and of the induction unit ``[U, S]``."""
        units = [self.controller] if self.unit is None else [self.controller, self.unit]
        return tuple(unit.project(e_UK.float()) for unit in units)

    # Functions inside a traced scan must not be wrapped by a shape checker.
    @no_type_check
    def _advance(self, state: MemoryState, x_BG: Tensor, x_BS: Tensor | None = None) -> MemoryState:
        """Return the state after one event."""
        h_BH, (k_BX, beta_BJ, erase_BD, add_BD) = self._control(state, x_BG)
        read_BM, write_BM = self._address(k_BX, beta_BJ, state.slots).unbind(1)
        write_BM = self.move(write_BM, state.utilization)
        return MemoryState(
            h_BH,
            _read_slots(read_BM, state.slots),
            write(state.slots, write_BM, torch.sigmoid(erase_BD), torch.tanh(add_BD)),
            state.utilization + write_BM,
            state.channels if x_BS is None else self._induce(state, read_BM, x_BS),
        )

    @no_type_check
    def _control(self, state: MemoryState, x_BG: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the next state of the controller and the outputs of its heads."""
        h_BH = self.controller.advance(state.hidden, x_BG + F.linear(state.reading, self.of_reading.weight))
        return h_BH, F.linear(h_BH, self.heads.weight, self.heads.bias).split(self.sizes, 1)

    @no_type_check
    def _address(self, k_BX: Tensor, beta_BJ: Tensor, slots_BMD: Tensor) -> Tensor:
        """Return the weight of every slot ``[B, J, M]`` for J keys. Those of a key sum to one."""
        width = self.keys.shape[1]
        k_BJD = _scale(torch.tanh(k_BX.reshape(-1, beta_BJ.shape[1], width)))
        near_BJM = k_BJD @ (_scale(slots_BMD) + _scale(self.keys)).transpose(1, 2)
        return ((F.softplus(beta_BJ) + 1).unsqueeze(2) * near_BJM).softmax(2)

    @no_type_check
    def move(self, write_BM: Tensor, utilization_BM: Tensor) -> Tensor:
        """Return the weights of a write ``[B, M]`` after the transfer between slots. Their sum stays the same."""
        if self.transfer is None:
            return write_BM
        used_BM = share(utilization_BM.detach())
        p_BX = F.linear(used_BM, self.transfer.weight, self.transfer.bias)
        p_BMM = p_BX.reshape(-1, *[write_BM.shape[1]] * 2).softmax(2)
        return (write_BM.unsqueeze(2) * p_BMM).sum(1)

    @no_type_check
    def _induce(self, state: MemoryState, read_BM: Tensor, x_BS: Tensor) -> Tensor:
        """Return the channels after one event. Only those of the slots that were read most change."""
        width = self.keys.shape[1]
        at_BID = read_BM.topk(self.induction, 1).indices.unsqueeze(2).expand(-1, -1, width)
        slots_BID, s_BID = state.slots.gather(1, at_BID), state.channels.gather(1, at_BID)
        x_BIS = x_BS.unsqueeze(1) + F.linear(slots_BID, self.of_slot.weight)
        new_XD = self.unit.advance(s_BID.reshape(-1, width), x_BIS.reshape(-1, 3 * width))
        return state.channels.scatter(1, at_BID, new_XD.reshape(s_BID.shape))

    @no_type_check
    def _run_traced(self, inputs: tuple[Tensor, ...], start: MemoryState) -> MemoryState:
        """Return the state of one history of any length as one scan of the updates."""

        def step(state, *terms):
            return (self.pack(self._advance(self.unpack(state[0]), *terms)),)

        last_1X, _ = run_steps(step, (self.pack(start),), tuple(x.unsqueeze(1) for x in inputs))
        return self.unpack(last_1X)


@no_type_check
def write(slots_BMD: Tensor, weights_BM: Tensor, erase_BD: Tensor, add_BD: Tensor) -> Tensor:
    """Return the slots ``[B, M, D]`` after one write: a weight of 1 erases by ``erase`` and adds all of ``add``."""
    w_BM1 = weights_BM.unsqueeze(2)
    return slots_BMD * (1 - w_BM1 * erase_BD.unsqueeze(1)) + w_BM1 * add_BD.unsqueeze(1)


@no_type_check
def share(utilization_BM: Tensor) -> Tensor:
    """Return the share of each slot in all writes ``[B, M]``. 0 of a user without events."""
    return utilization_BM / utilization_BM.sum(1, keepdim=True).clamp(min=1)


def imbalance(utilization_BM: Float[Tensor, "B M"]) -> Float[Tensor, " B"]:
    """Return the sum of squared differences between the shares of slots and their mean. 0 for equal use."""
    g_BM = share(utilization_BM)
    squares: Tensor = (g_BM - g_BM.mean(1, keepdim=True)).square()
    return squares.sum(1)


@no_type_check
def _read_slots(w_BM: Tensor, slots_BMD: Tensor) -> Tensor:
    return (w_BM.unsqueeze(2) * slots_BMD).sum(1)


@no_type_check
def _scale(x: Tensor) -> Tensor:
    """Return vectors of length 1, whose inner products are cosines. 0 for a vector of zeros."""
    return x * (x.square().sum(-1, keepdim=True) + _SMALLEST).rsqrt()
