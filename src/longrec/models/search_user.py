r"""Taobao-search-style user modeling: Core technology disclosure of search model (in its style; it is no paper).

Taobao search team, DataFunTalk 2020.
https://www.alibabacloud.com/en/developer/a/ai/core-technology-disclosure-of-search-model

An article by the engineers of Taobao search, which we know from digests: there are no equations, no data and no code,
so this is no reproduction. A long history is split into segments, quarters of a year, without attention between them.
In each, events attend to each other by cosine scores, which do not depend on norms. Then the query of the search, not
the candidate, attends to them, once for all candidates:

    x_j  = e_j W + p_segment(j)
    x'_i = LN(x_i + sum_j softmax_j(c cos(q_i, k_j)) v_j)           over the events j of the segment of i
    z_i  = LN(x'_i + FFN(x'_i))
    u_p  = sum_i softmax_i(query W_1 . z_i / sqrt(D)) z_i           in each segment p
    u    = sum_p softmax_p(query W_2 . u_p / sqrt(D)) u_p
    logit = MLP([fields of the impression, u of each history])

Our choices where the digests are silent: c is learned, one per head, initially 10. One encoder serves all segments,
with an embedding p per segment. The query attends by a scaled product, within and over segments. ``query`` names the
features of the search query. Without it, in recommendation, the query is the candidate's columns that the events share,
as in target attention. The article's other sequences (recent clicks in the categories predicted for the query, two
years of purchases, events of the device) are histories of the schema.

Departures from the paper
    - segments come from the column ``time_gap``, whose buckets double: the newest segment is as long as ``quarter``,
      to the nearest power of two of seconds (90 days: 97), so is the one before, and each older one is twice as long
      as the next one; the last holds all older events. In a log of steps a second is a step. With
      ``segment_by: position``, and in a history without that column, segments are runs of ``segment_events`` counted
      from the newest event;
    - each history has an encoder of its own.

Shapes: B rows (requests, if the query is theirs), N positions, U stored positions (see nn/segments.py), Q width of the
query, K width of an event, D width, P events in segments, E the same as rows read them, and G segments as rows read
them (see nn/sessions.py), T positions of a shared history, H units of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.duration import Duration, parse_duration
from longrec.features.fields import TIME_GAP, Fields
from longrec.models.core.registry import find_unknown_names
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn.embedding import RESERVED, Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.sessions import Sessions
from longrec.nn.transformer import EncoderLayer


class SearchUserConfig(TopConfig):
    """Settings of search-style user modeling."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "parts": "segments",
        "parts_by": "segment_by",
        "part_events": "segment_events",
    }
    renamed_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"segment_by": {"place": "position"}}

    query: tuple[str, ...] = Field(
        (), description="Features that are the search query; by default the candidate is the query."
    )
    width: Width = Field(64, description="Width of events and query after projection.")
    heads: Width = Field(4, description="Heads of the self attention.")
    blocks: Width = Field(1, description="Layers of self attention.")
    hidden: Width = Field(64, description="Hidden units of the network after an attention.")
    segments: Width = Field(4, description="Number of segments of a history.")
    segment_by: Literal["time", "position"] = Field(
        "time", description="Split of a history into segments: by time, or by position."
    )
    quarter: Duration = Field("90d", description="Length of the newest segment.")
    segment_events: Width = Field(50, description="Events per segment with `segment_by: position`.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate.")


class SearchUser(TopRanker):
    """Search-style user modeling over every history of the schema."""

    Config = SearchUserConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"query": ["user"], "width": 12, "heads": 3, "mlp": [32]},
        {
            "segment_by": "position",
            "segment_events": 2,
            "segments": 2,
            "blocks": 2,
            "width": 10,
            "heads": 2,
            "batch_norm": False,
        },
        {"segments": 1, "width": 8, "heads": 1, "mlp": [32], "dropout": 0.1},
    )

    def __init__(self, config: SearchUserConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if not fields.histories:
            raise ConfigError("schema", ["histories: search_user reads a history, and the schema has none"])
        features = {field.name: field for field in fields.features}
        if faults := find_unknown_names("model.query", config.query, features):
            raise ConfigError("config", faults)
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        # A query without candidate features is computed once for all candidates of a request.
        self.once = bool(config.query) and all(features[name].side != "item" for name in config.query)
        self.queries = None if config.query else Queries(fields, width, "search_user", project=False)
        by_time = {
            name: config.segment_by == "time" and any(column.name == TIME_GAP for column in columns)
            for name, columns in fields.histories.items()
        }
        self.order_matters = not all(by_time.values()) and config.segments > 1
        self.paths = nn.ModuleDict()
        for name, columns in fields.histories.items():
            query_width = sum(width[column] for column in config.query)
            if self.queries is not None:
                query_width = self.queries.query_widths[name]
            key = sum(width[column.name] for column in columns)
            self.paths[f"path_{name}"] = _Path(query_width, key, by_time[name], config)
        top = sum(width[field.name] for field in fields.features) + len(fields.histories) * config.width
        self.set_top(top, config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and u of each history."""
        inputs = list(embedded.features.values())
        for path, arguments in self._inputs(batch, embedded):
            u_BD = path(*arguments)[0]
            inputs.append(embedded.layout.repeat(u_BD) if self.once else u_BD)
        return inputs

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention of the query: ragged ``[N]``, shared ``[B, T]``."""
        weights = {}
        for name, (path, arguments) in zip(self.fields.histories, self._inputs(batch, self.embed(batch))):
            _, periods, w_G, w_E = path(*arguments)
            w = periods.weigh_events(w_G, w_E)
            weights[name] = Segments.of(batch, name).repeat_weights(w.flatten()) if self.once else w
        return weights

    def _inputs(
        self, batch: Batch, embedded: Embedded
    ) -> list[tuple[_Path, tuple[Tensor, Tensor, HistoryBatch, Segments]]]:
        """Return for each history its path, and query, vectors of the events, events and segments."""
        inputs = []
        for name, columns in embedded.histories.items():
            e_UK, segments = torch.cat(list(columns.values()), 1), Segments.of(batch, name)
            if self.queries is not None:
                q_BQ = self.queries.compute_query(embedded, name)
            else:
                vectors = embedded.request if self.once else embedded.features
                q_BQ = torch.cat([vectors[column] for column in self.config.query], 1)
            path = cast(_Path, self.paths[f"path_{name}"])
            inputs.append((path, (q_BQ, e_UK, batch.histories[name], segments.requests if self.once else segments)))
        return inputs


class _Path(nn.Module):
    """Encoder and pooling of one history."""

    renamed_parameters: ClassVar[dict[str, str]] = {"of_part": "of_segment"}

    def __init__(self, query: int, key: int, by_time: bool, config: SearchUserConfig) -> None:
        super().__init__()
        self.by_time, self.each, self.count = by_time, config.segment_events, config.segments
        self.first = max(1, round(log2(max(parse_duration(config.quarter) / 1_000, 1))))
        self.events = Linear(key, config.width)
        nn.init.zeros_(self.events.bias)  # else it dominates small embeddings
        self.of_segment = nn.Parameter(torch.randn(config.segments, config.width) * config.init_std)
        self.blocks = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.hidden, score="cosine", dropout=config.dropout)
            for _ in range(config.blocks)
        )
        self.query = Linear(query, config.width, bias=False)
        self.over = Linear(query, config.width, bias=False) if config.segments > 1 else None
        self.scale = config.width**-0.5

    def number(self, events: HistoryBatch, segments: Segments) -> Tensor:
        """Return the segment of each event, int64 ``[U]``."""
        if self.by_time:
            back_U = cast(Tensor, events.columns[TIME_GAP]).long() - RESERVED - (self.first - 1)
        else:
            back_U = torch.div(segments.count_newer(), self.each, rounding_mode="floor")
        return back_U.clamp(0, self.count - 1)

    def forward(
        self, q_BQ: Tensor, e_UK: Tensor, events: HistoryBatch, segments: Segments
    ) -> tuple[Tensor, Sessions, Tensor, Tensor]:
        """Return u ``[B, D]``, the segments as sessions, their weights, and those of the events in them."""
        periods = Sessions(self.number(events.on_host, segments.on_host), self.count, segments)
        x_PD = self.events(periods.gather(e_UK)) + self.of_segment.index_select(0, periods.gather_numbers())
        x_PD = periods.attention.gather_positions(x_PD)
        for block in self.blocks:
            x_PD = block(x_PD, periods.attention)
        x_PD = periods.attention.restore_positions(x_PD)
        u_GD, w_E = periods.attend(self.query(q_BQ) * self.scale, x_PD)
        s_G = u_GD[:, 0] * 0
        if self.over is not None:
            q_GD = periods.rows.expand(self.over(q_BQ) * self.scale)
            s_G = (q_GD * u_GD).sum(1)
        w_G = periods.softmax(s_G)
        return periods.rows.sum(w_G.unsqueeze(1) * u_GD), periods, w_G, w_E
