r"""GRU4Rec: Session-based Recommendations with Recurrent Neural Networks.

Hidasi, Karatzoglou, Baltrunas, Tikk, ICLR 2016. https://arxiv.org/abs/1511.06939
Hidasi, Karatzoglou, CIKM 2018 (top-k gains). https://arxiv.org/abs/1706.03847

A recurrence reads the events of a user one after the other. Its state after each event is compared with the vectors of
items, and the next item shall be the nearest:

    h_t = GRU(e_t, h_{t-1})          h_0 = 0                                                    (eq. 1 to 4)
    score(i) = <h_n, v_i>                                                   (state of the last event, item i)

e_t is the sum of the embeddings of the ids of event t, and v_i that of the ids of item i. Both read the same tables:
the authors advise these "constrained embeddings". Several layers read the states of the one before. The authors' study
of other implementations (RecSys 2023) lists what is often wrong in them: a state that is carried over to another
session, a softmax over the wrong axis, no shared table, no negatives beside those of the batch.

Departures from the paper
    - a batch holds whole histories, and the state begins at zero in each. The paper runs sessions in parallel slots and
      resets the state of a slot where a session ends, which gives the same states; but its gradient ends at each event,
      and here it runs through the history;
    - a history is all events of a user that the schema keeps, and not one session;
    - the loss is sampled softmax with drawn negatives, corrected for how often they are drawn, as the authors advise
      for cross entropy (``logq``). ``loss: bpr_max`` is the loss of the second paper, without its ELU of the scores,
      and ``draw: mixed`` adds the targets of the batch to the negatives, as there. TOP1 is not here;
    - no bias of an item, so that a score is an inner product of vectors;
    - initial weights, LongRec's optimizer instead of Adagrad with momentum;
    - an event is the sum of all its id columns, and an item that of all its id features; other columns, features of
      users and further histories are not read. A user without events has the zero vector, and all items tie.

Shapes: R requests, N stored positions of their histories, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.item_history import ItemHistoryConfig, ItemHistoryRetriever
from longrec.models.core.top import Width
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embedded
from longrec.nn.recurrent import GRU


class GRU4RecConfig(ItemHistoryConfig):
    """Settings of GRU4Rec."""

    layers: Width = Field(1, description="Recurrences, each over the states of the one before.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the embeddings of events.")
    state_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the states of every recurrence.")


class GRU4Rec(ItemHistoryRetriever):
    """GRU4Rec over the first history of the schema."""

    Config = GRU4RecConfig
    order_matters = True
    reads_sequences = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"layers": 2, "embedding_dim": 12, "loss": "gbce", "dropout": 0.2, "state_dropout": 0.1},
        {"loss": "bpr_max", "draw": "mixed"},
    )

    def __init__(self, config: GRU4RecConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.dropout, self.state_dropout = Dropout(config.dropout), Dropout(config.state_dropout)
        self.layers = nn.ModuleList(GRU(self.width, self.width) for _ in range(config.layers))

    def encode(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "N D"]:
        """Return the state after each stored event of the history."""
        segments = self.segments(batch)
        h_ND = self.dropout(self.add_events(embedded))
        for layer in self.layers:
            h_ND = self.state_dropout(cast(GRU, layer).states(h_ND, segments))
        return h_ND
