r"""BST: Behavior Sequence Transformer for E-commerce Recommendation in Alibaba.

Chen, Zhao, Li, Huang, Ou, DLP-KDD 2019. https://arxiv.org/abs/1905.06874

The candidate is appended to the user's events, one transformer block applies self attention to all of them, and an MLP
reads the output with the other features:

    pos(v_i) = t(v_target) - t(v_i)                                                  (section 2.1)
    S = MH(E) = [head_1; ...; head_h] W^H,  head_i = Attention(E W^Q, E W^K, E W^V)  (eq. 1 and 2)
    S' = LN(E + Dropout(S))                                                          (eq. 4)
    F = LN(S' + Dropout(LeakyReLU(S' W^1 + b^1) W^2 + b^2))                          (eq. 5)
    logit = MLP([fields of the impression, pool(F)])                                 (section 2.3)

Every event attends to the candidate and every other event, without a causal mask. With ``pooling: target`` the last
block computes one query per row, so that one block costs O(T) attention and a request shares keys and values among all
candidates. Everything else costs O(T^2), and further blocks run once per candidate.

Departures from the paper
    - the paper does not say which output of F the MLP reads: ``pooling`` is the candidate's own row, the default
      for its speed, or the ``mean`` or ``sum`` over the candidate and its events;
    - pos is the column ``time_gap`` of the history, in buckets, embedded like every other column; a schema that lists
      none has no positions. ``position: concat`` concatenates a position embedding and ``position: add`` adds
      one, as ports do. Positions count back from the candidate, which is 0, so they do not depend on the length;
    - a column of the events that the candidate lacks (elapsed time, a past rating) is a learned vector for the
      candidate; for instance tokens, which share no column, a projection of the candidate's fields is the query;
    - a head is as wide as an h-th of an event, rounded up, so that any width goes with any number of heads;
    - each history has blocks of its own; a row without events attends to the candidate alone.

Shapes: B rows, N positions, U stored positions (see nn/segments.py), T events of a shared history, K width of an
event, D the same with its index, X width of all heads' queries, keys and values, H units of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import EmbeddingConfig, TopRanker, Width
from longrec.nn.activation import ActivationName
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.transformer import EncoderLayer


class BSTConfig(EmbeddingConfig):
    """Settings of BST."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"places": "max_positions"}

    heads: Width = Field(8, description="Heads of the attention.")
    blocks: Width = Field(1, description="Transformer blocks; the paper found one to be best.")
    hidden: Width | None = Field(None, description="Units of the network in a block; by default as many as its inputs.")
    pooling: Literal["target", "mean", "sum"] = Field("target", description="Output of the last block that is used.")
    position: Literal["time", "concat", "add"] = Field("time", description="Elapsed time alone, or also a position.")
    max_positions: Width = Field(128, description="Distinct positions, counted back from the candidate.")
    mlp: tuple[Width, ...] = Field((1024, 512, 256), min_length=1, description="Hidden units of the top MLP.")
    mlp_activation: ActivationName = Field("leaky_relu", description="Activation of the top MLP.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout rate of blocks and top MLP.")


class BST(TopRanker):
    """BST over every history of the schema."""

    Config = BSTConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"pooling": "mean", "heads": 2, "mlp": [32], "dropout": 0.0},
        {"pooling": "sum", "position": "concat", "heads": 3, "mlp": [32], "hidden": 12},
        {"blocks": 2, "position": "add", "heads": 2, "mlp": [32]},
    )

    def __init__(self, config: BSTConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.order_matters = config.position != "time"
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "bst")
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            path = _Path(self.queries.query_widths[history], self.queries.key_widths[history], config)
            self.paths[f"path_{history}"] = path
            top += path.width
        self.top = MLP(top, config.mlp, config.mlp_activation, config.dropout, outputs=1)
        self.interaction_width = self.top.width

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and the pooled output of the blocks of each history."""
        inputs = list(embedded.features.values())
        for history in self.fields.histories:
            inputs.append(self.paths[f"path_{history}"](*self.queries(batch, embedded, history)))
        return inputs

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the candidate's attention in the last block, mean over heads: ragged ``[N]``, shared ``[B, T]``.

        The weights of a row and that of the candidate itself sum to one.
        """
        embedded = self.embed(batch)
        paths = {history: cast(_Path, self.paths[f"path_{history}"]) for history in self.fields.histories}
        return {history: path.weights(*self.queries(batch, embedded, history)) for history, path in paths.items()}


class _Path(nn.Module):
    """The blocks of one history."""

    renamed_parameters: ClassVar[dict[str, str]] = {"places": "position_embedding"}

    def __init__(self, query: int, key: int, config: BSTConfig) -> None:
        super().__init__()
        self.pooling, self.position = config.pooling, config.position
        index = config.embedding_dim if config.position == "concat" else 0
        self.width = key + index
        self.absent = nn.Parameter(torch.randn(key - query) * config.init_std) if query < key else None
        self.position_embedding = None
        if config.position != "time":
            self.position_embedding = nn.Parameter(torch.randn(config.max_positions, index or key) * config.init_std)
        hidden = config.hidden or self.width
        self.blocks = nn.ModuleList(
            EncoderLayer(self.width, config.heads, hidden, activation="leaky_relu", dropout=config.dropout)
            for _ in range(config.blocks)
        )

    def forward(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> Tensor:
        """Return the pooled output of the candidate and its events, ``[B, D]``."""
        y_BD, x, attention, _ = self._run(q_BQ, e_UK, segments)
        if x is None or self.pooling == "target":
            return y_BD
        return attention.pool_beside(x, y_BD, self.pooling)

    def weights(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> Tensor:
        """Return the candidate's attention in the last block: ragged ``[N]``, shared ``[B, T]``."""
        return self._run(q_BQ, e_UK, segments)[3]

    def _run(
        self, q_BQ: Tensor, e_UK: Tensor, segments: Segments
    ) -> tuple[Tensor, Tensor | None, BucketedAttention, Tensor]:
        """Return the candidates after the last block, the events if needed, the attention layout and the weights.

        Events of a shared history are ``[T, D]`` as long as no candidate has changed them, then ``[B, T, D]``.
        """
        if len(self.blocks) > 1 or self.pooling != "target":
            # The first block changes the events by the candidate.
            e_UK, segments = segments.flatten(e_UK)
        attention = BucketedAttention(segments)
        y_BD, x_UD = self._inputs(q_BQ, e_UK, segments)
        y_BD, w = attention.gather_rows(y_BD), x_UD
        x: Tensor | None = attention.requests.gather_positions(x_UD)
        for number, block in enumerate(self.blocks, 1):
            assert x is not None
            events = number < len(self.blocks) or self.pooling != "target"
            y_BD, x, w = _step(cast(EncoderLayer, block), y_BD, x, attention, events)
        return attention.restore_rows(y_BD), x, attention, attention.restore_positions(w)

    def _inputs(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """Return the candidates and the events, with positions: the inputs of the first block."""
        y_BD = q_BQ
        if self.absent is not None:
            y_BD = torch.cat([y_BD, self.absent.expand(y_BD.shape[0], -1)], 1)
        if self.position_embedding is None:
            return y_BD, e_UK
        back_U = (segments.count_newer() + 1).clamp(max=len(self.position_embedding) - 1)
        p_UD = self.position_embedding.index_select(0, back_U)
        own_BD = self.position_embedding[0].expand(y_BD.shape[0], -1)
        if self.position == "add":
            return y_BD + own_BD, e_UK + p_UD
        return torch.cat([y_BD, own_BD], 1), torch.cat([e_UK, p_UD], 1)


def _step(
    block: EncoderLayer, y_BD: Tensor, x: Tensor, attention: BucketedAttention, events: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the candidates after a block, the events if ``events``, and the candidates' weights on the events."""
    if not events:
        z_BD, w = block.attend_query(y_BD, x, attention, beside=True)
        return z_BD, None, w
    q, k, v = (projection.view(*x.shape[:-1], projection.shape[1]) for projection in block.project(x.flatten(0, -2)))
    q_BX, *own = block.project(y_BD)
    beside = own[0], own[1]
    o_BX, w = attention.attend_query(q_BX, attention.flatten(k), attention.flatten(v), block.heads, beside)
    z_BD = block.rest(y_BD, o_BX)
    o = attention.attend_within(q, k, v, block.heads, beside)
    if o.ndim > x.ndim:
        x = x.expand(o.shape[0], -1, -1)
    return z_BD, block.rest(x.flatten(0, -2), o.flatten(0, -2)).view(x.shape), w
