r"""DUPN: Perceive Your Users in Depth: Learning Universal User Representations from Multiple E-commerce Tasks.

Ni, Ou, Liu, Li, Ou, Zeng, Si, KDD 2018. https://arxiv.org/abs/1805.10727

An event has an item and properties: the action, the scenario, the time. In an LSTM over the items the properties enter
the gates. Attention with the query and the user pools the states into one vector, which several tasks share and which
is the same for every candidate:

    i, f, o = sigmoid(W_e e_t + W_p p_t + W_h h_{t-1} + b)      c_t = f c_{t-1} + i tanh(W_e e_t + W_h h_{t-1} + b)
    h_t = o tanh(c_t)                                                                (property gated LSTM)
    a_t = softmax_t(MLP(h_t, q, u, p_t))         rep_s = sum_t a_t h_t               (attention)
    rep = [rep_s; u]                                                                 (the user's vector)
    logit_k = MLP_k([rep, q, v])       L = sum_k weight_k L_k                        (tasks)

No property enters the candidate of the cell, tanh(...). e_t are the columns of an event that the candidate has too, p_t
are the others (a past rating, elapsed time), u the fields of the user, q the other fields of the impression and v
those of the candidate. The equations go by name here.

Departures from the paper
    - the label of the schema and those of ``tasks`` are equal tasks with cross entropy, and every batch trains all of
      them; the paper trains one task per batch, and has other
      kinds of tasks (weights of ranking features, classes of prices);
    - the attention uses those of q and u that exist, and the events alone without both; with ``candidate: true`` it
      also uses the candidate, and the vector then depends on the candidate;
    - for a history of instance tokens, which shares no column with the candidate, e_t are the tokens;
    - each history has a recurrence and an attention of its own.

Shapes: B rows, R rows that differ for the attention (requests, or all rows with ``candidate``), N positions of the
batch's histories, U stored positions (see nn/segments.py), P width of a property, H units of the recurrence or of the
last hidden layers, X width of the query, V width of the user's vector, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.multi_task import Tasks, TasksConfig
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.lstm import LSTM
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments


class DUPNConfig(EmbeddingConfig, TasksConfig):
    """Settings of DUPN."""

    hidden: Width = Field(128, description="Units of the recurrence.")
    attention: tuple[Width, ...] = Field((64,), min_length=1, description="Hidden units of the attention.")
    candidate: bool = Field(False, description="Use the candidate in the attention too.")
    mlp: tuple[Width, ...] = Field((200, 80), min_length=1, description="Hidden units of the MLP of every task.")
    mlp_activation: ActivationName = Field("relu", description="Activation of these MLPs.")
    batch_norm: bool = Field(True, description="Batch normalization in these MLPs.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of these MLPs.")


class DUPN(Ranker):
    """DUPN over every history of the schema."""

    Config = DUPNConfig
    reads_history = True
    reads_groups = True
    order_matters = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"candidate": True, "hidden": 12, "attention": [8, 6], "mlp": [24], "dropout": 0.1},
        {"hidden": 12, "mlp": [24], "mlp_activation": "dice", "batch_norm": False, "tasks": {"bought": 0.5}},
    )

    def __init__(self, config: DUPNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        self.tasks = Tasks.of(config)
        self.targets = self.tasks.targets
        width = self.embeddings.widths
        queries = Queries(fields, width, "dupn", project=False)
        self.of: dict[str, list[str]] = {"user": [], "item": [], "context": []}
        for field in fields.features:
            self.of[field.side].append(field.name)
        self.query_features = [*self.of["user"], *self.of["context"], *(self.of["item"] if config.candidate else [])]
        self.items, self.properties = {}, {}
        self.paths = nn.ModuleDict()
        for history, columns in fields.histories.items():
            tokens = [field.name for field in columns if field.kind == "embedding"]
            self.items[history] = queries.query_columns[history] if queries.common_widths[history] else tokens
            self.properties[history] = [
                name for name in queries.key_columns[history] if name not in self.items[history]
            ]
            groups = self.items[history], self.properties[history], self.query_features
            e, p, x = (sum(width[name] for name in group) for group in groups)
            self.paths[f"path_{history}"] = _Path(e, p, x, config)
        of = {table: sum(width[name] for name in names) for table, names in self.of.items()}
        self.user_width = config.hidden * len(self.paths) + of["user"]
        inputs = self.user_width + of["item"] + of["context"]
        self.tops = nn.ModuleList(
            MLP(inputs, config.mlp, config.mlp_activation, config.dropout, config.batch_norm, outputs=1)
            for _ in self.tasks.names
        )
        self.interaction_width = sum(cast(MLP, top).width for top in self.tops)

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the last hidden layers of the MLPs of all labels, concatenated."""
        rest = [embedded.features[name] for name in (*self.of["context"], *self.of["item"])]
        inputs = torch.cat([self._user(batch, embedded), *rest], 1)
        return torch.cat([cast(MLP, top).hidden(inputs) for top in self.tops], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """Return the logit of every label: the final layers of these MLPs."""
        tops = [cast(MLP, top) for top in self.tops]
        hidden = torch.split(h_BH, [top.width for top in tops], 1)
        return torch.cat([cast(Linear, top.last)(h) for top, h in zip(tops, hidden)], 1)

    def output_biases(self) -> Sequence[Tensor]:
        """Return the biases of the final layers."""
        return [cast(MLP, top).output_bias for top in self.tops]

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """Return the logit of the product of probabilities that ``rank_by`` names."""
        return self.tasks.ranking_logit(logits_BK)

    def user(self, batch: Batch) -> Float[Tensor, "B V"]:
        """Return rep, the vector of every row's user. A request computes it once."""
        return self._user(batch, self.embed(batch))

    def label_loss(self, logits_BK: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of the cross entropies of all labels, in float32, each over its labeled rows.

        Raises:
            ValueError: if the batch has no labels.
        """
        return self.tasks.loss(logits_BK, batch)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention weight of every position of every history: ragged ``[N]``, shared ``[B, T]``."""
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            segments, (_, w) = Segments.of(batch, history), self._read(batch, embedded, history)
            weights[history] = segments.by_candidate(w) if self.config.candidate else segments.repeat_weights(w)
        return weights

    def _user(self, batch: Batch, embedded: Embedded) -> Tensor:
        vectors = [self._read(batch, embedded, history)[0] for history in self.fields.histories]
        if not self.config.candidate:
            vectors = [embedded.layout.repeat(rep_RH) for rep_RH in vectors]
        return torch.cat([*vectors, *(embedded.features[name] for name in self.of["user"])], 1)

    def _read(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Tensor]:
        """Return rep_s ``[R, H]`` and the attention of R rows."""
        columns, segments = embedded.histories[history], Segments.of(batch, history)
        features: Mapping[str, Tensor] = embedded.features
        if not self.config.candidate:
            segments, features = segments.requests, embedded.request
        groups = (
            [columns[name] for name in self.items[history]],
            [columns[name] for name in self.properties[history]],
            [features[name] for name in self.query_features],
        )
        e, p, x = (torch.cat(group, 1) if group else None for group in groups)
        rep_RH, w = self.paths[f"path_{history}"](e, p, x, segments)
        return rep_RH, w


class _Path(nn.Module):
    """The recurrence of one history and the attention on it."""

    def __init__(self, item: int, prop: int, query: int, config: DUPNConfig) -> None:
        super().__init__()
        hidden, (first, *rest) = config.hidden, config.attention
        self.recurrence = LSTM(item, hidden)
        self.gates = Linear(prop, 3 * hidden, bias=False) if prop else None
        # First layer of the attention network, split into inputs per event and inputs per row.
        self.of_event = Linear(hidden + prop, first)
        self.of_row = Linear(query, first, bias=False) if query else None
        # A softmax is invariant to a constant, so a last bias would get no gradient.
        self.rest = MLP(first, rest, "relu", outputs=1, last_bias=False)

    def states(self, e_UE: Tensor, p_UP: Tensor | None, segments: Segments) -> Tensor:
        """Return h ``[U, H]``."""
        gates = None if self.gates is None or p_UP is None else self.gates(p_UP)
        return self.recurrence.states(e_UE, segments.requests, gates)

    def forward(
        self, e_UE: Tensor, p_UP: Tensor | None, x_RX: Tensor | None, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        """Return rep_s ``[R, H]`` and the attention."""
        h_UH = self.states(e_UE, p_UP, segments)
        hidden = self.of_event(h_UH if p_UP is None else torch.cat([h_UH, p_UP], 1))
        if self.of_row is None or x_RX is None:
            hidden = segments.keys(hidden)
        else:
            hidden = segments.add(self.of_row(x_RX), hidden)
        w = segments.softmax(self.rest(hidden.relu()).squeeze(1))
        return segments.weighted_sum(w, h_UH), w
