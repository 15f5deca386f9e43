r"""SDM: Sequential Deep Matching Model for Online Large-scale Recommender System.

Lv, Jin, Yu, Sun, Lin, Yang, Ng, CIKM 2019. https://arxiv.org/abs/1909.00385

What a user wants now is in the session, and what the user likes in general is in older sessions. A recurrence and
self-attention read the session, attention by the user's vector e_u pools it, and a gate fuses it with what is pooled
from older events, feature by feature:

    h_t = LSTM([e_1t .. e_Ft], h_{t-1})                                    (events t of the session, features f)
    x_t = sum_{j <= t} softmax_j(q_t . k_j / sqrt(d)) v_j                  (multi-head, q, k, v projections of h)
    s = sum_j softmax_j(x_j . e_u) x_j                                     (short-term)
    z_f = sum_j softmax_j(e_fj . e_u) e_fj      p = tanh(W [z_1 .. z_F])   (events j of older sessions; long-term)
    g = sigmoid(W_1 e_u + W_2 s + W_3 p)        o = (1 - g) p + g s        (elementwise)
    score(i) = <o, v_i>

The loss is at every event: o of the session up to it, with the next item as the target.

Departures from the paper
    - sessions are the runs of one value of the column ``session_recency``, which splits at a gap (``session_gap`` in
      the schema; the paper's is 10 minutes). Without that column they are runs of ``session_events`` events, counted
      from the oldest one that a history holds: a rule for logs in steps or days. The column depends on when it is read,
      so a log with it trains on one history per target;
    - long-term are all older events that a history holds. The paper takes 7 days, and 20 distinct values per feature;
    - attention by e_u is divided by sqrt(d), as in the authors' code;
    - a residual connection and layer normalization around the self-attention, as in the authors' code;
      ``norm: false`` drops both. Further recurrences are added to their input, as there;
    - e_u is a layer, with tanh, of the features of the user in the schema, or one learned vector without any. It is not
      of the context;
    - items are read from the tables of events; ``output_table: true`` gives them tables of their own, as in the paper;
    - vectors have one width, other columns of events than ids are not read, and an item is the sum of its ids.

Shapes: R requests, U stored positions of their histories, P events in sessions, X results, F features of an event, T
targets, C candidates, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import SESSION_RECENCY, Fields
from longrec.models.core.item_history import ItemHistoryConfig, ItemHistoryRetriever, add_all, make_empty
from longrec.models.core.top import Width
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.lstm import LSTM
from longrec.nn.prefix_attention import count_older
from longrec.nn.session_split import EverySession, NewestSession


class SDMConfig(ItemHistoryConfig):
    """Settings of SDM."""

    session_events: Width = Field(
        5, description="Events per session of a history without the column `session_recency`."
    )
    layers: int = Field(1, ge=0, description="Recurrences over a session; 0 reads the events themselves.")
    heads: Width = Field(1, description="Heads of the self-attention, a divisor of the width.")
    norm: bool = Field(True, description="Residual connection and layer normalization around the self-attention.")
    output_table: bool = Field(False, description="Tables of items besides those of events.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the embeddings of events.")


class SDM(ItemHistoryRetriever):
    """SDM over the first history of the schema."""

    Config = SDMConfig
    order_matters = True
    reads_sequences = True
    reads_requests = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"session_events": 2, "layers": 2, "heads": 4, "norm": False, "embedding_dim": 12, "loss": "gbce"},
        {"session_events": 3, "output_table": True, "embedding_dim": 8, "dropout": 0.1},
        {"session_events": 3, "layers": 0, "embedding_dim": 8, "loss": "bce"},
    )

    def __init__(self, config: SDMConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if config.embedding_dim % config.heads:
            fault = f"embedding_dim: {config.embedding_dim} is no multiple of heads, {config.heads}"
            raise ConfigError("config", [f"model.{fault}; choose a divisor as the number of heads"])
        width, columns = self.width, self.read_fields.histories[self.history]
        own = tuple(field for field in self.read_fields.features if field.side == "item")
        self.output = Embeddings(Fields(own, {}), width=width, std=config.init_std) if config.output_table else None
        self.dropout = Dropout(config.dropout)
        self.reduce = Linear(len(columns) * width, width) if len(columns) > 1 else nn.Identity()
        self.layers = nn.ModuleList(LSTM(width, width) for _ in range(config.layers))
        self.inner, self.outer = Linear(width, 3 * width), Linear(width, width)
        self.norm = nn.LayerNorm(width) if config.norm else None
        users = len(self.read_fields.features) - len(own)
        self.user = Linear(users * width, width) if users else None
        self.any_user = None if users else nn.Parameter(torch.randn(width) * width**-0.5)
        self.merge, self.gate = Linear(len(columns) * width, width), Linear(3 * width, width)

    def embed(self, batch: Batch) -> Embedded:
        """Look up all vectors, those of items in their own tables with ``output_table``."""
        if self.output is None:
            return super().embed(batch)
        own = self.output.fields.features
        none = make_empty(own, batch.histories[self.history].columns)
        embedded = super().embed(replace(batch, candidates={**batch.candidates, **none}))
        return replace(embedded, further={self.output: self.output(batch)})

    def encode_items(self, embedded: Embedded) -> Float[Tensor, "C D"]:
        """Return the vector of each item: the sum of its embeddings."""
        items = embedded if self.output is None else embedded.further[self.output]
        return add_all(list(items.candidate.values()))

    def encode(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "U D"]:
        """Return the state after each stored event of the history."""
        return self._encode(batch, embedded, self.segments(batch).expand(self._embed_users(batch, embedded)), True)

    def encode_requests(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "R 1 D"]:
        """Return the vector of each request."""
        return self._encode(batch, embedded, self._embed_users(batch, embedded), False).unsqueeze(1)

    def encode_targets(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "T D"]:
        """Return the state of each target, for the features of its user at its time."""
        assert batch.targets is not None
        if self.user is None:
            return super().encode_targets(batch, embedded)
        # Targets of one position have the features of the earliest one, so that none reads what became true later.
        state_T = batch.targets.state
        target_T = torch.arange(len(state_T), device=state_T.device)
        blank_U = target_T.new_zeros(self.segments(batch).positions)
        target_U = blank_U.scatter_reduce(0, state_T, target_T, "amin", include_self=False)
        user_UD = self._embed_users(batch, embedded).index_select(0, target_U)
        return self._encode(batch, embedded, user_UD, True).index_select(0, state_T)

    def fuse(self, user_XD: Tensor, short_XD: Tensor, long_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Return o and the gate g, ``[X, D]``."""
        g_XD = torch.sigmoid(self.gate(torch.cat([user_XD, short_XD, long_XD], 1)))
        return (1 - g_XD) * long_XD + g_XD * short_XD, g_XD

    def _encode(self, batch: Batch, embedded: Embedded, user_XD: Tensor, every: bool) -> Tensor:
        """Return o of each event, or of each request."""
        segments = self.segments(batch)
        key_U = cast(Tensor | None, batch.histories[self.history].on_host.columns.get(SESSION_RECENCY))
        if key_U is None:
            older_U = count_older(segments.on_host)
            key_U = torch.div(older_U, self.config.session_events, rounding_mode="floor")
        split = (EverySession if every else NewestSession)(key_U, segments)
        columns = [self.dropout(e_UD) for e_UD in embedded.histories[self.history].values()]
        x_PD = self.reduce(split.gather(torch.cat(columns, 1)))
        for number, layer in enumerate(self.layers):
            h_PD = split.recur(cast(LSTM, layer), x_PD)
            x_PD = x_PD + h_PD if number else h_PD
        o_PD = self.outer(split.attend(self.inner(x_PD), self.config.heads))
        x_PD = o_PD if self.norm is None else self.norm(x_PD + o_PD)
        short_XD = split.pool(user_XD, x_PD)
        long_XD = torch.tanh(self.merge(torch.cat([split.recall(user_XD, e_UD) for e_UD in columns], 1)))
        return self.fuse(user_XD, short_XD, long_XD)[0]

    def _embed_users(self, batch: Batch, embedded: Embedded) -> Tensor:
        """Return e_u of each request, or of each target if its features are there."""
        if self.user is not None:
            return torch.tanh(self.user(torch.cat(list(embedded.request.values()), 1)))
        assert self.any_user is not None
        return self.any_user.unsqueeze(0).expand(self.segments(batch).rows, -1)

    def _choose_fields(self, fields: Fields) -> tuple[str, Fields]:
        """Return the name of the first history, and the fields that the model reads: none of the context."""
        name, read = super()._choose_fields(
            Fields(tuple(field for field in fields.features if field.side != "context"), fields.histories)
        )
        columns = tuple(field for field in read.histories[name] if field.name != SESSION_RECENCY)
        return name, Fields(read.features, {name: columns})
