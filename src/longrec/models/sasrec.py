r"""SASRec: Self-Attentive Sequential Recommendation.

Kang, McAuley, ICDM 2018. https://arxiv.org/abs/1808.09781

A causal transformer reads the events of a user. The state after each event is compared with the vectors of items, and
the next item shall be the nearest. One pass over a history therefore trains on all of its events:

    x_t = LN(e_t + p_{n-t})                                                          (input)
    x_t <- x_t + W^O sum_{s <= t} softmax_s(q_t . k_s / sqrt(d)) v_s                 (attention)
    x_t <- x_t + W^2 gelu(W^1 LN(x_t))                                               (feed-forward network)
    h_t = LN(x_t)          score(i) = <h_n, v_i>                                     (state of the last event, item i)

Here q, k, v = W^Q LN(x), W^K LN(x), W^V LN(x) in each head, e_t is the sum of the embeddings of the ids of event t, and
v_i that of the ids of item i. Both read the same tables. n - t counts the events after t.

Departures from the paper
    - the loss is sampled softmax with negatives that a batch shares; ``loss: bce`` is the paper's, with one negative
      for each target;
    - layer normalization of the input, which decides how fast the model learns; ``input_norm: false`` drops it;
    - keys and values are projections of the normalized stream, as in usual pre-norm blocks; the authors' code projects
      the stream itself, and adds the normalized query to the output of the attention;
    - a GELU instead of a ReLU, and no factor sqrt(d) on the embeddings of items;
    - positions count from the newest event and not from the first, so that no length is privileged; events older than
      ``positions`` share the last one. In training they count from the newest event of the sequence;
    - dropout on the input and in the branches, and none on attention weights;
    - an event is the sum of all its id columns, and an item that of all its id features; other columns, features of
      users and further histories are not read. A user without events has the zero vector, and all items tie.

Shapes: R requests, N stored positions of their histories, C candidates, I items, T targets, D width, X width of all
heads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.item_history import ItemHistoryConfig, ItemHistoryRetriever, add_all
from longrec.models.core.top import Width
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embedded
from longrec.nn.linear import Linear
from longrec.nn.segments import Segments
from longrec.nn.self_attention import attend_to_earlier


class SASRecConfig(ItemHistoryConfig):
    """Settings of SASRec."""

    layers: Width = Field(1, description="Transformer blocks.")
    heads: Width = Field(1, description="Heads of the attention, a divisor of the width.")
    hidden: Width = Field(1, description="Units of the feed-forward network, as a multiple of the width.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout rate of the input and of the branches.")
    positions: Width = Field(200, description="Distinct positions, counted from the newest event.")
    input_norm: bool = Field(True, description="Layer normalization of the sum of event and position.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial embeddings and positions.")


class SASRec(ItemHistoryRetriever):
    """SASRec over the first history of the schema."""

    Config = SASRecConfig
    order_matters = True
    reads_sequences = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"layers": 2, "heads": 4, "hidden": 4, "positions": 3, "loss": "gbce"},
        {"input_norm": False, "loss": "bce", "embedding_dim": 12},
        {"loss": "cross_entropy", "dropout": 0.0, "temperature": 0.5},
    )

    def __init__(self, config: SASRecConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if config.embedding_dim % config.heads:
            fault = f"embedding_dim: {config.embedding_dim} is no multiple of heads, {config.heads}"
            raise ConfigError("config", [f"model.{fault}; choose a divisor as the number of heads"])
        self.position_embedding = nn.Parameter(torch.randn(config.positions, self.width) * config.init_std)
        self.input_norm = nn.LayerNorm(self.width) if config.input_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            _Block(self.width, config.heads, config.hidden * self.width, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(self.width)

    def encode(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "N D"]:
        """Return the state of each stored position of the history."""
        segments = self.segments(batch)
        back_N = segments.count_newer().clamp(max=len(self.position_embedding) - 1)
        events = embedded.histories[self.history]
        x_ND = add_all([*events.values(), self.position_embedding.index_select(0, back_N)])
        x_ND = self.dropout(self.input_norm(x_ND))
        for block in self.blocks:
            x_ND = block(x_ND, segments)
        out: Tensor = self.norm(x_ND)
        return out


class _Block(nn.Module):
    """Causal attention and a feed-forward network, each on the normalized stream and added to it."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.inner, self.outer = Linear(width, 3 * width), Linear(width, width)
        self.first, self.second = Linear(width, hidden), Linear(hidden, width)
        self.gelu, self.dropout = nn.GELU(), Dropout(dropout)
        for layer in (self.inner, self.outer, self.first, self.second):
            nn.init.normal_(layer.weight, std=width**-0.5 / 2)

    def forward(self, x_ND: Tensor, segments: Segments) -> Tensor:
        """Return the states ``[N, D]`` after the block."""
        o_NX = attend_to_earlier(self.inner(self.norms[0](x_ND)), segments, self.heads)
        x_ND = x_ND + self.dropout(self.outer(o_NX))
        h_NX = self.dropout(self.gelu(self.first(self.norms[1](x_ND))))
        return x_ND + self.dropout(self.second(h_NX))
