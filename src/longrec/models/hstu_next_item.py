r"""HSTU: Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations.

Zhai, Liao, Liu, Wang, Li, Cao, Gao, Gong, Gu, He, Lu, Shi, ICML 2024. https://arxiv.org/abs/2402.17152

The sequential form (section 4.1.1): layers of pointwise attention read the events of a user, and the state after each
event is compared with the vectors of items, as in ``sasrec``:

    x_i = sqrt(D) e_i
    [u_i, q_i, k_i, v_i] = SiLU(W LN(x_i))
    o_i = (1 / n) sum_{j <= i} SiLU(q_i . k_j + b_{i-j} + c_{bucket(t_{i+1} - t_j)}) v_j
    x_i <- x_i + W^O (LN(o_i) * u_i)                                                 (each layer)
    score(item) = x_n / |x_n| . v_item / |v_item|
    bucket(t) = min(floor(log(max(t, 1)) / 0.301), 128)                              (seconds)

The state after an event reads the time of the next one, which is what it predicts: at serving the time of the request,
in training that of the target. The newest event is not final until that timestamp is known (see nn/hstu.py). n is
``max_events`` and never a length. ``window`` gives each event its last W events alone, a band over the whole history.

Departures from the paper
    - the targets of a batch share their negatives, where the paper draws 128 for each, and the loss corrects for how
      often they are drawn (``log_q``);
    - times are sums of the buckets of ``time_since_previous``, plus that of ``time_gap`` of the newest event (see
      nn/event_times.py); without both columns there is no bias of time;
    - no absolute positions, which the authors' code adds to the input;
    - n is a setting. In the paper's code it is the padded length. An event sees at most the last ``max_events``;
    - an event is the sum of its id columns, and an item that of its id features; other columns are not read. A user
      without events has the zero vector, and all items tie;
    - a history that leaves events out (``where``) is trained with a request per target if times are read: there the
      next event may be later than the target.

Shapes: N stored positions, T targets, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.item_history import ItemHistoryConfig, ItemHistoryRetriever
from longrec.models.core.top import Width
from longrec.models.core.transducer import StackConfig, build_stack, drop_times, is_timed, read_event_times
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embedded
from longrec.nn.event_times import EventTimes
from longrec.nn.hstu import HSTUStack
from longrec.nn.segments import Segments


class HSTUNextItemConfig(StackConfig, ItemHistoryConfig):
    """Settings of the sequential form of HSTU."""

    embedding_dim: Width = Field(50, description="Width of all embeddings and states.")
    cosine: bool = Field(True, description="Vectors of length 1: scores are cosines.")
    temperature: float = Field(0.05, gt=0, description="divisor of the inner products")
    negatives: int = Field(128, ge=1, description="negatives: of softmax and bpr_max per batch, of gbce per target")


class HSTUNextItem(ItemHistoryRetriever):
    """HSTU over the first history of the schema."""

    Config = HSTUNextItemConfig
    order_matters = True
    reads_sequences = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"embedding_dim": 12, "heads": 3, "max_events": 5, "window": 3, "loss": "cross_entropy"},
        {"embedding_dim": 8, "layers": 1, "heads": 2, "head_width": 5, "time_bias": False, "loss": "gbce"},
    )

    def __init__(self, config: HSTUNextItemConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.timed = is_timed(config, fields, self.history)
        self.sampling = replace(self.sampling, time=self.timed)
        self.dropout = Dropout(config.layer_dropout)
        self.stack: HSTUStack = build_stack(config, self.width, self.timed)

    def encode(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "N D"]:
        """Return the state after each stored event, as of the time of the next event, the target or the request."""
        segments = self.segments(batch)
        x_ND = self.dropout(self.add_events(embedded) * self.width**0.5)
        times = self.read_times(batch, segments) if self.timed else None
        out: Tensor = self.stack(x_ND, segments, times)
        return out

    def read_times(self, batch: Batch, segments: Segments) -> EventTimes:
        """Return the times of the events, each followed by its target if there is one."""
        times, targets = read_event_times(batch.histories[self.history], segments), batch.targets
        if targets is None or not targets.per_position or targets.gap is None:
            return times
        return times.set_following(targets.state, targets.gap)

    def _choose_fields(self, fields: Fields) -> tuple[str, Fields]:
        """Return the name of the first history, and the fields that the model reads, without columns of its times."""
        name, read = super()._choose_fields(fields)
        return name, drop_times(read, name) if is_timed(self.config, fields, name) else read
