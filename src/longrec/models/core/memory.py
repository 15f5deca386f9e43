r"""Base classes of rankers that compress a history into a state of constant size, which each event updates.

A server keeps the state of every user, so that a request costs the same for a long life as for a short one:

    s' = update(s, e)                      after every event of the user
    r = read(s, q)                         for every candidate
    states(events, start)                  the same as one update per event, for whole histories in training

A state is packed as one vector per user, in which form it is stored and enters an exported program.

Shapes: B users or rows, R requests, U stored positions (see nn/segments.py), K width of an event, Q width of the query,
V width of what is read, W width of a packed state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar, cast, no_type_check

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from longrec.features.batch import Batch, HistoryBatch
from longrec.models.core.stateful import StatefulRanker
from longrec.nn.embedding import Embedded
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.steps import Steps, rank_longest_first

StateT = TypeVar("StateT", bound="tuple[Tensor, ...]")


class UserMemory(nn.Module):
    """Memory of one history. Its state is a named tuple of tensors ``[B, ...]``.

    No method changes its arguments.

    Attributes:
        width: V.
    """

    width: int

    @abstractmethod
    def start_state(self, users: int) -> Any:
        """Return the state of users without events."""

    @abstractmethod
    def update(self, state: Any, e_BK: Float[Tensor, "B K"]) -> Any:
        """Return the state of B users after one more event of each."""

    @abstractmethod
    def read(self, state: Any, q_BQ: Float[Tensor, "B Q"]) -> Float[Tensor, "B V"]:
        """Return what each candidate reads in the state of its row."""

    @abstractmethod
    def states(self, e_UK: Float[Tensor, "U K"], segments: Segments, start: Any = None) -> Any:
        """Return the state of every request after its history.

        Args:
            start: state of every request before the history. None: users without earlier events.
        """

    @abstractmethod
    def compute_penalty(self, state: Any) -> Float[Tensor, " B"]:
        """Return the penalty on each state that the auxiliary loss weights."""

    # Functions inside a traced scan must not be wrapped by a shape checker.
    @no_type_check
    def pack(self, state: Any) -> Tensor:
        """Return states as vectors, float32 ``[B, W]``."""
        return torch.cat([x.reshape(x.shape[0], x.shape[1:].numel()).float() for x in state if x.shape[1:].numel()], 1)

    @no_type_check
    def unpack(self, packed_BW: Tensor) -> Any:
        """Return the states that ``pack`` took apart."""
        start = self.start_state(1)
        sizes = [x.numel() for x in start]
        split = iter(packed_BW.split([size for size in sizes if size], 1))
        return type(start)(
            *(
                (next(split).reshape(packed_BW.shape[0], *x.shape[1:]).to(x.dtype))
                if size
                else packed_BW[:, :0].reshape(packed_BW.shape[0], *x.shape[1:])
                for x, size in zip(start, sizes)
            )
        )

    def fold(self, start: Any, e_UK: Float[Tensor, "U K"], rows: Segments) -> Any:
        """Return the state of B rows after their events, one update per event."""
        steps = Steps.of(rows)
        order_B = rank_longest_first(rows)
        state = type(start)(*(x.index_select(0, order_B.argsort()) for x in start))
        ended: list[Any] = []
        for count, e_AK in zip(steps.counts, torch.split(e_UK.index_select(0, steps.positions), steps.counts)):
            state, ended = split_ended(state, count, ended)
            state = self.update(state, e_AK)
        return join_ended(state, ended, order_B)


class MemoryRanker(StatefulRanker):
    """A ranker that reads every history of the schema through a memory. A subclass fills ``memories``.

    Attributes:
        queries: query and keys of every history.
        memories: the memory of each history, ``memory_NAME``.
        penalty_weight: weight of the penalties of the states in the loss.
    """

    events_per_candidate = False
    queries: Queries
    memories: nn.ModuleDict
    penalty_weight: float = 0.0

    def get_memory(self, history: str) -> UserMemory:
        """Return the memory of one history."""
        return cast(UserMemory, self.memories[f"memory_{history}"])

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and what the candidate reads in the memory of each history."""
        inputs, states = list(embedded.features.values()), []
        for history in self.fields.histories:
            q_BQ, e_UK, segments = self.queries(batch, embedded, history)
            memory, start_RW = self.get_memory(history), batch.histories[history].start
            own = memory.states(e_UK, segments, None if start_RW is None else memory.unpack(start_RW))
            state = type(own)(*(batch.layout.repeat(x_R) for x_R in own))
            inputs.append(memory.read(state, q_BQ))
            states.append(state)
        embedded.states["memories"] = states
        return inputs

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the weighted penalty of the states, a mean over rows and histories."""
        if not self.penalty_weight:
            return 0.0
        every = zip(self.fields.histories, embedded.states["memories"], strict=True)
        penalties = [self.get_memory(history).compute_penalty(state).mean() for history, state in every]
        return self.penalty_weight * torch.stack(penalties).mean()

    def start_state(self, history: str) -> Float[Tensor, " W"]:
        """Return the packed state of a user without events."""
        memory = self.get_memory(history)
        packed: Tensor = memory.pack(memory.start_state(1))
        return packed[0]

    def update_states(
        self,
        history: str,
        start_BW: Float[Tensor, "B W"],
        events: HistoryBatch,
        positions_BP: Int64[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """Return the packed states of B users after one event of each, the columns of which are ``[B]``."""
        assert positions_BP is None
        memory, vectors = self.get_memory(history), self.embeddings.look_up_events(history, events)
        e_BK = self.queries.join_keys(vectors, history)
        packed: Tensor = memory.pack(memory.update(memory.unpack(start_BW), e_BK))
        return packed


def split_ended(state: StateT, count: int, ended: Sequence[StateT]) -> tuple[StateT, list[StateT]]:
    """Return the states of the first ``count`` rows, and those of the others before the states that ended earlier."""
    if count == len(state[0]):
        return state, list(ended)
    head, tail = zip(*(x.tensor_split([count]) for x in state), strict=True)
    own: Any = type(state)
    return own(*head), [own(*tail), *ended]


def join_ended(state: StateT, ended: Sequence[StateT], order_B: Tensor) -> StateT:
    """Return the states of all rows in their order.

    Args:
        order_B: rank of each row among all rows by length, see ``rank_longest_first``.
    """
    own: Any = type(state)
    joined: StateT = own(*(torch.cat(x).index_select(0, order_B) for x in zip(state, *ended, strict=True)))
    return joined
