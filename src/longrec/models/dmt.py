r"""DMT: Deep Multifaceted Transformers for Multi-objective Ranking in Large-Scale E-commerce Recommender Systems.

Gu, Ding, Wang, Zou, Liu, Yin, CIKM 2020. https://doi.org/10.1145/3340531.3412697

Clicks, carts and orders have different meanings, so each kind of behavior has its own transformer, in whose decoder the
candidate is the query. Several labels are learned by experts, and a separate network learns the position bias. It is
left out at ranking time.

    H_s = Encoder_s(sqrt(D) S_s + positions)                           for each history s
    u_s = Decoder_s(query = candidate, keys and values = H_s)
    x   = [u_s of all s; fields of the impression]
    f^k = sum_i softmax(G_k x)_i e_i(x),  u_k = Tower_k(f^k)           (MMoE, see mmoe)
    y_b = MLP(bias fields)
    p_k = sigmoid(u_k + y_b) while training, sigmoid(u_k) afterwards
    L   = sum_k c_k BCE(p_k, label_k)                                  over the labeled rows of task k

An encoder does not read the candidate: a request encodes each history once for all its candidates. The fields named by
``bias`` (a position, a page) enter y_b alone and no score: a request may leave them null. A label of orders that
counts impressions without a click among its negatives is learned as CTCVR, as in the paper.

Departures from the paper
    - positions are counted back from the newest event. ``time`` adds none and relies on the column ``time_gap`` of
      a history, in buckets, like other columns;
    - an event is as wide as its columns together; those that a candidate lacks are a learned vector for the candidate,
      which is scaled by sqrt(D) like the events; for instance tokens the query is a projection of all fields of the
      candidate;
    - a history without events is a learned vector, whatever the candidate;
    - attention has no bias and a head is as wide as an h-th of an event, rounded up, W^O joins heads (see
      nn/transformer.py); in the released code there is none, what enters encoder and decoder is dropped out too, and
      gates have a bias;
    - y_b reads fields of the impression; the paper's second form, categories of neighboring items, is not supported;
    - batch normalization in experts and towers is on by default, as in din.

Shapes: B rows, N positions, U stored positions (see nn/segments.py), T events of one user, K tasks, D width of an
event, H width of the towers' inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.multi_task import Tasks, TasksConfig
from longrec.models.core.registry import find_unknown_names
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.experts import Form, MMoELayer, Towers
from longrec.nn.length_buckets import find_empty_rows
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.transformer import EncoderLayer

_SLOWEST = 10_000.0
"""Longest wavelength of a sinusoidal position, divided by two pi."""


class DMTConfig(EmbeddingConfig, TasksConfig):
    """Settings of DMT."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"places": "max_positions"}
    renamed_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"position": {"learnt": "learned"}}

    heads: Width = Field(4, description="Heads of all attention.")
    encoder: int = Field(1, ge=0, description="Layers of self attention over the events of a history.")
    decoder: Width = Field(1, description="Layers of attention of the candidate over a history.")
    hidden: Width | None = Field(None, description="Units of the network in a layer; by default as many as its inputs.")
    position: Literal["learned", "sincos", "time"] = Field("learned", description="Position encoding of events.")
    max_positions: Width = Field(128, description="Distinct positions, counted back from the newest event.")
    experts: Width = Field(4, description="Number of experts.")
    expert: tuple[Width, ...] = Field((128,), min_length=1, description="Hidden units of an expert.")
    tower: tuple[Width, ...] = Field((64,), description="Hidden units of the network of each task.")
    activation: ActivationName = Field("relu", description="Activation of all networks.")
    batch_norm: bool = Field(True, description="Batch normalization in experts and towers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate, except for the bias.")
    bias: tuple[str, ...] = Field((), description="Features of the bias, which enters logits in training alone.")
    bias_mlp: tuple[Width, ...] = Field((32,), description="Hidden units of the network over them.")


class DMT(Ranker):
    """A transformer per behavior, experts over all, and a bias for training alone."""

    Config = DMTConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"position": "time", "heads": 3, "hidden": 10, "tasks": {"bought": 0.5}, "expert": [16], "dropout": 0.1},
        {"position": "sincos", "encoder": 2, "decoder": 2, "experts": 1, "batch_norm": False},
    )

    def __init__(self, config: DMTConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.order_matters = config.position != "time"
        bias, rest = _split_bias(config.bias, fields)
        self.embeddings = Embeddings(rest, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(rest, width, "dmt")
        self.paths, inputs = nn.ModuleDict(), sum(width[field.name] for field in rest.features)
        for history in rest.histories:
            path = _Path(self.queries.query_widths[history], self.queries.key_widths[history], config)
            self.paths[f"path_{history}"] = path
            inputs += path.width
        self.tasks = Tasks.of(config)
        self.targets, count = self.tasks.targets, len(self.tasks.names)
        form = Form(config.activation, config.dropout, config.batch_norm)
        self.experts = MMoELayer(inputs, count, config.experts, config.expert, form)
        self.towers = Towers(self.experts.width, config.tower, count, form)
        self.bias_embeddings: Embeddings | None = None
        if bias.features:
            self.bias_embeddings = Embeddings(bias, config.embedding_dim, std=config.init_std)
            self.bias = MLP(sum(self.bias_embeddings.widths.values()), config.bias_mlp, config.activation, outputs=1)
        # A model built on this one would lose the bias, so it cannot be a base then.
        self.interaction_width = 0 if bias.features else count * self.experts.width

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the inputs of all towers, concatenated, without the bias."""
        inputs = list(embedded.features.values())
        for history in self.fields.histories:
            path = cast(_Path, self.paths[f"path_{history}"])
            inputs.append(path(*self.queries(batch, embedded, history))[0])
        h_BKH: Tensor = self.experts(torch.cat(inputs, 1))
        return h_BKH.flatten(1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """Return the logit of every task, without a bias: the schema's label, then ``tasks``."""
        logits: Tensor = self.towers(h_BH.view(-1, len(self.tasks.names), self.experts.width))
        return logits

    def output_biases(self) -> Sequence[Tensor]:
        """Return the biases of the towers."""
        return self.towers.output_biases

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """Return the logit of every task: the schema's label, then ``tasks``. In training the bias logit is added."""
        logits_BK = super().logits(batch)
        return logits_BK + self.bias_logit(batch) if self.training and self.bias_embeddings else logits_BK

    def bias_logit(self, batch: Batch) -> Float[Tensor, "B 1"]:
        """Return y_b."""
        assert self.bias_embeddings is not None, "no bias fields"
        y_B1: Tensor = self.bias(torch.cat(list(self.bias_embeddings(batch).features.values()), 1))
        return y_B1

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """Return the logit of the product of probabilities that ``rank_by`` names."""
        return self.tasks.ranking_logit(logits_BK)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the logits with the bias."""
        return self.label_loss(self.logits(batch), batch)

    def label_loss(self, logits_BK: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of the losses of all tasks."""
        return self.tasks.loss(logits_BK, batch)

    def encode_history(self, batch: Batch, history: str) -> Float[Tensor, "U D"]:
        """Return H of one history: the encoded events, in their original order."""
        path = cast(_Path, self.paths[f"path_{history}"])
        e_UD, segments = self.queries.gather_keys(batch, self.embed(batch), history)
        attention = BucketedAttention(segments.requests)
        return attention.restore_positions(path.encode(e_UD, segments, attention))

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention of the last decoder layer, mean over heads: ragged ``[N]``, shared ``[B, T]``."""
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            path = cast(_Path, self.paths[f"path_{history}"])
            weights[history] = path(*self.queries(batch, embedded, history))[1]
        return weights


class _Path(nn.Module):
    """Encoder and decoder of one history."""

    renamed_parameters: ClassVar[dict[str, str]] = {"places": "position_embedding"}

    def __init__(self, query: int, key: int, config: DMTConfig) -> None:
        super().__init__()
        self.width = key
        self.absent = nn.Parameter(torch.randn(key - query) * config.init_std) if query < key else None
        self.nothing = nn.Parameter(torch.randn(key) * config.init_std)
        if config.position == "learned":
            self.position_embedding: Tensor | None = nn.Parameter(
                torch.randn(config.max_positions, key) * config.init_std
            )
        else:
            self.register_buffer(
                "position_embedding",
                _waves(config.max_positions, key) if config.position == "sincos" else None,
                persistent=False,
            )
        self.encoder = nn.ModuleList([_layer(key, config) for _ in range(config.encoder)])
        self.decoder = nn.ModuleList([_layer(key, config) for _ in range(config.decoder)])

    def forward(self, q_BQ: Tensor, e_UD: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """Return u ``[B, D]`` and the weights of the events: ragged ``[N]``, shared ``[B, T]``."""
        attention = BucketedAttention(segments)
        x_UD = self.encode(e_UD, segments, attention.requests)
        if self.absent is not None:
            q_BQ = torch.cat([q_BQ, self.absent.expand(q_BQ.shape[0], -1)], 1)
        y_BD = attention.gather_rows(q_BQ * self.width**0.5)
        w = x_UD
        for layer in self.decoder:
            y_BD, w = cast(EncoderLayer, layer).attend_query(y_BD, x_UD, attention)
        u_BD = torch.where(find_empty_rows(segments), self.nothing, attention.restore_rows(y_BD))
        return u_BD, attention.restore_positions(w)

    def encode(self, e_UD: Tensor, segments: Segments, attention: BucketedAttention) -> Tensor:
        """Return H ``[U, D]``, in the order of the attention over the stored positions."""
        x_UD = e_UD * self.width**0.5
        if self.position_embedding is not None:
            newer_U = segments.count_newer().clamp(max=len(self.position_embedding) - 1)
            x_UD = x_UD + self.position_embedding.index_select(0, newer_U)
        x_UD = attention.gather_positions(x_UD)
        for layer in self.encoder:
            x_UD = layer(x_UD, attention)
        return x_UD


def _layer(width: int, config: DMTConfig) -> EncoderLayer:
    hidden = config.hidden or width
    return EncoderLayer(width, config.heads, hidden, activation=config.activation, dropout=config.dropout)


def _waves(count: int, width: int) -> Tensor:
    """Return interleaved sines and cosines of each position, from fast to slow (Vaswani et al. 2017, section 3.5)."""
    speed = _SLOWEST ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(count).unsqueeze(1) * speed
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :width].contiguous()


def _split_bias(names: tuple[str, ...], fields: Fields) -> tuple[Fields, Fields]:
    """Return the fields of the bias, and all others.

    Raises:
        ConfigError: if names are unknown (all are listed) or repeated, or a history has no query.
    """
    faults = find_unknown_names("model.bias", names, [field.name for field in fields.features])
    for history in fields.histories:
        shared = [field.name for field in fields.target_columns(history)]
        if shared and set(shared) <= set(names):
            columns = ", ".join(shared)
            faults.append(f"model.bias: takes {columns}, all that the history {history} shares with a candidate")
    if faults:
        raise ConfigError("config", faults)
    own = tuple(field for field in fields.features if field.name in names)
    return Fields(own, {}), Fields(tuple(field for field in fields.features if field not in own), fields.histories)
