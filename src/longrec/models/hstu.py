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

A server can keep the keys and values of the last W - 1 events of every layer (see nn/band_cache.py), so that a request
costs the same for a long life as for a short one. What it scores is one pass over the whole life, whose mask is a band.
A state has (W - 1) (2 L X + 3) numbers, of L layers and X the width of all heads. With a bias of time an event enters
it when the next one is there: only the times between events are read, and they never change.

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

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.stateful import StatefulRanker
from longrec.models.core.top import TopConfig, Width
from longrec.models.core.transducer import (
    StackConfig,
    build_stack,
    drop_times,
    is_timed,
    list_time_columns,
    read_event_times,
    read_later_times,
)
from longrec.nn.band_cache import BandCache, LaterEvents
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


class HSTU(StatefulRanker):
    """HSTU over every history of the schema, with the candidate as the newest event."""

    Config = HSTUConfig
    updates_chunks = True
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

    def start_state(self, history: str) -> Float[Tensor, " W"]:
        """Return the packed state of a user without events."""
        return self._path(history).cache.start(1).flatten()

    def update_states(
        self,
        history: str,
        start_BW: Float[Tensor, "B W"],
        events: HistoryBatch,
        positions_BP: Int64[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """Return the packed states of B users after events of each, see ``StatefulRanker``."""
        assert positions_BP is not None
        vectors, timed = self.embeddings.look_up_events(history, events), self.timed[history]
        e_NK = self.queries.join_keys(vectors, history)
        counts_B1 = ((positions_BP >= 0).sum(1, keepdim=True) - int(timed)).clamp(min=0)
        at_BP = positions_BP.clamp(min=0)
        times = end_B1 = None
        if timed:
            times, end_B1 = read_later_times(events, at_BP, counts_B1)
            at_BP = at_BP[:, :-1]
        return self._path(history).update(start_BW, e_NK, at_BP, counts_B1, times, end_B1)

    def holds_newest(self, history: str) -> bool:
        """Return True with a bias of time, which depends on the time that follows an event."""
        return self.timed[history]

    def list_folded_times(self, history: str) -> Sequence[str]:
        """Return the columns of time if they are a bias of time alone, and no features of an event."""
        return list_time_columns() if self.timed[history] else ()

    def _path(self, history: str) -> _Path:
        return cast(_Path, self.paths[f"path_{history}"])

    def _read(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Tensor]:
        """Return the result of the path of one history."""
        q_BQ, e_UK, segments = self.queries(batch, embedded, history)
        events = batch.histories[history]
        times = read_event_times(events, segments.requests) if self.timed[history] else None
        if events.start is not None:
            return self._path(history).go_on(q_BQ, e_UK, events.start, segments, times)
        result: tuple[Tensor, Tensor] = self._path(history)(q_BQ, e_UK, segments, times)
        return result


class _Path(nn.Module):
    """The layers of one history."""

    def __init__(self, query: int, key: int, timed: bool, config: HSTUConfig) -> None:
        super().__init__()
        self.absent = nn.Parameter(torch.randn(key - query) * config.init_std) if query < key else None
        self.inputs, self.dropout = Linear(key, config.width), Dropout(config.layer_dropout)
        self.stack: HSTUStack = build_stack(config, config.width, timed)
        self.norm = nn.LayerNorm(config.width)

    @property
    def cache(self) -> BandCache:
        """The functions of caches of the layers."""
        return BandCache(self.stack)

    def forward(
        self, q_BQ: Tensor, e_UK: Tensor, segments: Segments, times: EventTimes | None
    ) -> tuple[Tensor, Tensor]:
        """Return the candidates after the layers ``[B, D]``, and the weights of positions in the last one ``[N]``."""
        y_BD, x_UD = self._embed_candidates(q_BQ), self._embed_events(e_UK)
        y_BD, w_N = self.stack.read(y_BD, x_UD, segments, times)
        return self.norm(y_BD), w_N

    def go_on(
        self, q_BQ: Tensor, e_UK: Tensor, start_1W: Tensor, segments: Segments, times: EventTimes | None
    ) -> tuple[Tensor, Tensor]:
        """Return the same for a shared history that follows a state. Weights are those of the entries of its cache.

        With a bias of time the first event is the one that ends the time of the state: a user with a state has one.
        """
        assert segments.shared, "a state is read by the candidates of one request"
        cache, x_1TD, end_11 = self.cache, self._embed_events(e_UK).unsqueeze(0), None
        if times is not None:
            number_U = torch.arange(segments.positions, device=times.at.device)
            first, newest = (number_U == 0).long(), (segments.count_newer() == 0).long()
            origin = (times.at * first).sum()
            times = EventTimes((times.at - origin).unsqueeze(0), (times.following - origin).unsqueeze(0))
            end_11 = (times.following * newest).sum(1, keepdim=True)
        start_1CE = start_1W.view(1, cache.entries, cache.width)
        own_CE = cache.update(start_1CE, LaterEvents(x_1TD, segments.positions, times, end_11)).squeeze(0)
        y_BD, w_M = cache.read(own_CE, self._embed_candidates(q_BQ))
        return self.norm(y_BD), w_M

    def update(
        self,
        start_BW: Tensor,
        e_NK: Tensor,
        at_BT: Tensor,
        counts_B1: Tensor,
        times: EventTimes | None,
        end_B1: Tensor | None,
    ) -> Tensor:
        """Return the states ``[B, W]`` after the events at the positions of each user."""
        users, cache, x_ND = start_BW.shape[0], self.cache, self._embed_events(e_NK)
        x_BTD = x_ND.index_select(0, at_BT.flatten()).view(users, at_BT.shape[1], x_ND.shape[1])
        start_BCE = start_BW.view(users, cache.entries, cache.width)
        return cache.update(start_BCE, LaterEvents(x_BTD, counts_B1, times, end_B1)).flatten(1)

    def _embed_candidates(self, q_BQ: Tensor) -> Tensor:
        if self.absent is not None:
            q_BQ = torch.cat([q_BQ, self.absent.expand(q_BQ.shape[0], -1)], 1)
        return self._embed_events(q_BQ)

    def _embed_events(self, e_UK: Tensor) -> Tensor:
        x_UD: Tensor = self.dropout(self.inputs(e_UK))
        return x_UD
