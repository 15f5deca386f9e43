r"""KFAtt: Kalman Filtering Attention for User Behavior Modeling in CTR Prediction.

Liu, Lu, Zhao, Xu, Peng, Liu, Zhang, Li, Jin, Bao, Yan, NeurIPS 2020. https://arxiv.org/abs/2010.00985

A past click v_t under query k_t is a noisy measurement of the user's interest under the current query q. The prior of
that interest is a Gaussian given q alone, so that an interest without matching clicks is not estimated from unrelated
ones. A frequent query saturates: it counts little more than once, however many its clicks:

    v_q ~ N(mu_q, s_q^2),  v_t | v_q ~ N(v_q, s_t^2),  1/s_t^2 = exp(q W_Q W_K^T k_t)
    v^ = (mu_q / s_q^2 + sum_t v_t / s_t^2) / (1/s_q^2 + sum_t 1/s_t^2)                        (KFAtt-base)
    v^ = (mu_q / s_q^2 + sum_m g_m mean_m) / (1/s_q^2 + sum_m g_m)                             (KFAtt-freq)
    g_m = 1 / (s_m^2 + s'_m^2 / n_m)
    logit = MLP([fields of the impression, v^])

over the M distinct keys of a history, the n_m clicks of key k_m and their mean; mu_q, 1/s_q^2 and s'_m^2 come from
networks of one hidden layer, of q and of k_m. ``frequency: false`` is KFAtt-base. With ``sessions`` (KFAtt-trans) the
values are the outputs of a transformer layer with self attention within a session, not the clicks.

The estimate is a softmax over log 1/s_q^2 and one logit per click: the clicks of a key share g_m evenly, and

    log (g_m / n_m) = -log (n_m s_m^2 + s'_m^2)

so that nothing is summed per key. Only n_m is counted.

Departures from the paper
    - the query is a column that the impression and its events both have: the one that ``query`` names (the query of a
      search), or the first that is not the item (the category, as in the paper's public data), or the item; without any
      in a history the query is all shared columns, and each click is a key of its own;
    - a click whose key is missing or unseen is a key of its own too;
    - v_t are all columns of the event; values are projected only with several ``heads``;
    - a session is a run of events with one value of the column ``session_recency`` (those 63 or more back have one); a
      history without that column is one session. Positions are counted back from the newest event of a session;
    - each history has networks of its own.

Shapes: B rows, N positions of the batch's histories, U stored positions (see nn/segments.py), Q width of query
and keys, V width of an event, A width of a head's query, H heads, W units of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import SESSION_RECENCY, Fields
from longrec.models.core.top import EmbeddingConfig, TopRanker, Width
from longrec.nn.activation import ActivationName
from longrec.nn.bucketed_attention import attend_runs
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.groups import Groups, choose_group_columns
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.transformer import EncoderLayer


class KFAttConfig(EmbeddingConfig):
    """Settings of KFAtt."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"places": "max_positions"}

    query: str | None = Field(None, description="Query column; see the docstring for the default.")
    frequency: bool = Field(True, description="Saturate the weight of a key with its number of clicks.")
    sessions: bool = Field(False, description="Self attention within each session first.")
    max_positions: Width = Field(64, description="Distinct positions, counted back from the end of a session.")
    heads: Width = Field(1, description="Heads of the attention, and of that in sessions.")
    attention: Width = Field(32, description="Width of a head's query and keys.")
    hidden: Width = Field(32, description="Hidden units of the networks of mu_q, s_q and s'_m.")
    mlp: tuple[Width, ...] = Field((200, 80), min_length=1, description="Hidden units of the top MLP.")
    activation: ActivationName = Field("relu", description="Activation of the top MLP.")
    batch_norm: bool = Field(True, description="Batch normalization in the top MLP.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the top MLP.")


class KFAtt(TopRanker):
    """KFAtt over every history of the schema."""

    Config = KFAttConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"frequency": False, "attention": 8, "hidden": 8, "mlp": [32]},
        {"sessions": True, "heads": 3, "attention": 8, "max_positions": 4, "mlp": [32]},
    )

    def __init__(self, config: KFAttConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.order_matters = config.sessions
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "kfatt")
        self.columns = choose_group_columns(fields, config.query, "model.query", in_impression=True)
        self.paths, self.encoders = nn.ModuleDict(), nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history, column in self.columns.items():
            query = width[column] if column else self.queries.query_widths[history]
            value = self.queries.key_widths[history]
            self.paths[f"path_{history}"] = KalmanAttention(
                query, value, config.attention, config.hidden, config.heads, config.frequency
            )
            if config.sessions:
                self.encoders[f"encoder_{history}"] = SessionEncoder(
                    value, config.heads, config.max_positions, config.init_std
                )
            top += value
        self.top = MLP(top, config.mlp, config.activation, config.dropout, config.batch_norm, outputs=1)
        self.interaction_width = self.top.width

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and the estimate from each history."""
        inputs = list(embedded.features.values())
        for history in self.fields.histories:
            inputs.append(self.paths[f"path_{history}"](*self._read(batch, embedded, history)))
        return inputs

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weight of every position of every history, mean over heads: ragged ``[N]``, shared ``[B, T]``.

        The weights of a row and that of mu_q sum to one.
        """
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            q_BQ, k_UQ, _, segments, sizes_U = self._read(batch, embedded, history)
            path = cast(KalmanAttention, self.paths[f"path_{history}"])
            w_N = torch.stack([w_N for w_N, _ in path.weights(q_BQ, k_UQ, segments, sizes_U)]).mean(0)
            weights[history] = segments.by_candidate(w_N)
        return weights

    def _read(
        self, batch: Batch, embedded: Embedded, history: str
    ) -> tuple[Tensor, Tensor, Tensor, Segments, Tensor | None]:
        """Return query, keys, values, segments, and the clicks per key of each event (None if one)."""
        v_UV, segments = self.queries.gather_keys(batch, embedded, history)
        column, columns = self.columns[history], batch.histories[history].on_host.columns
        if column is None:
            q_BQ, sizes_U = self.queries.compute_query(embedded, history), None
            k_UQ = v_UV[:, : q_BQ.shape[1]]
        else:
            q_BQ, k_UQ = embedded.features[column], embedded.histories[history][column]
            sizes_U = Groups(cast(Tensor, columns[column]), segments.requests).sizes if self.config.frequency else None
        if self.config.sessions:
            v_UV = self.encoders[f"encoder_{history}"](
                v_UV, segments.requests, cast(Tensor | None, columns.get(SESSION_RECENCY))
            )
        return q_BQ, k_UQ, v_UV, segments, sizes_U


class KalmanAttention(nn.Module):
    """Estimate of the interest under a query, from clicks under others.

    Args:
        query: Q.
        value: V.
        width: A.
        hidden: units of the networks of mean and variances.
        frequency: True to saturate frequent keys (KFAtt-freq).
    """

    def __init__(self, query: int, value: int, width: int, hidden: int, heads: int = 1, frequency: bool = True) -> None:
        super().__init__()
        self.heads, inner = heads, heads * -(-value // heads)
        self.asking = Linear(query, heads * width, bias=False)
        self.key = Linear(query, heads * width, bias=False)
        self.mean = MLP(query, (hidden,), outputs=inner)
        self.precision = MLP(query, (hidden,), outputs=heads)
        """log 1/s_q^2"""
        self.noise = MLP(query, (hidden,), outputs=heads) if frequency else None
        """log s'_m^2"""
        self.value = Linear(value, inner, bias=False) if heads > 1 else None
        self.outer = Linear(inner, value, bias=False) if heads > 1 else None

    def weights(
        self, q_BQ: Float[Tensor, "B Q"], k_UQ: Float[Tensor, "U Q"], segments: Segments, sizes_U: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return per head the weight of every position ``[N]`` and that of mu_q ``[B]``. Those of a row sum to one.

        Args:
            sizes_U: number of clicks of the row with the same key. None if keys are distinct.
        """
        q_BX, k_UX, null_BH = self.asking(q_BQ), self.key(k_UQ), self.precision(q_BQ)
        noise_UH = None if self.noise is None else self.noise(k_UQ).float()
        split = q_BX.shape[1] // self.heads
        head_weights = []
        for head, (q_BA, k_UA) in enumerate(zip(q_BX.split(split, 1), k_UX.split(split, 1))):
            s_N = segments.dot(q_BA, k_UA).float()
            if noise_UH is not None:
                noise_U1 = noise_UH[:, head : head + 1]
                spread_U1 = -noise_U1 if sizes_U is None else sizes_U.log().unsqueeze(1) - noise_U1
                # -log (n s^2 + s'^2), with s'^2 factored out
                of_N, spread_N = (segments.keys(x_U1).squeeze(1) for x_U1 in (noise_U1, spread_U1))
                s_N = -of_N - F.softplus(spread_N - s_N)
            head_weights.append(segments.softmax_with_null(s_N, null_BH[:, head].float()))
        return head_weights

    def forward(
        self,
        q_BQ: Float[Tensor, "B Q"],
        k_UQ: Float[Tensor, "U Q"],
        v_UV: Float[Tensor, "U V"],
        segments: Segments,
        sizes_U: Tensor | None = None,
    ) -> Float[Tensor, "B V"]:
        """Return ``v^`` of each row. mu_q for an empty history."""
        mean_BX, v_UX = self.mean(q_BQ), v_UV if self.value is None else self.value(v_UV)
        split = v_UX.shape[1] // self.heads
        heads = zip(
            self.weights(q_BQ, k_UQ, segments, sizes_U), mean_BX.split(split, 1), v_UX.split(split, 1), strict=True
        )
        x_BX = torch.cat([segments.weighted_sum(w_N, v) + w_B.unsqueeze(1) * mean for (w_N, w_B), mean, v in heads], 1)
        return x_BX if self.outer is None else self.outer(x_BX)


class SessionEncoder(nn.Module):
    """Self attention among the events of each session, with positions."""

    renamed_parameters: ClassVar[dict[str, str]] = {"places": "position_embedding"}

    def __init__(self, width: int, heads: int, max_positions: int, std: float) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.randn(max_positions, width) * std)
        self.layer = EncoderLayer(width, heads, width)

    def forward(
        self, v_UV: Float[Tensor, "U V"], segments: Segments, session_U: Tensor | None = None
    ) -> Float[Tensor, "U V"]:
        """Return the encoded events.

        Args:
            segments: of requests over stored positions.
            session_U: a value that changes where a session ends. None if a row is one session.
        """
        attention, newer_U = attend_runs(session_U, segments)
        x_UV = v_UV + self.position_embedding.index_select(0, newer_U.clamp(max=len(self.position_embedding) - 1))
        return attention.restore_positions(self.layer(attention.gather_positions(x_UV), attention))
