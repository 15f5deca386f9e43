r"""LONGER: Scaling Up Long Sequence Modeling in Industrial Recommenders.

Chai, Ren, Xiao, Yang, Han, Zhang, Chen, Lu, Zhao, Yu, Xie, Ren, Sun, Tan, Xu, Zheng, Wu, RecSys 2025.
https://arxiv.org/abs/2505.04421

A transformer over a history of thousands of events. Adjacent events are merged into one token, and after the first
layer only a short sequence goes on: the newest tokens and a few global ones, which see everything:

    g_j   = W^g [inner(e_1, ..., e_k)]_j + p_j              k adjacent events as one token, p by the rank of its age
    X     = [g_1, ..., g_n, user, cls],    y = target                                                (global tokens)
    X', y' = layer_1([g_(n-m+1), ..., g_n, user, cls; X], y)                 (cross attention of a short query set)
    X", y" = layer_l([X'; X'], y')                                                     (causal self attention, l > 1)
    logit = MLP([fields of the impression, LN(y) of each history])

A layer is pre-norm (nn/merged_layers.py). With T events the first layer costs O(m T / k), each further one O(m^2).
Tokens see older tokens and themselves, the user's token and ``cls`` see all of them, and the target sees everything. No
token sees the target, so that the user's side is computed once for all candidates of a request. Each candidate
adds one query, key and value per layer.

Departures from the paper
    - only the target token is read after the last layer, so that layer does not update the others;
    - global tokens see events and are seen by the target and by later global tokens, but by no event, so that every
      token of an event depends on the events alone. ``cls`` is one learned vector;
    - groups are counted from the newest event backwards, and the oldest one is padded with zeros at its old end, so
      that a token does not depend on the other rows of a batch. Padded events are not seen by ``inner``;
    - positions are ranks of age counted from the newest token, since absolute ones shift with every event. Elapsed time
      is the column ``time_gap`` of the history, in buckets;
    - the short query set of events is the m newest tokens;
    - recomputation of activations in training is not modeled;
    - each history has weights of its own, and a row without events reads its global tokens.

Shapes: B candidates, R requests, U stored positions (nn/segments.py), G merged tokens, K events of one, N tokens with
the global ones, M tokens after the first layer, E width of an event, W width of a token, H units of the last hidden
layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.rules import find_width_faults
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.merged_entries import MergePlan, plan_merge
from longrec.nn.merged_layers import InnerLayer, MergedLayer
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments


class LONGERConfig(TopConfig):
    """Settings of LONGER."""

    rules = (find_width_faults,)

    max_events: Width = Field(2000, description="Number of newest events of a history that are read.")
    merge: Width = Field(4, description="Number of adjacent events that are merged into one token, k.")
    inner: bool = Field(True, description="Apply a small transformer to the events of a token before they are merged.")
    recent: Width | None = Field(
        100, description="Number of newest tokens that later layers read, m. None (null): all of them."
    )
    width: Width = Field(64, description="Width of a token.")
    heads: Width = Field(4, description="Heads of the attention, which divide the width.")
    layers: Width = Field(2, description="Layers, the cross attention included.")


class LONGER(TopRanker):
    """LONGER over every history of the schema."""

    Config = LONGERConfig
    reads_history = True
    events_per_candidate = False
    reads_groups = True
    order_matters = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"max_events": 5, "merge": 2, "recent": 1, "width": 8, "heads": 2, "layers": 3, "mlp": [16]},
        {"max_events": 9, "merge": 1, "inner": False, "recent": None, "width": 8, "heads": 1, "layers": 1, "mlp": [16]},
    )

    def __init__(self, config: LONGERConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "longer")
        user = sum(width[field.name] for field in fields.features if field.side != "item")
        self.paths = nn.ModuleDict()
        for history in fields.histories:
            path = _Path(self.queries.query_widths[history], user, self.queries.key_widths[history], config)
            self.paths[f"path_{history}"] = path
        top = sum(width[field.name] for field in fields.features)
        self.set_top(top + config.width * len(self.paths), config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and the target token of each history after the layers."""
        user = list(embedded.request.values())
        user_RI = torch.cat(user, 1) if user else None
        inputs = list(embedded.features.values())
        for history in self.fields.histories:
            q_BQ, e_UE, segments = self.queries(batch, embedded, history)
            inputs.append(self.paths[f"path_{history}"](q_BQ, user_RI, e_UE, segments))
        return inputs

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the target's attention in the first layer, mean over heads: ``[N]``, or shared ``[B, T]``.

        The events of one merged token share its weight equally. The weights of a row, of the global tokens and of the
        target itself sum to one.
        """
        batch = batch.ungroup()
        embedded, weights = self.embed(batch), {}
        user = list(embedded.request.values())
        for history in self.fields.histories:
            path = cast(_Path, self.paths[f"path_{history}"])
            q_BQ, e_UE, segments = self.queries(batch, embedded, history)
            w_UC = path.weights(q_BQ, torch.cat(user, 1) if user else None, e_UE, segments)
            weights[history] = w_UC.t() if segments.shared else w_UC.squeeze(1)
        return weights


class _Path(nn.Module):
    """The transformer of one history.

    Args:
        query, user, event: widths of the candidate, of the fields of the request, and of an event.
    """

    def __init__(self, query: int, user: int, event: int, config: LONGERConfig) -> None:
        super().__init__()
        self.merge, self.max_events, self.recent = config.merge, config.max_events, config.recent
        width, groups = config.width, -(-config.max_events // config.merge)
        self.target, self.entry = Linear(query, width), Linear(config.merge * event, width)
        self.user = Linear(user, width) if user else None
        self.cls = nn.Parameter(torch.randn(1, width) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(groups, width) * 0.02)
        # One event has nothing to attend to.
        self.inner = InnerLayer(event, config.merge) if config.inner and config.merge > 1 else None
        self.layers = nn.ModuleList(MergedLayer(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, q_BQ: Tensor, user_RI: Tensor | None, e_UE: Tensor, segments: Segments) -> Tensor:
        """Return the target token of each candidate after the layers, ``[B, W]``."""
        x_NW, y_BW, plan = self._start(q_BQ, user_RI, e_UE, segments)
        frame, at_M = plan.entries, plan.recent_M
        for number, each in enumerate(self.layers, 1):
            layer, last = cast(MergedLayer, each), number == len(self.layers)
            x_MW, y_BW = layer(x_NW, y_BW, frame, plan.candidates, None if last else (plan.recent, at_M))
            if x_MW is not None:
                x_NW, frame, at_M = x_MW, plan.recent, None
        y_BW = self.norm(y_BW)
        return y_BW if plan.back_C is None else y_BW.index_select(0, plan.back_C)

    def weights(self, q_BQ: Tensor, user_RI: Tensor | None, e_UE: Tensor, segments: Segments) -> Tensor:
        """Return the weights of events in the first layer, ``[U, 1]``, or ``[U, B]`` when shared."""
        x_NW, y_BW, plan = self._start(q_BQ, user_RI, e_UE, segments)
        every = cast(MergedLayer, self.layers[0]).weights(x_NW, y_BW, plan.entries, plan.candidates)
        return plan.spread(plan.entries.flatten(every), len(e_UE))

    def _start(
        self, q_BQ: Tensor, user_RI: Tensor | None, e_UE: Tensor, segments: Segments
    ) -> tuple[Tensor, Tensor, MergePlan]:
        """Return tokens and targets before the layers, and their plan."""
        plan = plan_merge(segments, self.merge, self.max_events, self.recent, 1 if self.user is None else 2)
        y_BW = self.target(q_BQ)
        if plan.order_C is not None:
            y_BW = y_BW.index_select(0, plan.order_C)
        return self.tokens(user_RI, e_UE, segments.requests.rows, plan), y_BW, plan

    def tokens(self, user_RI: Tensor | None, e_UE: Tensor, requests: int, plan: MergePlan) -> Tensor:
        """Return the tokens of all requests, ``[N, W]``: merged events, user, cls."""
        e_GKE = plan.gather(e_UE)
        if self.inner is not None:
            e_GKE = self.inner(e_GKE, plan.padded_GK)
        g_GW = self.entry(e_GKE.flatten(1)) + self.position_embedding.index_select(0, plan.age_G)
        cls_RW = self.cls.expand(requests, -1)
        if self.user is not None:
            assert user_RI is not None
            cls_RW = torch.stack([self.user(user_RI), cls_RW], 1).flatten(0, 1)
        x_NW = torch.cat([g_GW, cls_RW])
        return x_NW if plan.order_N is None else x_NW.index_select(0, plan.order_N)
