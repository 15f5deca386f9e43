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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch, Column, HistoryBatch, Jagged, Layout
from longrec.features.fields import Field as FieldOf
from longrec.features.fields import Fields
from longrec.models.core.kinds import VectorRetriever
from longrec.models.core.retrieval import RetrievalConfig, retrieval_loss
from longrec.models.core.top import Width
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.segments import Segments
from longrec.nn.self_attention import attend_to_earlier

_IDS = ("id", "multi_id")


class SASRecConfig(RetrievalConfig):
    """Settings of SASRec."""

    embedding_dim: Width = Field(64, description="Width of all embeddings and states.")
    layers: Width = Field(1, description="Transformer blocks.")
    heads: Width = Field(1, description="Heads of the attention, a divisor of the width.")
    hidden: Width = Field(1, description="Units of the feed-forward network, as a multiple of the width.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout rate of the input and of the branches.")
    positions: Width = Field(200, description="Distinct positions, counted from the newest event.")
    input_norm: bool = Field(True, description="Layer normalization of the sum of event and position.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial embeddings and positions.")


class SASRec(VectorRetriever):
    """SASRec over the first history of the schema."""

    Config = SASRecConfig
    reads_history = True
    reads_groups = True
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
        self.width, self.sampling = config.embedding_dim, config.sampling()
        self.history, self.read_fields = _choose_fields(fields)
        self.embeddings = Embeddings(self.read_fields, width=self.width, histories=True, std=config.init_std)
        self.position_embedding = nn.Parameter(torch.randn(config.positions, self.width) * config.init_std)
        self.input_norm = nn.LayerNorm(self.width) if config.input_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            _Block(self.width, config.heads, config.hidden * self.width, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(self.width)

    def users(self, batch: Batch) -> Float[Tensor, "R 1 D"]:
        """Return the state of the last event of each request, zero without events."""
        return self._take_last(batch, self.states(batch)).unsqueeze(1)

    def items(self, columns: Mapping[str, Column]) -> Float[Tensor, "I D"]:
        """Return the sum of the embeddings of the ids of every item."""
        own = {field.name: columns[field.name] for field in self.read_fields.features}
        history = HistoryBatch(_make_empty(self.read_fields.histories[self.history], own), _empty_offsets(own))
        return _sum_items(self.embeddings(Batch(Layout(0, 0), {}, own, {self.history: history})))

    def states(self, batch: Batch) -> Float[Tensor, "N D"]:
        """Return the state of each stored position of the history."""
        return self._encode(batch, self._embed(batch))

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the next items.

        Raises:
            ValueError: if the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("a retriever needs a batch with targets")
        embedded = self.embeddings(batch)
        state_TD = self._encode(batch, embedded)
        if not batch.targets.per_position:
            state_TD = self._take_last(batch, state_TD)
        state_TD = state_TD.index_select(0, batch.targets.state)
        return retrieval_loss(state_TD, _sum_items(embedded), batch.targets, self.config)

    def _embed(self, batch: Batch) -> Embedded:
        """Look up the events alone."""
        history = batch.histories[self.history]
        none = _make_empty(self.read_fields.features, history.columns)
        return self.embeddings(replace(batch, candidates=none))

    def _encode(self, batch: Batch, embedded: Embedded) -> Tensor:
        """Return ``[N, D]``, the states, from the embeddings of the events."""
        segments = Segments.of(batch, self.history).requests
        back_N = segments.count_newer().clamp(max=len(self.position_embedding) - 1)
        events = embedded.histories[self.history]
        x_ND = _sum([*events.values(), self.position_embedding.index_select(0, back_N)])
        x_ND = self.dropout(self.input_norm(x_ND))
        for block in self.blocks:
            x_ND = block(x_ND, segments)
        out: Tensor = self.norm(x_ND)
        return out

    def _take_last(self, batch: Batch, state_ND: Tensor) -> Tensor:
        """Return ``[R, D]``, the last state of each request, zero without events."""
        segments = Segments.of(batch, self.history).requests
        padded = torch.cat([state_ND.new_zeros(1, self.width), state_ND])
        if segments.shared:
            return padded[-1:]
        stop_R = segments.offsets[1:]
        return padded.index_select(0, stop_R * (stop_R > segments.offsets[:-1]))


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


def _choose_fields(fields: Fields) -> tuple[str, Fields]:
    """Return the first history, and the ids of its events and of items.

    Raises:
        ConfigError: without a history, or if its events and the items have no id in common.
    """
    if not fields.histories:
        raise ConfigError("schema", ["histories: sasrec reads a history, and the schema has none"])
    name, columns = next(iter(fields.histories.items()))
    common = [field for field in fields.target_columns(name) if field.kind in _IDS]
    if not common:
        names = ", ".join(field.name for field in columns)
        fault = f"histories.{name}.features: sasrec needs an id that is a feature of the item too, got {names}"
        raise ConfigError("schema", [f"{fault}; add the item to it"])
    of_items = tuple(field for field in fields.features if field.side == "item" and field.kind in _IDS)
    return name, Fields(of_items, {name: tuple(field for field in columns if field.kind in _IDS)})


def _make_empty(fields: Sequence[FieldOf], like: Mapping[str, Column]) -> dict[str, Column]:
    """Return columns without entries, on the device of others."""
    offsets = _empty_offsets(like)
    ids = offsets[:0].int()
    weights = ids.float()
    return {
        field.name: ids if field.kind == "id" else Jagged(ids, offsets, weights if field.weighted else None)
        for field in fields
    }


def _empty_offsets(like: Mapping[str, Column]) -> Tensor:
    column = next(iter(like.values()))
    device = column.device if isinstance(column, Tensor) else column.values.device
    return torch.zeros(1, dtype=torch.int64, device=device)


def _sum_items(embedded: Embedded) -> Tensor:
    return _sum(list(embedded.candidate.values()))


def _sum(vectors: Sequence[Tensor]) -> Tensor:
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total
