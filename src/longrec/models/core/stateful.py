"""Base class of rankers with a state of constant size per user, which goes on from event to event.

A server stores the state as one vector per user and history. A program of the bundle updates the states of many users
at once, and the score program reads the state of its user, the events after it, and the candidates.

Shapes: B users, W width of a packed state, N events, P positions of a user.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Int64
from torch import Tensor

from longrec.features.batch import HistoryBatch
from longrec.models.core.top import TopRanker


class StatefulRanker(TopRanker):
    """A ranker that goes on from ``HistoryBatch.start``, the packed states before the events of a batch.

    Attributes:
        updates_chunks: an update reads any number of events of each user. False: one.
    """

    reads_history = True
    order_matters = True
    reads_groups = True
    updates_chunks: ClassVar[bool] = False

    @abstractmethod
    def start_state(self, history: str) -> Float[Tensor, " W"]:
        """Return the packed state of a user without events."""

    @abstractmethod
    def update_states(
        self,
        history: str,
        start_BW: Float[Tensor, "B W"],
        events: HistoryBatch,
        positions_BP: Int64[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """Return the packed states of B users after events of each.

        Args:
            events: columns ``[N]`` of the events of all users. The offsets are not read.
            positions_BP: positions of the events of each user, -1 after the last. Of a history whose newest event is
                not final, the last one of each user does not enter its state, but ends the time of the one before.
                None: event b is that of user b, as ``updates_chunks`` says.
        """

    def holds_newest(self, history: str) -> bool:
        """Return True if an event is final when the next one is there, so that the newest stays outside the state."""
        return False

    def list_folded_times(self, history: str) -> Sequence[str]:
        """Return computed columns that the model reads as times between events, so that they may enter a state."""
        return ()
