r"""HSTU: Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations.

Zhai, Liao, Liu, Wang, Li, Cao, Gao, Gong, Gu, He, Lu, Shi, ICML 2024. https://arxiv.org/abs/2402.17152

The ranking form: the candidate follows the user's events as the newest one, and attends to them in every layer. Weights
are pointwise, so that the number of matching events counts, which a softmax would normalize away:

    [u_i, q_i, k_i, v_i] = SiLU(W LN(x_i))                                                     (pointwise projection)
    o_i = (1 / n) sum_{j <= i} SiLU(q_i . k_j + b_{i-j} + c_{bucket(t_{i+1} - t_j)}) v_j       (spatial aggregation)
    x_i <- x_i + W^O (LN(o_i) * u_i)                                                           (transformation)
    logit = MLP([fields of the impression, LN(x of the candidate)])
    bucket(t) = min(floor(log(max(t, 1)) / 0.301), 128)                                        (seconds)

An event sees no candidate, and candidates do not see each other, so a request reads its history once for all its
candidates (M-FALCON). n is ``max_events`` and never a length. ``window`` gives each event its last W events alone. The
newest event is not final until the next timestamp is known: its row has the time of the request (see nn/hstu.py).

Departures from the paper
    - one candidate with a binary label per row, and an MLP over it and the fields of the impression, where the paper
      learns from all events of a user in one pass and adds actions to the sequence as events of their own; here an
      action is a column of its event, and a learned vector for the candidate;
    - times are sums of the buckets of ``time_since_previous``, plus that of ``time_gap`` of the newest event (see
      nn/event_times.py); without both columns there is no bias of time;
    - no absolute positions, and distances above the window are not seen; the authors' code adds learned positions;
    - normalizations inside the layers have no weights, as in the authors' code for public data; an event sees itself;
    - n is a setting. In the paper's code it is the padded length;
    - no stochastic length; each history has layers of its own.

Shapes: B rows, U stored positions (see nn/segments.py), N positions, K width of an event, D width of the layers.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.models.core.transducer import StackConfig, build_stack, drop_times, is_timed, read_event_times
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.event_times import EventTimes
from longrec.nn.hstu import HSTUStack
from longrec.nn.linear import Linear
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments


class HSTUConfig(StackConfig, TopConfig):
    """Settings of the ranking form of HSTU."""

    width: Width = Field(64, description="Width of the layers.")


class HSTU(TopRanker):
    """HSTU over every history of the schema, with the candidate as the newest event."""

    Config = HSTUConfig
    reads_history = True
    order_matters = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"width": 12, "heads": 3, "max_events": 6, "window": 3, "mlp": [32]},
        {"width": 8, "layers": 1, "heads": 2, "head_width": 5, "time_bias": False, "mlp": [32], "batch_norm": False},
    )

    def __init__(self, config: HSTUConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.timed = {history: is_timed(config, fields, history) for history in fields.histories}
        read = fields
        for history, timed in self.timed.items():
            read = drop_times(read, history) if timed else read
        self.embeddings = Embeddings(read, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(read, width, "hstu")
        self.paths = nn.ModuleDict()
        for history, timed in self.timed.items():
            path = _Path(self.queries.query_widths[history], self.queries.key_widths[history], timed, config)
            self.paths[f"path_{history}"] = path
        self.set_top(sum(width[field.name] for field in fields.features) + config.width * len(self.paths), config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and the candidate after the layers of each history."""
        read = [self._read(batch, embedded, history)[0] for history in self.fields.histories]
        return [*embedded.features.values(), *read]

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weight of every position in the last layer, mean over heads: ragged ``[N]``, shared ``[B, T]``.

        Weights are pointwise: they may be negative, and have no fixed sum.
        """
        embedded = self.embed(batch)
        return {
            history: Segments.of(batch, history).by_candidate(self._read(batch, embedded, history)[1])
            for history in self.fields.histories
        }

    def _read(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Tensor]:
        """Return the result of the path of one history."""
        q_BQ, e_UK, segments = self.queries(batch, embedded, history)
        times = read_event_times(batch.histories[history], segments.requests) if self.timed[history] else None
        path = cast(_Path, self.paths[f"path_{history}"])
        return path(q_BQ, e_UK, segments, times)


class _Path(nn.Module):
    """The layers of one history."""

    def __init__(self, query: int, key: int, timed: bool, config: HSTUConfig) -> None:
        super().__init__()
        self.absent = nn.Parameter(torch.randn(key - query) * config.init_std) if query < key else None
        self.inputs, self.dropout = Linear(key, config.width), Dropout(config.layer_dropout)
        self.stack: HSTUStack = build_stack(config, config.width, timed)
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, q_BQ: Tensor, e_UK: Tensor, segments: Segments, times: EventTimes | None
    ) -> tuple[Tensor, Tensor]:
        """Return the candidates after the layers ``[B, D]``, and the weights of positions in the last one ``[N]``."""
        if self.absent is not None:
            q_BQ = torch.cat([q_BQ, self.absent.expand(q_BQ.shape[0], -1)], 1)
        y_BD, x_UD = (self.dropout(self.inputs(x)) for x in (q_BQ, e_UK))
        y_BD, w_N = self.stack.read(y_BD, x_UD, segments, times)
        return self.norm(y_BD), w_N
