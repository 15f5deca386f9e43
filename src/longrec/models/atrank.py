r"""ATRank: An Attention-Based User Behavior Modeling Framework for Recommendation.

Zhou, Bai, Song, Liu, Zhao, Chen, Gao, AAAI 2018. https://arxiv.org/abs/1711.06632

Behaviors of all kinds (items clicked, searches, coupons) are projected to one width and form one set. In each of
several latent semantic spaces every behavior attends to all others. Then the candidate attends to the results:

    S = [F_g(u) for every behavior u, of its group g]                              (eq. 2)
    S_k = F_Pk(S),   A_k = softmax(a(S_k, S)),   a(S_k, S) = S_k W_k S^T            (eq. 3 to 5)
    C_k = A_k F_Qk(S),   C = F_self([C_1, ..., C_K])                                (eq. 6 and 7)
    e_u = the same with one query, the candidate s_t, over C                        (vanilla attention)
    logit = <e_u, s_t> + bias

F_P and F_Q are one layer with a ReLU, F_self a network of one hidden layer. Residual connections and layer
normalization surround them and the attention. Every history of the schema is a group, with an F_g of its own.

Departures from the paper
    - W^O joins the spaces before F_self (see nn/transformer.py); the candidate attends once, where the released code
      attends in as many layers as ``blocks``; without behaviors e_u is the output of the last layer for the candidate;
    - the spaces are equally wide. ``score: dot`` is the released code's a(S_k, S) = S_k relu(S W + b)^T / sqrt(d);
    - s_t is one linear layer of all fields of the candidate, so that any histories can be combined;
    - the bias, one per item there, is a weight of every field here, or the user, the hour and the price would have
      no effect. ``prediction: mlp`` puts [fields, e_u, e_u * s_t] through a network instead;
    - the time of a behavior is the column ``time_gap`` of its history, an action any other column: concatenated
      and projected by F_g, as in the code, not added;
    - the penalty on e_u and s_t in the code's loss is left to the optimizer (``l2``, ``weight_decay``).

Shapes: B rows, N positions of all histories of the batch, U stored positions (see nn/segments.py), D width, T positions
of a shared history, H width of ``interact``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.joined import JoinedHistories
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.segments import Segments
from longrec.nn.transformer import EncoderLayer


class ATRankConfig(EmbeddingConfig):
    """Settings of ATRank."""

    width: Width = Field(64, description="Width of behaviors and candidate after projection.")
    spaces: Width = Field(8, description="Semantic spaces.")
    score: Literal["bilinear", "dot"] = Field("bilinear", description="The equation's score, or the released code's.")
    blocks: Width = Field(1, description="Layers of self attention.")
    hidden: Width = Field(32, description="Hidden units of the network after an attention.")
    prediction: Literal["dot", "mlp"] = Field("dot", description="The paper's product and bias, or a network.")
    mlp: tuple[Width, ...] = Field((200, 80), min_length=1, description="Hidden units of prediction: mlp.")
    mlp_activation: ActivationName = Field("relu", description="Activation of prediction: mlp.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate.")


class ATRank(Ranker):
    """ATRank over all histories of the schema together."""

    Config = ATRankConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prediction": "mlp", "width": 10, "spaces": 3, "mlp": [32]},
        {"score": "dot", "blocks": 2, "width": 16, "spaces": 2, "dropout": 0.1},
    )

    def __init__(self, config: ATRankConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if not fields.histories:
            raise ConfigError("schema", ["histories: atrank reads a history, and the schema has none"])
        self.candidate = [field.name for field in fields.features if field.side == "item"]
        if not self.candidate:
            raise ConfigError("schema", ["features: atrank needs candidate features as its query"])
        seen = fields
        if config.prediction == "dot":  # other fields have a bias and no vector
            seen = Fields(tuple(field for field in fields.features if field.side == "item"), fields.histories)
        self.embeddings = Embeddings(seen, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.groups = nn.ModuleList(
            Linear(sum(width[column.name] for column in columns), config.width) for columns in fields.histories.values()
        )
        self.target = Linear(sum(width[name] for name in self.candidate), config.width)
        for layer in (*self.groups, self.target):
            nn.init.zeros_(cast(Linear, layer).bias)  # else they dominate small embeddings
        score: Literal["bilinear", "relu"] = "bilinear" if config.score == "bilinear" else "relu"
        self.blocks = nn.ModuleList(
            EncoderLayer(config.width, config.spaces, config.hidden, score=score, dropout=config.dropout)
            for _ in range(config.blocks)
        )
        self.asking = EncoderLayer(config.width, config.spaces, config.hidden, score=score, dropout=config.dropout)
        self.biases, self.top = None, None
        if config.prediction == "dot":
            self.biases, self.bias = Embeddings(fields, width=1, std=0.0), nn.Parameter(torch.zeros(1))
            self.interaction_width = config.width + len(fields.features)
        else:
            inputs = sum(width[field.name] for field in fields.features) + 2 * config.width
            self.top = MLP(inputs, config.mlp, config.mlp_activation, config.dropout, outputs=1)
            self.interaction_width = self.top.width

    def embed_further(self, batch: Batch) -> dict[nn.Module, Embedded]:
        """Look up the field biases."""
        return {} if self.biases is None else {self.biases: self.biases(batch)}

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the elementwise product of user and candidate and the field biases, or the last hidden layer."""
        e_BD, s_BD, _ = self._attend(batch, embedded)
        if self.top is not None:
            return self.top.hidden(torch.cat([*embedded.features.values(), e_BD, e_BD * s_BD], 1))
        assert self.biases is not None
        return torch.cat([e_BD * s_BD, *embedded.further[self.biases].features.values()], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        """Return the sum, or the output of the final layer."""
        if self.top is None:
            return self.bias + h_BH.sum(1, keepdim=True)
        assert self.top.last is not None
        logit: Tensor = self.top.last(h_BH)
        return logit

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the sum, or of the final layer."""
        return [self.bias if self.top is None else self.top.output_bias]

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention of the candidate, mean over spaces: ragged ``[N]``, shared ``[B, T]``.

        The weights of all histories of a row sum to one.
        """
        return self._attend(batch, self.embed(batch))[2]

    def _attend(self, batch: Batch, embedded: Embedded) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return user ``[B, D]``, candidate ``[B, D]`` and the weights of the events of every history."""
        events = [
            cast(Tensor, group(torch.cat(list(columns.values()), 1)))
            for group, columns in zip(self.groups, embedded.histories.values())
        ]
        joined = JoinedHistories([Segments.of(batch, history) for history in self.fields.histories])
        attention = BucketedAttention(joined.segments)
        x_UD = attention.requests.gather_positions(joined.join(events))
        for block in self.blocks:
            x_UD = block(x_UD, attention.requests)
        s_BD = self.target(torch.cat([embedded.features[name] for name in self.candidate], 1))
        e_BD, w = self.asking.attend_query(attention.gather_rows(s_BD), x_UD, attention)
        weights = dict(zip(self.fields.histories, joined.split(attention.restore_positions(w))))
        return attention.restore_rows(e_BD), s_BD, weights
